"""How commands speak: JSON for machines, plain words and tables for people.

What the service says may come from an agent: nothing of it may steer a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ..domain.printable import lines_of, one_line
from .command import ClosedPipeError

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
RawOption = Annotated[
    bool, typer.Option("--raw", help="Print it to the byte, whatever that does to a terminal.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        envvar="API_URL",
        show_envvar=False,
        help="The service (API_URL, http://localhost:8000).",
    ),
]
WIDE: Final = 500  # where no terminal is, no line is folded
STYLES: Final = {
    "DONE_SUCCESS": "green",
    "COMPLETE": "green",
    "clean": "green",
    "eligible": "green",
    "ok": "green",
    "resolved": "green",
    "FAILED": "red",
    "major": "red",
    "not eligible": "red",
    "fail": "red",
    "warn": "yellow",
    "needs_cleanup": "yellow",
    "SKIPPED": "dim",
    "QUEUED": "dim",
    "PENDING": "dim",
}


def say(*lines: str, is_error: bool = False, is_now: bool = False) -> None:
    """Print lines. The one place through which words of a command go, into a pipe too.

    What is no printable character is spelt out, whoever wrote it: no text makes a line of its own.
    `is_now` flushes.
    """
    with _to_a_reader():
        text = "\n".join(map(one_line, lines))
        print(text, file=sys.stderr if is_error else sys.stdout, flush=is_now)


@contextmanager
def _to_a_reader() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipeError from error


def print_text(text: bytes, *, is_raw: bool) -> None:
    """Print a patch or a log: harmless, or to the byte where the caller asked for that."""
    with _to_a_reader():
        if is_raw:
            sys.stdout.flush()
            sys.stdout.buffer.write(text)
        else:
            print(lines_of(text.decode(errors="backslashreplace")), end="")


def print_json(answer: BaseModel | Any, *, is_line: bool = False) -> None:
    """Print a document as the service has it, in ASCII; on one line where more will follow."""
    document = answer if isinstance(answer, dict | list) else answer.model_dump(mode="json")
    text = json.dumps(document, indent=None if is_line else 2).replace("\x7f", "\\u007f")
    with _to_a_reader():
        print(text, flush=is_line)  # of what steers a terminal json.dumps leaves DEL alone


def log_warnings_alone() -> None:
    """Keep standard output for answers: logs go to standard error, and only grave ones."""
    import structlog  # here, as most commands run nothing that logs

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def make_console() -> Console:
    """Return a console that takes all text as it is; no colour where no terminal is."""
    from rich.console import Console  # here, as `--help` and `--json` do without it

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise ClosedPipeError

    width = None if sys.stdout.isatty() else WIDE
    return _Console(markup=False, emoji=False, highlight=False, width=width)


def cell(value: object, style: str = "") -> Text:
    """Return one line of a table, harmless whatever it holds; states have their colours."""
    from rich.text import Text

    text = one_line("" if value is None else str(value))
    failed = "red" if text.startswith("DONE_FAILED") else ""
    return Text(text, style or STYLES.get(text, failed), overflow="fold")


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below their headings; headings alone where there are none."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(cell(value) for value in row))
    make_console().print(table)
