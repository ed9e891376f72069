"""What every command is made of: its Typer app, its exit codes, its one error."""

from __future__ import annotations

from typing import Final

import typer

FINE: Final = 0
NO: Final = 1  # the answer is no: a run failed, is not eligible, something differs
WRONG_USE: Final = 2
UNAVAILABLE: Final = 3  # the service, or what it needs


class CommandError(Exception):
    """A command cannot go on. The message is one line that says why, or what to do."""

    def __init__(self, message: str, exit_code: int = WRONG_USE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def command_app() -> typer.Typer:
    """Return an app for one command, or for a group of them."""
    # Help in plain text starts twice as fast.
    return typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
