"""Writes docs/settings.md from the Settings class; with `--check` only says whether it differs.

python scripts/settings_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from autopack.config import Settings  # noqa: E402  the path must be set first

DOCUMENT = ROOT / "docs" / "settings.md"
HEAD = """\
# Settings

Made from the Settings class by `python scripts/settings_table.py`; do not edit by hand.

Settings come from the environment and from one file of the operator's: the one that
`AUTOPACK_ENV_FILE` names, else `.env` beside Autopack's own code. The environment wins. The
repository that is served has no say: a file that it tracks is refused at start, and so are a home
and a runs directory in which it tracks anything but a ruleset and finished records. Relative
folders are taken from the top of the repository that is served. A wrong value stops the start with
one line that names it.

| variable | default | meaning |
|---|---|---|
"""


def document() -> str:
    """Return what docs/settings.md must hold."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, tuple):
            default = ",".join(default)
        if name == "project_id":
            default = None  # found by the data that are there, or by the folder
        shown = "unset" if default is None or default is False else f"`{default}`"
        rows.append(f"| `{Settings.variable(name)}` | {shown} | {field.description} |\n")
    return HEAD + "".join(rows)


def main() -> int:
    if "--check" in sys.argv[1:]:
        if DOCUMENT.read_text(encoding="utf-8") == document():
            return 0
        print("docs/settings.md is out of step: python scripts/settings_table.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
