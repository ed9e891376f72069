"""The paths that no patch may change, whatever a ruleset opens. (docs/paths.md)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from typing import Final

from .changes import MODE_LINK
from .naming import RUNS_FOLDER
from .paths import Names, globs, names_of

ALLOWED_SIGNERS: Final = ".github/autopack_allowed_signers"
# The service's own files, and whose signature makes a record count.
CLOSED: Final = (f"{RUNS_FOLDER}/**", ".autopack/**", f"{ALLOWED_SIGNERS}/**")


def leads_into_git_dir(names: Names) -> bool:
    """Say whether a path leads into a git dir, or out of the repository, on some systems."""
    return any(name in ("", ".", "..", ".git") for name in names)


def closed_problem(path: str, mode: int) -> str | None:
    """Say why no patch may change a path, as the end of a sentence; None: a ruleset may open it.

    `mode` is what the patch makes of the path.
    """
    names = names_of(path)
    closed = globs(CLOSED)
    if leads_into_git_dir(names):
        return "which leads into a git dir, or out of the repository, on some systems"
    if closed.match(names):
        return "which no patch may"
    if mode == MODE_LINK and closed.stands_above(names):
        return f"a link in the place of a folder of {ALLOWED_SIGNERS}"
    return None
