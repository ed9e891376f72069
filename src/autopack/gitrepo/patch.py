"""A patch as text, and as parsed sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..domain.changes import Repair
from .errors import PatchMalformedError


@dataclass(frozen=True, slots=True)
class PatchText:
    """A patch's lines without newlines, and the number of each line in the text that was sent."""

    lines: list[bytes]
    numbers: Sequence[int]

    @classmethod
    def of(cls, patch: bytes) -> PatchText:
        lines = patch.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return cls(lines, range(1, len(lines) + 1))

    def content(self) -> bytes:
        """The bytes for git: each line with its newline."""
        return b"".join([line + b"\n" for line in self.lines])

    def slice(self, start: int, end: int) -> PatchText:
        return PatchText(self.lines[start:end], self.numbers[start:end])

    def with_lines(self, lines: list[bytes]) -> PatchText:
        """Return the same text with each line changed."""
        return PatchText(lines, self.numbers)

    def edited(self, edits: Mapping[int, Iterable[bytes]]) -> PatchText:
        """Return the text with some lines replaced, each by any number of lines."""
        lines: list[bytes] = []
        numbers: list[int] = []
        for at, (line, number) in enumerate(zip(self.lines, self.numbers, strict=True)):
            for each in edits.get(at, (line,)):
                lines.append(each)
                numbers.append(number)
        return PatchText(lines, numbers)


@dataclass(frozen=True, slots=True)
class ScannedHunk:
    """One hunk. `body` has its lines with their marks, without newlines."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    at: int  # its header's index in the text
    line: int
    body: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """The section of a patch about one file.

    `paths` is every path that its headers name: at least all that git would change. `old_path` is
    None for a new file, `new_path` for a deleted one.
    """

    line: int
    paths: tuple[bytes, ...]
    old_path: bytes | None
    new_path: bytes | None
    old_mode: int | None
    new_mode: int | None
    index_old: str | None
    index_new: str | None
    is_copy: bool
    is_binary: bool
    hunks: tuple[ScannedHunk, ...]
    at: int  # its first header line's index in the text
    end: int  # after its last line


@dataclass(frozen=True, slots=True)
class Proof:
    """A repair that the ids on a file's `index` line can confirm or refute.

    `refusal` is raised where they refute it and, if `is_required`, where they confirm nothing.
    """

    path: bytes
    is_required: bool
    refusal: PatchMalformedError


@dataclass(frozen=True, slots=True)
class ScannedPatch:
    """A patch within the limits, as git receives it; `repairs` lists what was repaired."""

    text: PatchText
    files: tuple[ScannedFile, ...]
    hunk_count: int
    insertions: int
    deletions: int
    repairs: tuple[Repair, ...] = ()
    proofs: tuple[Proof, ...] = ()

    def paths(self) -> frozenset[bytes]:
        return frozenset(path for file in self.files for path in file.paths)
