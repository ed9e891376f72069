"""A patch as text and as what it says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ..domain.changes import Repair
from .errors import PatchMalformedError


@dataclass(frozen=True, slots=True)
class PatchText:
    """A patch's lines without their newlines, and the number that each had when it was sent."""

    lines: list[bytes]
    numbers: Sequence[int]

    @classmethod
    def of(cls, patch: bytes) -> PatchText:
        lines = patch.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return cls(lines, range(1, len(lines) + 1))

    def content(self) -> bytes:
        """What git gets: each line with its newline."""
        return b"".join([line + b"\n" for line in self.lines])

    def slice(self, start: int, end: int) -> PatchText:
        return PatchText(self.lines[start:end], self.numbers[start:end])

    def with_lines(self, lines: list[bytes]) -> PatchText:
        """The same text with each line changed."""
        return PatchText(lines, self.numbers)

    def edited(self, edits: Mapping[int, Iterable[bytes]]) -> PatchText:
        """The text with the lines at some indexes replaced, each by any number of lines."""
        lines: list[bytes] = []
        numbers: list[int] = []
        for at, (line, number) in enumerate(zip(self.lines, self.numbers, strict=True)):
            for each in edits.get(at, (line,)):
                lines.append(each)
                numbers.append(number)
        return PatchText(lines, numbers)


@dataclass(frozen=True, slots=True)
class ScannedHunk:
    """One hunk. `body` holds its lines with their marks and without their newlines."""

    old_start: int
    old_count: int
    new_start: int
    new_count: int
    at: int  # its header's index in the text
    line: int
    body: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """What a patch says about one file.

    `paths` is every path that any header of it names: at least all that git would touch.
    `old_path` is None for a new file, `new_path` for a deleted one.
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
    end: int  # behind its last line


@dataclass(frozen=True, slots=True)
class Proof:
    """A repair that the ids on a file's `index` line can prove right or wrong.

    `refusal` is raised where they prove it wrong, and, if the proof `is_required`, where they
    prove nothing.
    """

    path: bytes
    is_required: bool
    refusal: PatchMalformedError


@dataclass(frozen=True, slots=True)
class ScannedPatch:
    """A patch within the limits, as git gets it: what was mended is in `repairs`."""

    text: PatchText
    files: tuple[ScannedFile, ...]
    hunk_count: int
    insertions: int
    deletions: int
    repairs: tuple[Repair, ...] = ()
    proofs: tuple[Proof, ...] = ()

    def paths(self) -> frozenset[bytes]:
        return frozenset(path for file in self.files for path in file.paths)
