"""What every command uses: its Typer app, the exit codes, the error type."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

FINE: Final = 0
NO: Final = 1  # the answer is no: a run failed, is not eligible, something differs
WRONG_USE: Final = 2
UNAVAILABLE: Final = 3  # the service, or what it needs, is not available
CLOSED_PIPE: Final = 141  # a shell's exit code for a program that SIGPIPE ended


class CommandError(Exception):
    """A command cannot go on. The message is one line that says why, or what to do."""

    def __init__(self, message: str, exit_code: int = WRONG_USE) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ClosedPipeError(Exception):
    """The reader of standard output closed the pipe, as `head` does: the command ends.

    It is not an OSError, because commands report those as errors, and Typer would exit with 1,
    which means no.
    """


@contextmanager
def importing() -> Iterator[None]:
    """Collect no garbage while the whole service is imported: a sixth of that import's time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what was imported stays to the end
        gc.enable()


def command_app() -> typer.Typer:
    """Return an app for one command, or for a group of them."""
    # Help in plain text starts twice as fast.
    return typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None)
