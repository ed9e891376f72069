"""Where a hunk matches in a file of the head: pure functions, without git.

git only reports that a patch does not apply. This module finds for each hunk whether it applies, is
there already, or else which lines are at its place.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from .grammar import LEFT_OUT
from .patch import ScannedHunk

# Lines like `}` are everywhere and do not identify a place; comparing all of them would make the
# search quadratic.
_MAX_CANDIDATES = 100
_COMMON_LINE = 50
_MAX_PLACES_NAMED = 5
_REACH = 20  # lines by which an edit may have moved parts of a hunk apart


class HunkStatus(StrEnum):
    APPLIED = "applied"  # applies
    ALREADY_APPLIED = "already_applied"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class HunkImages:
    """A hunk's lines before and after, each with its newline unless the file ends without one."""

    old: tuple[bytes, ...]
    new: tuple[bytes, ...]
    leading: int  # lines of context before the first change
    must_begin: bool  # git applies it at the file's first line only
    must_end: bool  # git applies it at the file's last line only


@dataclass(frozen=True, slots=True)
class HunkPlace:
    """The place of a hunk in a file: lines `start` to `end`, counted from 0, without `end`.

    For a refused hunk, the lines that are most like its old ones; None where there are none.
    """

    status: HunkStatus
    start: int | None = None
    end: int | None = None
    reason: str | None = None


class FileLines:
    """A file's lines, and the positions of each distinct line."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.lines = tuple(lines)

    @cached_property
    def _exact(self) -> dict[bytes, list[int]]:
        return _index(self.lines)

    @cached_property
    def _loose_lines(self) -> tuple[bytes, ...]:
        return tuple(map(_without_whitespace, self.lines))

    @cached_property
    def _loose(self) -> dict[bytes, list[int]]:
        return _index(self._loose_lines)

    def find(self, image: Sequence[bytes], near: int) -> list[int]:
        """Return where exactly these lines are, the nearest first."""
        return find_image(tuple(image), self.lines, self._exact, near)

    def only_place(self, image: Sequence[bytes]) -> int | None:
        """Return where exactly these lines are, if the bounded search finds only one place."""
        rarest = min((len(self._exact.get(line, ())) for line in image), default=0)
        places = self.find(image, 0) if rarest < _MAX_CANDIDATES else []
        return places[0] if len(places) == 1 else None

    def find_loosely(self, image: Sequence[bytes], near: int) -> list[int]:
        """Return where these lines are, ignoring white space."""
        loose = tuple(map(_without_whitespace, image))
        return find_image(loose, self._loose_lines, self._loose, near)

    def find_traces(self, image: Sequence[bytes], near: int) -> tuple[int, int] | None:
        """Return the place where most rare lines of an image match at the same offset."""
        votes: Counter[int] = Counter()
        for offset, line in enumerate(image):
            positions = self._exact.get(line, ())
            if line.strip() and len(positions) <= _COMMON_LINE:
                votes.update(position - offset for position in positions)
        if not votes:
            return None
        best = max(votes, key=lambda start: (votes[start], -abs(start - near)))
        matched = [
            (offset, at)
            for offset, line in enumerate(image)
            if line.strip() and (at := self._nearest(line, best + offset)) is not None
        ]
        first, last = matched[0][0], matched[-1][0]
        start = min(at for _, at in matched) - first
        end = max(at for _, at in matched) + len(image) - last
        return max(start, 0), min(end, len(self.lines))

    def _nearest(self, line: bytes, near: int) -> int | None:
        positions = self._exact.get(line, [])
        right = bisect_left(positions, near)
        at = min(
            positions[max(right - 1, 0) : right + 1], key=lambda at: abs(at - near), default=-1
        )
        return at if at >= 0 and abs(at - near) <= _REACH else None


def split_lines(content: bytes) -> list[bytes]:
    """Split a file as git does: at LF only, and each line keeps its LF."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    last = lines.pop().removesuffix(b"\n")
    return [*lines, last] if last else lines


def images(hunk: ScannedHunk) -> HunkImages:
    old: list[bytes] = []
    new: list[bytes] = []
    leading = trailing = 0
    has_change = False
    sides: tuple[list[bytes], ...] = ()
    for line in hunk.body:
        mark = line[:1]
        if mark == b"\\":
            for side in sides:
                side[-1] = side[-1].removesuffix(b"\n")
            continue
        sides = {b"-": (old,), b"+": (new,)}.get(mark, (old, new))
        for side in sides:
            side.append(line[1:] + b"\n")
        is_context = len(sides) == 2
        has_change = has_change or not is_context
        leading += not has_change
        trailing = trailing + 1 if is_context else 0
    return HunkImages(
        old=tuple(old),
        new=tuple(new),
        leading=leading,
        must_begin=hunk.old_start <= 1,
        must_end=trailing == 0,
    )


def with_line_ends_of(image: HunkImages, now: Sequence[bytes]) -> HunkImages:
    """Return a hunk with the line ends of these lines of the file."""
    is_crlf = _is_crlf(now)
    if _is_crlf(image.old) == is_crlf:
        return image

    def fit(line: bytes) -> bytes:
        bare = line.removesuffix(b"\n").removesuffix(b"\r")
        return bare + (b"\r\n" if is_crlf else b"\n") if line.endswith(b"\n") else line

    return replace(image, old=tuple(map(fit, image.old)), new=tuple(map(fit, image.new)))


