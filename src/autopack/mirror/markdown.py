"""Markdown from untrusted text.

Names, notes and reasons come from agents, which work on text of other people. `inline` and `quote`
escape any text so that it is shown as it is: it starts no heading, table, list, link, fence or
HTML, mentions no account, refers to no issue that a forge would link or close, and no control
character reaches a terminal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

NONE = "-"

_BLANKS = re.compile(r"[\s\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_LINES = re.compile(r"\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# Characters that change the direction of text, and lone surrogates.
_INVISIBLE = re.compile(r"[\u200e\u200f\u061c\u202a-\u202e\u2066-\u2069\ufeff]")
_SURROGATES = re.compile(r"[\ud800-\udfff]")
# An underscore within a word is harmless, and snake_case should stay readable.
_SPECIAL = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LINKS = re.compile(r"(?<=[A-Za-z]):(?=//)|(?<=[Ww]{3})\.")
# A forge looks for these in the rendered text, after all escapes; an HTML comment separates them.
_CALLS = re.compile(r"(?<=@)(?=\w)|(?<=#)(?=\d)|(?<=GH-)(?=\d)", re.IGNORECASE)
# Most names and reasons have only these characters and need no escapes.
_SUSPECT = re.compile(r"^[^A-Za-z]|[^A-Za-z0-9 ,.;()'\"!?%/-]|  | \Z|[Ww]{3}\.|[Gg][Hh]-\d")
_TAME_CODE = re.compile(r"[A-Za-z0-9_./:@-]+")
_PIPE = re.compile(r"\\\||\|")
_LINE_START = re.compile(r"^(?:[#+\-=:]|\d{1,9}(?=[.)]))")


def plain(text: str) -> str:
    """Return a text as one line: blanks and controls become one space."""
    text = _SURROGATES.sub("\ufffd", _INVISIBLE.sub("", text))
    return _BLANKS.sub(" ", text).strip()


def inline(text: str, limit: int | None = None) -> str:
    """Escape a text for the middle or the beginning of a line, cut at `limit` characters."""
    if not _SUSPECT.search(text) and (limit is None or len(text) <= limit):
        return text
    text = _cut(plain(text), limit)
    text = re.sub("[&<>]", lambda match: _ENTITIES[match[0]], text)
    text = _SPECIAL.sub(lambda match: "\\" + match[0], text)
    text = _LINKS.sub(lambda match: "\\" + match[0], text)
    text = _LINE_START.sub(_escape_start, text)
    return _CALLS.sub("<!-- -->", text)


def _escape_start(match: re.Match[str]) -> str:
    return match[0] + "\\" if match[0].isdigit() else "\\" + match[0]


def _cut(text: str, limit: int | None) -> str:
    if limit is None or len(text) <= limit:
        return text
    return text[: limit - 1].rstrip() + "…"


def code(text: str, limit: int | None = None) -> str:
    """Show a short text as code, for any content."""
    if _TAME_CODE.fullmatch(text) and (limit is None or len(text) <= limit):
        return f"`{text}`"
    text = _cut(plain(text), limit)
    if not text:
        return NONE
    if "\\|" in text:  # renderers differ about a pipe inside code in a table
        return inline(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def quote(text: str) -> str:
    """Show a longer text as a quotation with its lines and paragraphs."""
    lines = [inline(line) for line in _LINES.split(text.strip())]
    quoted = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line:
            quoted.append(f"> {line}  " if following else f"> {line}")
        elif quoted and quoted[-1] != ">":
            quoted.append(">")
    return "\n".join(quoted)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Return a table of Markdown cells; `right` are the columns with figures."""
    flushed = set(right)
    rules = ["---:" if column in flushed else "---" for column in range(len(header))]
    return "\n".join(_row(cells) for cells in (header, rules, *rows))


def _row(cells: Sequence[str]) -> str:
    row = " | ".join(cells)
    if row.count("|") >= len(cells):  # within a cell too
        row = " | ".join(map(_cell, cells))
    return f"| {row} |"


def _cell(cell: str) -> str:
    """Escape the pipes that are not escaped yet: even inside code a pipe ends a cell."""
    return _PIPE.sub(r"\\|", cell) if "|" in cell else cell


def bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)
