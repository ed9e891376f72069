"""Count the steps that `git apply` would need, before it runs.

git needs linear time for most patches and quadratic time for some: each hunk copies the file once
more, a hunk at a wrong line is searched in the whole file, and each copy of a file is written
again. So a patch within all other limits can take minutes. The count is an upper bound. It is exact
enough that no patch of a real commit comes near the limit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..config import Settings
from .errors import PatchTooLargeError
from .head import HeadFiles
from .hunks import images, split_lines
from .names import show
from .patch import ScannedFile, ScannedHunk

# Steps of about one nanosecond: a line compared, some bytes copied, part of a byte compressed.
_COPIED_BYTES_A_STEP = 8
_STEPS_A_WRITTEN_BYTE = 8
# A file with fewer lines in the patch costs little, however large it is.
_FEW_LINES = 1_000


@dataclass(slots=True)
class _Work:
    """The sections of a patch that change one file of the branch."""

    hunks: list[ScannedHunk] = field(default_factory=list)
    sections: int = 0

    def is_small(self) -> bool:
        return self.sections == 1 and sum(len(hunk.body) for hunk in self.hunks) <= _FEW_LINES


def require_few_steps(files: Iterable[ScannedFile], head: HeadFiles, limits: Settings) -> None:
    """Refuse a patch that git would not apply in about linear time.

    Raises PatchTooLargeError (`max_patch_steps`) naming the file with the most steps.
    """
    steps = {
        path: _steps(work, content, limits.max_patch_steps)
        for path, work in _by_path(files).items()
        if not work.is_small() and (content := head.read(path)) is not None
    }
    total = sum(steps.values())
    if total > limits.max_patch_steps:
        worst = max(steps, key=lambda path: steps[path])
        raise PatchTooLargeError(
            f"To apply the patch would take git about {total:,} steps, most of them for"
            f" {show(worst)}; at most {limits.max_patch_steps:,} are accepted"
            " (AUTOPACK_MAX_PATCH_STEPS). Many hunks in a large file cost that: send it as one"
            " hunk, or in several patches.",
            limit="max_patch_steps",
            most=limits.max_patch_steps,
            figure=total,
        )


def _by_path(files: Iterable[ScannedFile]) -> dict[bytes, _Work]:
    works: defaultdict[bytes, _Work] = defaultdict(_Work)
    for file in files:
        if file.old_path is not None:
            work = works[file.old_path]
            work.sections += 1
            work.hunks += file.hunks
    return works


def _steps(work: _Work, content: bytes, most: int) -> int:
    """Return the steps for one file; stops counting above the limit."""
    steps = (work.sections - 1) * len(content) * _STEPS_A_WRITTEN_BYTE
    steps += len(work.hunks) * len(content) // _COPIED_BYTES_A_STEP
    return steps if steps > most else steps + _searched(work.hunks, content)


def _searched(hunks: Iterable[ScannedHunk], content: bytes) -> int:
    """Return how many lines git compares to find each hunk's place.

    git starts at the line that the hunk names. If the hunk is not there, git compares at every line
    of the file, and continues only where the hunk's first line matches.
    """
    lines = split_lines(content)
    counts = Counter(lines)
    steps = drift = 0
    for hunk in hunks:
        old = images(hunk).old
        start = max(hunk.old_start - 1, 0)
        steps += len(old)
        is_where_it_says = max(hunk.new_start - 1, 0) == start + drift and (
            lines[start : start + len(old)] == list(old)
        )
        if not is_where_it_says:
            steps += len(lines) + (counts[old[0]] * len(old) if old else 0)
        drift += hunk.new_count - hunk.old_count
    return steps