def place_hunks(hunks: Iterable[ScannedHunk], file: FileLines) -> Iterator[HunkPlace]:
    """Yield the place of each hunk of a file, searched first at the offset of the hunk before.

    It is a generator, so that a caller that needs all hunks to apply can stop at the first that
    does not.
    """
    drift = 0
    taken = _Taken()
    for hunk in hunks:
        expected = max(hunk.old_start - 1, 0) + drift
        place = _place(images(hunk), file, expected, taken)
        if place.start is not None and place.end is not None:
            if place.status is not HunkStatus.REFUSED:
                taken.add(place.start, place.end)
                drift = place.start - max(hunk.old_start - 1, 0)
            if place.status is HunkStatus.ALREADY_APPLIED:
                drift += hunk.new_count - hunk.old_count
        yield place


class _Taken:
    """The parts of a file that hunks have taken; they do not overlap."""

    def __init__(self) -> None:
        self._parts: list[tuple[int, int]] = []

    def add(self, start: int, end: int) -> None:
        insort(self._parts, (start, end))

    def leaves(self, start: int, length: int) -> bool:
        """Return whether lines are free. Only the neighbours can overlap them."""
        right = bisect_left(self._parts, (start, start))
        neighbours = self._parts[max(right - 1, 0) : right + 1]
        return all(start + length <= begin or end <= start for begin, end in neighbours)


def _place(image: HunkImages, file: FileLines, expected: int, taken: _Taken) -> HunkPlace:
    old, new, count = image.old, image.new, len(image.old)
    found = [start for start in file.find(old, expected) if taken.leaves(start, count)]
    for start in found:
        begins_right = start == 0 or not image.must_begin
        if begins_right and (start + count == len(file.lines) or not image.must_end):
            return HunkPlace(HunkStatus.APPLIED, start, start + count)
    for start in file.find(new, expected):
        if taken.leaves(start, len(new)):
            return HunkPlace(HunkStatus.ALREADY_APPLIED, start, start + len(new))
    if found and old:
        return HunkPlace(
            HunkStatus.REFUSED, found[0], found[0] + count, _elsewhere_reason(image, found)
        )
    for start in file.find_loosely(old, expected):
        return HunkPlace(
            HunkStatus.REFUSED,
            start,
            start + count,
            _whitespace_reason(old, file.lines[start : start + count]),
        )
    traces = file.find_traces(old, expected)
    if traces is None:
        return HunkPlace(HunkStatus.REFUSED, reason="None of the hunk's old lines are in the file.")
    now = file.lines[traces[0] : traces[1]]
    present = set(now)
    missing = next((line for line in old if line not in present), None)
    reason = "The lines of the hunk are in another order or number now."
    if missing is not None and LEFT_OUT.match(missing[:-1]):
        reason = f"{_quoted(missing)} stands for lines that were left out; write each of them."
    elif missing is not None:
        reason = f"The old line {_quoted(missing)} is not here any more."
    return HunkPlace(HunkStatus.REFUSED, *traces, reason)


def _elsewhere_reason(image: HunkImages, found: Sequence[int]) -> str:
    """Return why a hunk whose old lines are in the file does not apply there."""
    lines = ", ".join(str(start + 1) for start in sorted(found[:_MAX_PLACES_NAMED]))
    more = " and more" if len(found) > _MAX_PLACES_NAMED else ""
    where = f"its lines are at line {lines}{more} instead"
    if image.must_begin and image.leading:
        return f"The hunk names line 1, so it only applies at the beginning of the file; {where}."
    if image.must_begin and not image.must_end:
        side, end = "before", "beginning"
    else:
        side, end = "after", "end"
    return (
        f"The hunk has no line of context {side} its change, so it only applies at the {end} of the"
        f" file; {where}."
    )


def _whitespace_reason(old: Sequence[bytes], now: Sequence[bytes]) -> str:
    if all(
        left.rstrip(b"\r\n") == right.rstrip(b"\r\n") for left, right in zip(old, now, strict=True)
    ):
        ends = "CRLF" if _is_crlf(now) else "LF, or no newline at its end"
        return f"The same lines are here with other line ends: the file has {ends}."
    return "The same lines are here, with other whitespace."


def _is_crlf(lines: Sequence[bytes]) -> bool:
    return sum(line.endswith(b"\r\n") for line in lines) * 2 > len(lines)


def _quoted(line: bytes) -> str:
    text = line.rstrip(b"\n").decode(errors="backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:80]}…")


def _index(lines: Sequence[bytes]) -> dict[bytes, list[int]]:
    positions: dict[bytes, list[int]] = {}
    for at, line in enumerate(lines):
        positions.setdefault(line, []).append(at)
    return positions


def find_image(
    image: tuple[bytes, ...],
    lines: tuple[bytes, ...],
    positions: dict[bytes, list[int]],
    near: int,
) -> list[int]:
    """Return where an image is, by its rarest line; an empty image matches only an empty file."""
    if not image:
        return [0] if not lines else []
    rarest = min(range(len(image)), key=lambda offset: len(positions.get(image[offset], ())))
    starts = _nearest(positions.get(image[rarest], ()), near + rarest, rarest)
    return [at for at in starts if at >= 0 and lines[at : at + len(image)] == image]


def _nearest(positions: Sequence[int], near: int, offset: int) -> list[int]:
    """Yield the starts for these sorted positions of a line at an offset, the nearest first.

    Only a bounded number of positions around the place is used, as one line may repeat thousands of
    times in a file.
    """
    middle = bisect_left(positions, near)
    around = positions[max(middle - _MAX_CANDIDATES, 0) : middle + _MAX_CANDIDATES]
    nearest = sorted(around, key=lambda at: abs(at - near))[:_MAX_CANDIDATES]
    return [at - offset for at in nearest]


def _without_whitespace(line: bytes) -> bytes:
    return b"".join(line.split())
