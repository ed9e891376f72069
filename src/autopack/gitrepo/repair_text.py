"""Remove what chats, terminals and tools add to a patch as a whole.

Each repair is a function of the text: it returns the repaired text and what was done, or None where
there is nothing to repair. Each is linear in the text. None reads the repository.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ..domain.changes import DIFF_COMMAND, Repair, RepairKind
from .errors import PatchMalformedError
from .grammar import begins_file
from .names import show
from .patch import PatchText

Mended = tuple[PatchText, Repair]

_BOM = b"\xef\xbb\xbf"
_FENCE = re.compile(rb"([ \t]*)(`{3,}|~{3,})[^`]*$")
_COLOUR = re.compile(rb"\x1b\[[0-9;]*[mK]")
_MAIL_HEAD = re.compile(
    rb"(?:From|Date|Subject|To|Cc|Message-I[Dd]|MIME-Version|Received|Return-Path): "
    rb"|(?:commit|tag) \S+(?: \(.*\))?$"
)


def remove_byte_order_mark(text: PatchText) -> Mended | None:
    lines = text.lines
    if lines and lines[0].startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PatchMalformedError("The patch is UTF-16; send it as UTF-8 or as raw bytes.", line=1)
    if not lines or not lines[0].startswith(_BOM):
        return None
    mended = text.with_lines([lines[0].removeprefix(_BOM), *lines[1:]])
    return mended, Repair(RepairKind.BYTE_ORDER_MARK, "The byte order mark was removed.", 1)


def remove_carriage_returns(text: PatchText) -> Mended | None:
    """Remove one CR from each line, if every line has one: a terminal or a text mode added it.

    Lines of files that have CRLF themselves get it back (`keep_line_ends`). The last line may have
    lost its CR together with the newline.
    """
    lines = text.lines
    if not lines or not all(line.endswith(b"\r") for line in lines[: len(lines) - 1 or 1]):
        return None
    mended = text.with_lines([line.removesuffix(b"\r") for line in lines])
    detail = "Every line of the patch ended in CR LF: one CR was removed from each."
    return mended, Repair(RepairKind.LINE_ENDS, detail, text.numbers[0])


def remove_colours(text: PatchText) -> Mended | None:
    """Remove terminal colours, if the patch's own header lines have them.

    Refused where an added line has one inside: that may be part of the file.
    """
    if not any(
        line.startswith(b"\x1b[") and _COLOUR.sub(b"", line).startswith((b"diff ", b"--- ", b"@@ "))
        for line in text.lines
    ):
        return None
    mended = [_COLOUR.sub(b"", line) for line in text.lines]
    for line, plain, number in zip(text.lines, mended, text.numbers, strict=True):
        if plain.startswith(b"+") and _has_colours_of_its_own(line):
            raise PatchMalformedError(
                "The patch has terminal colours, and this line may have colours of the file:"
                f" make it by `{DIFF_COMMAND}`.",
                line=number,
            )
    detail = "Terminal colours were removed."
    return text.with_lines(mended), Repair(RepairKind.COLOURS, detail, text.numbers[0])


def _has_colours_of_its_own(line: bytes) -> bool:
    """Return whether an added line has colours at places where git adds none.

    git colours the mark, the text as a whole, and blanks at both ends.
    """
    parts = [part for part in _COLOUR.split(line) if part.strip()]
    return len(parts) - (parts[0].strip() == b"+") > 1


@dataclass(frozen=True, slots=True)
class _Fenced:
    """A fenced block: its content is the lines from `start` to `end`, without `end`."""

    start: int
    end: int
    is_closed: bool
    has_diff: bool


def remove_fence(text: PatchText) -> Mended | None:
    """Remove one Markdown fence, and the prose around it.

    Refused where several fenced blocks contain a diff, and where that block is not closed: its end
    may be missing.
    """
    blocks = [block for block in _fenced_blocks(text) if block.has_diff]
    if not blocks:
        return None
    first, *more = blocks
    if not first.is_closed:
        raise PatchMalformedError(
            "A Markdown fence opens here and does not close: the patch's end may be missing."
            " Send the diff alone, and all of it.",
            line=text.numbers[first.start - 1],
        )
    if more:
        raise PatchMalformedError(
            f"Several Markdown fences contain a diff, the second one here: `{show(b'```')}`."
            " Send one diff for all files.",
            line=text.numbers[more[0].start - 1],
        )
    inside = text.slice(first.start, first.end)
    around = sum(1 for line in text.lines if line.strip()) - 2
    around -= sum(1 for line in inside.lines if line.strip())
    prose = f" and {around} lines of text around it" if around else ""
    detail = f"A Markdown fence{prose} was removed."
    return inside, Repair(RepairKind.FENCE, detail, text.numbers[first.start - 1])


def _fenced_blocks(text: PatchText) -> Iterator[_Fenced]:
    """Yield the fenced blocks up to the first diff outside a fence."""
    lines = text.lines
    at = 0
    while at < len(lines):
        opening = _FENCE.match(lines[at])
        if opening is None:
            if begins_file(lines, at):
                return  # a diff without a fence: later fences are part of its content
            at += 1
            continue
        start = end = at + 1
        has_diff = False
        while end < len(lines) and not _closes(lines[end], opening):
            has_diff = has_diff or lines[end].startswith(b"@@ ") or begins_file(lines, end)
            end += 1
        yield _Fenced(start, end, end < len(lines), has_diff)
        at = end + 1


def _closes(line: bytes, opening: re.Match[bytes]) -> bool:
    """Return whether a line ends a fenced block. A line of a diff does not: it has a mark."""
    indent, mark = opening.groups()
    return line.startswith(indent + mark) and not line.strip().strip(mark[:1])


def remove_mail_head(text: PatchText) -> Mended | None:
    """Remove a mail's head or a commit's message that does not start as git's own do.

    Everything before the first diff belongs to it.
    """
    first = next((line for line in text.lines if line.strip()), b"")
    if not _MAIL_HEAD.match(first):
        return None
    starts = (at for at in range(len(text.lines)) if begins_file(text.lines, at))
    start = next(starts, None)
    if start is None or any(line.startswith(b"@@ -") for line in text.lines[:start]):
        return None
    detail = "The head of a mail or commit before the diff was removed."
    mended = text.slice(start, len(text.lines))
    return mended, Repair(RepairKind.PREAMBLE, detail, text.numbers[0])


TEXT_REPAIRS: tuple[Callable[[PatchText], Mended | None], ...] = (
    remove_byte_order_mark,
    remove_carriage_returns,
    remove_colours,
    remove_fence,
    remove_mail_head,
)
