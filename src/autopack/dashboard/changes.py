"""Reads a unified diff of git into files and numbered lines, for the pages."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

MAX_LINES: Final = 600
MAX_FILES: Final = 60
LINE_LENGTH: Final = 400
_HUNK: Final = re.compile(r"@@ -(\d+)(?:,\d+)? \+(\d+)(?:,\d+)? @@")


@dataclass(slots=True)
class Line:
    """A line with its numbers before and after; `kind` is `add`, `del`, `hunk` or nothing."""

    text: str
    kind: str = ""
    old: str = ""
    new: str = ""


@dataclass(slots=True)
class File:
    path: str
    new: bool = False
    added: int = 0
    removed: int = 0
    lines: list[Line] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Changes:
    """The first files and lines of a diff; `left_out` are lines that are not shown."""

    files: list[File]
    file_count: int
    added: int
    removed: int
    left_out: int


def read_changes(diff: bytes) -> Changes:
    """Read a diff as git writes it; its bytes need not be UTF-8."""
    files: list[File] = []
    old = new = shown = left_out = 0
    for text in diff.decode(errors="replace").split("\n"):
        if text.startswith("diff --git "):
            files.append(File(path=text.rpartition(" b/")[2]))
            old = new = 0
            continue
        if not files:
            continue
        file = files[-1]
        if text.startswith("new file mode"):
            file.new = True
        line = None
        if hunk := _HUNK.match(text):
            old, new = int(hunk[1]), int(hunk[2])
            line = Line(text, "hunk")
        elif not old and not new:
            if text.startswith("Binary files"):
                line = Line("a binary file", "hunk")
        elif text.startswith("+"):
            line, file.added = Line(text, "add", new=str(new)), file.added + 1
            new += 1
        elif text.startswith("-"):
            line, file.removed = Line(text, "del", old=str(old)), file.removed + 1
            old += 1
        elif text.startswith(" "):
            line = Line(text, old=str(old), new=str(new))
            old, new = old + 1, new + 1
        if line is not None:
            if shown < MAX_LINES and len(files) <= MAX_FILES:
                line.text = line.text[:LINE_LENGTH]
                file.lines.append(line)
                shown += 1
            else:
                left_out += 1
    return Changes(
        files=files[:MAX_FILES],
        file_count=len(files),
        added=sum(file.added for file in files),
        removed=sum(file.removed for file in files),
        left_out=left_out,
    )
