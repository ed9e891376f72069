"""Writes docs/commands.md from the command line; with `--check` only says whether it differs.

python scripts/command_table.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from typer.main import get_command  # noqa: E402  the path must be set first

from autopack.cli.app import COMMANDS  # noqa: E402  as above

DOCUMENT = ROOT / "docs" / "commands.md"
HEAD = """\
# All commands and options

Made from the command line by `python scripts/command_table.py`; do not edit by hand.
[cli.md](cli.md) says what the commands are for, and their exit codes.
"""


def document() -> str:
    """Return what docs/commands.md must hold."""
    parts = [HEAD]
    for name, purpose in COMMANDS.items():
        command: Any = get_command(import_module(f"autopack.cli.{name}").app)
        parts += _sections(f"autopack {name}", command, purpose)
    return "\n".join(parts)


def _sections(path: str, command: Any, purpose: str) -> Iterator[str]:
    """Yield the section of a command, or those of its commands."""
    if hasattr(command, "commands"):
        for name, inner in command.commands.items():
            yield from _sections(f"{path} {name}", inner, inner.help or "")
        return
    shown = [each for each in command.params if not getattr(each, "hidden", False)]
    arguments = [each for each in shown if each.param_type_name == "argument"]
    words = [
        each.metavar or each.name.upper() if each.required else f"[{each.metavar or each.name}]"
        for each in arguments
    ]
    yield f"## `{' '.join([path, *words])}`\n\n{_one_line(purpose)}\n"
    options = [each for each in shown if each.param_type_name == "option"]
    rows = [
        f"| `{word}` | {_one_line(each.help)} |"
        for word, each in zip(words, arguments, strict=True)
    ]
    rows += [f"| {_spelled(each)} | {_one_line(each.help)} |" for each in options]
    if rows:
        yield "| | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _spelled(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        return names
    return f"{names} `{option.metavar or option.name.upper()}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def main() -> int:
    if "--check" in sys.argv[1:]:
        if DOCUMENT.exists() and DOCUMENT.read_text(encoding="utf-8") == document():
            return 0
        print("docs/commands.md is out of step: python scripts/command_table.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(document(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
