"""Name the format that was sent instead of a diff, so that its author learns what to send."""

from __future__ import annotations

import re

from ..domain.changes import DIFF_COMMAND
from .errors import PatchMalformedError
from .grammar import begins_file
from .patch import PatchText

_FORMATS = (
    (
        re.compile(rb"\*\*\* (?:Begin Patch|(?:Update|Add|Delete) File: )"),
        "This is the `*** Begin Patch` format of the `apply_patch` tool, not a diff",
    ),
    (
        re.compile(rb"<{5,9} ?(?:SEARCH|ORIGINAL)|>{5,9} ?(?:REPLACE|UPDATED)"),
        "This is a SEARCH/REPLACE block, not a diff",
    ),
    (
        re.compile(rb"\*{15}$|\*\*\* \d+(?:,\d+)? \*{4}$"),
        "This is a context diff, which git does not apply",
    ),
    (
        re.compile(rb"\d+(?:,\d+)?[acd]\d+(?:,\d+)?$"),
        "This is a diff without context (`diff` without `-u`), which git does not apply",
    ),
    (
        re.compile(rb"(?:diff --git|--- ).{0,2000}?\\n(?:---|\+\+\+|@@|index) "),
        "Its line ends are written as `\\n`, so that it is a single line: send real newlines",
    ),
)


def refuse_other_format(text: PatchText) -> None:
    """Raise PatchMalformedError for a known format that is not a diff.

    Only if nothing in the text starts a diff, as the content of a diff may look like any format.
    """
    lines = text.lines
    if any(
        begins_file(lines, at) and not _FORMATS[-1][0].match(lines[at]) for at in range(len(lines))
    ):
        return
    for line, number in zip(lines, text.numbers, strict=True):
        for pattern, what in _FORMATS:
            if pattern.match(line):
                raise PatchMalformedError(
                    f"{what}. Edit the files, and send the output of `{DIFF_COMMAND}`.",
                    line=number,
                )
