"""What git would need more than linear time for is refused before git sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from autopack.config import Settings
from autopack.gitrepo import ApplicablePatch, PatchTooLargeError, Repository
from autopack.gitrepo.hunks import FileLines, HunkStatus, find_image, place_hunks
from autopack.gitrepo.patch import PatchText, ScannedHunk
from autopack.gitrepo.scan import scan_patch

if TYPE_CHECKING:
    from tests.gitrepo.conftest import History, OpenRepository

LIMIT = 2_000_000
HUNKS = 600
TEXT = b"".join(b"line %d\n" % number for number in range(3 * HUNKS))
SAME = b"x\n" * 2_000
Shape = Callable[[], tuple[bytes, bytes]]


def hunk(start: int, first: int, changed: bytes = b"new") -> bytes:
    before, old, after = (b"line %d\n" % number for number in range(first, first + 3))
    return b"@@ -%d,3 +%d,3 @@\n %b-%b+%b\n %b" % (start, start, before, old, changed, after)


def in_order() -> tuple[bytes, bytes]:
    return TEXT * 5, b"".join(hunk(3 * n + 1, 3 * n) for n in range(HUNKS))


def displaced() -> tuple[bytes, bytes]:
    return TEXT, b"".join(hunk(3 * (HUNKS - n) + 1, 3 * n) for n in range(HUNKS))


def almost_everywhere() -> tuple[bytes, bytes]:
    return SAME, b"@@ -1,1501 +1,1501 @@\n" + b" x\n" * 1_500 + b"-y\n+z\n"


def copies() -> tuple[bytes, bytes]:
    sections = (b"diff --git a/f b/%d\ncopy from f\ncopy to %d\n" % (n, n) for n in range(100))
    return TEXT, b"".join(sections)


def repeated() -> tuple[bytes, bytes]:
    return TEXT, b"".join(b"--- a/f\n+++ b/f\n" + hunk(3 * n + 1, 3 * n) for n in range(100))


@pytest.mark.integration
@pytest.mark.parametrize("shape", [in_order, displaced, almost_everywhere, copies, repeated])
def test_a_patch_for_which_git_needs_quadratic_time_is_refused_by_the_limit_on_steps(
    shape: Shape, history: History, open_repository: OpenRepository
) -> None:
    content, patch = shape()
    repository = open_repository(history.repo.path, max_patch_steps=LIMIT)
    if not patch.startswith((b"diff", b"---")):
        patch = b"--- a/f\n+++ b/f\n" + patch
    with pytest.raises(PatchTooLargeError) as refused:
        dry_apply(repository, history.commit({"f": content}), patch)
    assert refused.value.extra["limit"] == "max_patch_steps"
    assert "AUTOPACK_MAX_PATCH_STEPS" in refused.value.detail
    assert " f;" in refused.value.detail


@pytest.mark.integration
@pytest.mark.parametrize(
    "new",
    [
        b"".join(
            line + b"!" * (number % 7 == 0) for number, line in enumerate(TEXT.splitlines(True))
        ),
        b"",
        b"another first line\n" + TEXT + SAME,
    ],
    ids=["changed all over", "emptied", "longer"],
)
def test_a_large_patch_with_right_line_numbers_has_linear_cost(
    new: bytes, history: History, open_repository: OpenRepository
) -> None:
    repository = open_repository(history.repo.path, max_patch_steps=LIMIT)
    old, changed = history.commit({"f": TEXT + SAME}), history.commit({"f": new})
    applied = dry_apply(repository, old, history.patch(old, changed))
    assert applied.tree == history.tree(changed)


@pytest.mark.integration
def test_a_hunk_at_its_named_line_is_not_searched_elsewhere(
    history: History, open_repository: OpenRepository
) -> None:
    """180 hunks of 7 lines: looked for all over the file they would cost 320,000 steps more."""
    repository = open_repository(history.repo.path, max_patch_steps=500_000)
    lines = TEXT.splitlines(True)
    new = b"".join(b"!" * (number % 10 == 5) + line for number, line in enumerate(lines))
    old, changed = history.commit({"f": TEXT}), history.commit({"f": new})
    assert dry_apply(repository, old, history.patch(old, changed)).tree == history.tree(changed)


def dry_apply(repository: Repository, head: str, patch: bytes) -> ApplicablePatch:
    return repository.dry_apply(head, patch, lambda changes: None)


class Positions(list[int]):
    """Positions of a line that count how many of them are looked at."""

    looked_at: ClassVar[int] = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        Positions.looked_at += len(found) if isinstance(key, slice) else 1
        return found


@pytest.mark.unit
def test_a_repeated_line_is_compared_only_around_the_hunks_place() -> None:
    lines = (b"x\n",) * 100_000
    positions = Positions(range(len(lines)))
    assert find_image(lines[:20], lines, {b"x\n": positions}, 70_000)[:3] == [
        70_000,
        69_999,
        70_001,
    ]
    assert Positions.looked_at < 300


@pytest.mark.unit
def test_hunks_are_placed_one_at_a_time_so_that_the_first_misfit_can_end_the_search() -> None:
    patch = PatchText.of(b"--- a/f\n+++ b/f\n" + hunk(1, 0) + hunk(4, 3))
    (file,) = scan_patch(patch, Settings(_env_file=None)).files
    read: list[int] = []

    def noted(each: ScannedHunk) -> ScannedHunk:
        read.append(each.line)
        return each

    first = next(place_hunks(map(noted, file.hunks), FileLines([b"x\n"])))
    assert (first.status, len(read)) == (HunkStatus.REFUSED, 1)
