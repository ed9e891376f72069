"""What a patch changes, as git sees it: the difference of two trees, never the patch's text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MODE_ABSENT = 0
MODE_FILE = 0o100644
MODE_EXECUTABLE = 0o100755
MODE_LINK = 0o120000
MODE_SUBMODULE = 0o160000

# Options that keep the caller's settings (an external differ, colours, `diff.noprefix`,
# `diff.context`) from changing the patch. Every prompt and message uses this command.
DIFF_COMMAND = "git diff --no-ext-diff --no-color --no-textconv --src-prefix=a/ --dst-prefix=b/ -U3"


def printable_path(path: str) -> str:
    """Return a path of any bytes as text."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


@dataclass(frozen=True, slots=True)
class FileChange:
    """One path before and after. A rename is a deletion and an addition.

    `path` contains bytes that are not UTF-8 as surrogate escapes. A side that does not exist has
    mode 0 and no object.
    """

    path: str
    old_mode: int
    new_mode: int
    old_oid: str | None
    new_oid: str | None

    @property
    def printable_path(self) -> str:
        return printable_path(self.path)


@dataclass(frozen=True, slots=True)
class Violation:
    """Why the path policy refuses a change: the file, the rule's stable name, and one sentence."""

    path: str
    rule: str
    detail: str
    line: int | None = None


class RepairKind(StrEnum):
    """What was repaired in a patch before git applied it; docs/patches.md has a line for each."""

    FINAL_NEWLINE = "final_newline"
    BYTE_ORDER_MARK = "byte_order_mark"
    LINE_ENDS = "line_ends"
    COLOURS = "colours"
    FENCE = "fence"
    PREAMBLE = "preamble"
    PATHS = "paths"
    FILE_HEADER = "file_header"
    HUNK_COUNTS = "hunk_counts"
    TRIMMED_CONTEXT = "trimmed_context"
    LINE_NUMBER = "line_number"
    LANDED_PART = "landed_part"


@dataclass(frozen=True, slots=True)
class Repair:
    """One repair; `line` is the first line that it concerns, in the patch as it was sent."""

    kind: RepairKind
    detail: str
    line: int | None = None
