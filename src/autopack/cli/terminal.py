"""How commands speak: JSON for machines, plain words and tables for people.

What the service says may come from an agent: nothing of it may steer a terminal.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console
    from rich.text import Text

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The service (API_URL, http://localhost:8000).")
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


def shown(text: str) -> str:
    """Return text for one line of a terminal: what is no printable character is spelt out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_text(text: bytes) -> None:
    """Print a patch or a log as it is; to a terminal only what cannot steer it."""
    if not sys.stdout.isatty():
        sys.stdout.flush()
        sys.stdout.buffer.write(text)
        return
    for line in text.decode(errors="backslashreplace").splitlines():
        print("\t".join(shown(part) for part in line.split("\t")))


def print_json(answer: BaseModel | Any, *, is_line: bool = False) -> None:
    """Print a document as the service has it, in ASCII; on one line where more will follow."""
    document = answer if isinstance(answer, dict | list) else answer.model_dump(mode="json")
    print(json.dumps(document, indent=None if is_line else 2), flush=is_line)


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

    width = None if sys.stdout.isatty() else WIDE
    return Console(markup=False, emoji=False, highlight=False, width=width)


def cell(value: object, style: str = "") -> Text:
    """Return one line of a table, harmless whatever it holds; states have their colours."""
    from rich.text import Text

    text = shown("" if value is None else str(value))
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
