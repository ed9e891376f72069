"""The keywords of a diff, shared by the strict scanner and the repairs: pure functions of lines."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HUNK = re.compile(rb"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
# The first lines of `git format-patch`, `git show` and `git log -p`.
PREFACE = re.compile(rb"(?:From|commit) [0-9a-f]{40}(?:[0-9a-f]{24})?(?: |$)")
# A line that a model wrote instead of the lines that it left out.
LEFT_OUT = re.compile(
    rb"[ \t]*+(?:(?:#|//)[ \t]*+)?(?:\.\.\.|\xe2\x80\xa6)[ \t]*+$|@@ *+\.\.\. *+@@"
)
_VERSION = re.compile(rb"\d++\.\d[\w.() -]*+$")
EXTENDED = (
    b"old mode ",
    b"new mode ",
    b"deleted file mode ",
    b"new file mode ",
    b"copy from ",
    b"copy to ",
    b"rename from ",
    b"rename to ",
    b"similarity index ",
    b"dissimilarity index ",
    b"index ",
)

Lines = Sequence[bytes]


def extended_word(line: bytes) -> bytes | None:
    """Return the keyword of an extended header line, if this is one."""
    return next((word for word in EXTENDED if line.startswith(word)), None)


def begins_traditional(lines: Lines, at: int) -> bool:
    """Return whether a pair of `---` and `+++` lines, which need no `diff --git`, starts here."""
    return (
        lines[at].startswith(b"--- ") and at + 1 < len(lines) and lines[at + 1].startswith(b"+++ ")
    )


def begins_file(lines: Lines, at: int) -> bool:
    return lines[at].startswith(b"diff --git ") or begins_traditional(lines, at)


def is_signature(lines: Lines, at: int) -> bool:
    """Return whether the signature of `git format-patch` starts here."""
    return (
        lines[at] in (b"-- ", b"--")
        and at + 1 < len(lines)
        and _VERSION.match(lines[at + 1]) is not None
    )


def is_no_newline(line: bytes) -> bool:
    """Return whether this is git's "no newline at end of file" line, in any language."""
    return line.startswith(b"\\ ") and len(line) >= 11


@dataclass(frozen=True, slots=True)
class Consumed:
    """A hunk's lines by its header's counts; `old_left` and `new_left` are missing or surplus."""

    end: int
    old_left: int
    new_left: int
    context: int

    @property
    def is_whole(self) -> bool:
        return not (self.old_left or self.new_left)


def consume(lines: Lines, at: int, old_count: int, new_count: int) -> Consumed:
    """Read as many lines of a hunk as its header declares."""
    old_left, new_left, context = old_count, new_count, 0
    try:
        while old_left > 0 or new_left > 0:
            line = lines[at]
            mark = line[:1]
            if mark == b" " or not mark:
                old_left -= 1
                new_left -= 1
                context += 1
            elif mark == b"+":
                new_left -= 1
            elif mark == b"-":
                old_left -= 1
            elif not (mark == b"\\" and is_no_newline(line)):
                break
            at += 1
    except IndexError:
        pass  # the patch ends inside the hunk
    if at < len(lines) and is_no_newline(lines[at]):
        at += 1
    return Consumed(at, old_left, new_left, context)


def goes_on(lines: Lines, at: int) -> bool:
    """Return whether more lines of a hunk follow after the lines that its header declares.

    Blank lines alone do not count: many patches that went through a chat end with some.
    """
    if at >= len(lines) or is_signature(lines, at) or begins_traditional(lines, at):
        return False
    return lines[at][:1] in (b" ", b"+", b"-", b"\\")


@dataclass(frozen=True, slots=True)
class Counted:
    """A hunk's lines up to its only possible end, independent of what its header declares."""

    end: int
    old: int
    new: int


def count_to_end(lines: Lines, at: int) -> Counted:
    """Count a hunk's lines; blank lines count only if other lines of the hunk follow."""
    found = {b" ": 0, b"-": 0, b"+": 0, b"\\": 0}
    blank = 0
    end = at
    while at < len(lines):
        mark = lines[at][:1]
        if not mark:
            blank += 1
        elif mark not in found or is_signature(lines, at) or begins_traditional(lines, at):
            break
        else:
            found[b" "] += blank
            found[mark] += 1
            blank = 0
            end = at + 1
        at += 1
    return Counted(end, found[b" "] + found[b"-"], found[b" "] + found[b"+"])
