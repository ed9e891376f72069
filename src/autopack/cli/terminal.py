"""Output of commands: JSON for machines, plain text and tables for people.

Text from the service may be written by an agent, so it must not control a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
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
    bool, typer.Option("--raw", help="Print the exact bytes, also if they control the terminal.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        # No `envvar`: the client reads the environment, and a file after it.
        help="The service (AUTOPACK_URL, API_URL, http://localhost:8000).",
    ),
]
LimitOption = Annotated[int, typer.Option(help="How many.")]
CursorOption = Annotated[str | None, typer.Option(help="`next_cursor` of the page before.")]
PlanArgument = Annotated[Path, typer.Argument(help="A plan's file, JSON or YAML.")]
WIDE: Final = 500  # without a terminal, lines are not wrapped
GAP: Final = 2  # between two columns
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


_quiet = False
_project: str | None = None


def choose_project(name: str | None) -> None:
    """Let the commands be about a project; None: that of AUTOPACK_PROJECT, or the default one."""
    global _project
    _project = name


def chosen_project() -> str | None:
    return _project


def be_quiet(is_wanted: bool) -> None:
    """Print no progress, warnings and hints from now on; answers and errors stay."""
    global _quiet
    _quiet = is_wanted


def hint(*lines: str) -> None:
    """Print what is neither an answer nor an error, to standard error."""
    if not _quiet:
        say(*lines, is_error=True)


def print_any_text() -> None:
    """Escape what the terminal cannot show, as it may support only ASCII."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str, is_error: bool = False, is_now: bool = False) -> None:
    """Print lines. All text of a command goes through this function, also into a pipe.

    Characters that are not printable are escaped, so that no text can add a line. `is_now` flushes.
    """
    with to_a_reader():
        text = "\n".join(map(one_line, lines))
        print(text, file=sys.stderr if is_error else sys.stdout, flush=is_now)


@contextmanager
def to_a_reader() -> Iterator[None]:
    """Turn a closed pipe into ClosedPipeError, for what is printed within."""
    try:
        yield
    except BrokenPipeError as error:
        raise ClosedPipeError from error


def print_text(text: bytes, *, is_raw: bool) -> None:
    """Print a patch or a log: escaped, or byte for byte where the user asked for that."""
    with to_a_reader():
        if is_raw:
            sys.stdout.flush()
            sys.stdout.buffer.write(text)
        else:
            print(lines_of(text.decode(errors="backslashreplace")), end="")


def print_json(answer: BaseModel | Any, *, is_line: bool = False) -> None:
    """Print a document in ASCII; with `is_line` on one line, for a stream of documents."""
    document = answer if isinstance(answer, dict | list) else answer.model_dump(mode="json")
    # json.dumps escapes every control character but DEL.
    text = json.dumps(document, indent=None if is_line else 2).replace("\x7f", "\\u007f")
    with to_a_reader():
        print(text, flush=is_line)


def log_warnings_alone() -> None:
    """Keep standard output for answers: logs go to standard error, from warnings on."""
    import structlog  # imported here, as most commands do not log

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        # The stream is looked up for each line, as the one of this moment may be closed later.
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),
    )


def make_console() -> Console:
    """Return a console without markup, and without colour where there is no terminal."""
    from rich.console import Console  # imported here, as `--help` and `--json` do not need it

    class _Console(Console):
        def on_broken_pipe(self) -> None:
            raise ClosedPipeError

    width = None if is_terminal() else WIDE
    return _Console(markup=False, emoji=False, highlight=False, width=width)


@contextmanager
def busy(doing: str) -> Iterator[None]:
    """Show what is being done, while it takes time: on a terminal only, on standard error."""
    if _quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True, markup=False, highlight=False).status(cell(doing)):
        yield


def cell(value: object, style: str = "") -> Text:
    """Return one escaped line of a table cell; states have their colours."""
    from rich.text import Text

    text = one_line("" if value is None else str(value))
    failed = "red" if text.startswith("DONE_FAILED") else ""
    return Text(text, style or STYLES.get(text, failed), overflow="fold")


def is_terminal() -> bool:
    """Whether a person reads standard output; a pipe gets whole lines."""
    return sys.stdout.isatty()


def wrapped(text: str, indent: str = "", *, is_command: bool = False) -> list[str]:
    """Wrap a line between words on a terminal, its further lines indented.

    A command for the shell continues by a backslash, so that it can be copied.
    """
    if not is_terminal():
        return [text]
    lines = textwrap.wrap(
        text,
        make_console().width - 2 * is_command,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:] if is_command else lines


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], least: Sequence[str] = ()
) -> None:
    """Print rows below their headings; only the headings where there are no rows.

    A terminal that is too narrow does not show the columns of the headings `least`, the first of
    them first. A pipe gets all.
    """
    from rich.table import Table

    cells = [[cell(value) for value in row] for row in rows]
    widths = {
        heading: max([len(heading), *(row[column].cell_len for row in cells)])
        for column, heading in enumerate(headings)
    }
    for heading in least:
        if sum(widths.values()) + GAP * (len(widths) - 1) > make_console().width:
            del widths[heading]
    shown = [column for column, heading in enumerate(headings) if heading in widths]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in shown:
        table.add_column(headings[column], overflow="fold")
    for texts in cells:
        table.add_row(*(texts[column] for column in shown))
    make_console().print(table)
