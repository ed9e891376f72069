"""What every command is made of: its Typer app, its exit codes, its one error."""

from __future__ import annotations

from typing import Final

import typer

FINE: Final = 0
NO: Final = 1  # the answer is no: a run failed, is not eligible, something differs
WRONG_USE: Final = 2
UNAVAILABLE: Final = 3  # the service, or what it needs
CLOSED_PIPE: Final = 141  # as a shell says of a program that a closed pipe ended


class CommandError(Exception):
    """A command cannot go on. The message is one line that says why, or what to do."""

    def __init__(self, message: str, exit_code: int = WRONG_USE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ClosedPipeError(Exception):
    """The reader of standard output has gone, as `head` does: there is no more to do.

    It is no OSError, because commands tell of those, and Typer ends with 1, which means no.
    """


def command_app() -> typer.Typer:
    """Return an app for one command, or for a group of them."""
    # Help in plain text starts twice as fast.
    return typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
