"""The place of a hunk in a file that has changed: tables, without git."""

from __future__ import annotations

import time

import pytest

from autopack.config import Settings
from autopack.gitrepo.hunks import FileLines, HunkPlace, HunkStatus, place_hunks, split_lines
from autopack.gitrepo.patch import PatchText, ScannedHunk
from autopack.gitrepo.scan import scan_patch

pytestmark = pytest.mark.unit
# No measurement: a second is enough, coverage makes it three, and what is not linear takes hours.
HANGING_SECONDS = 30

LIMITS = Settings(_env_file=None)


def hunks(text: str) -> tuple[ScannedHunk, ...]:
    patch = PatchText.of(b"--- a/x\n+++ b/x\n" + text.encode())
    return scan_patch(patch, LIMITS).files[0].hunks


def place(text: str, content: str) -> list[HunkPlace]:
    return list(place_hunks(hunks(text), FileLines(split_lines(content.encode()))))


def lines(*words: str) -> str:
    return "".join(f"{word}\n" for word in words)


def test_after_a_hunk_that_is_there_already_the_next_is_expected_as_far_down_as_it_pushed() -> None:
    """The second hunk fits twice, and the nearer place is right: 3 lines below the patch's own."""
    first = "@@ -1,1 +1,4 @@\n a\n+1\n+2\n+3\n"
    second = "@@ -6,3 +9,3 @@\n k\n-x\n+y\n e\n"
    content = lines(*"a123kxebkxef")
    there, next_one = place(first + second, content)
    assert there.status is HunkStatus.ALREADY_APPLIED
    assert (next_one.status, next_one.start) == (HunkStatus.APPLIED, 8)


MIDDLE = "@@ -3,3 +3,3 @@\n c\n-d\n+D\n e\n"


@pytest.mark.parametrize(
    ("text", "content", "status", "start", "end"),
    [
        (MIDDLE, lines(*"abcdef"), HunkStatus.APPLIED, 2, 5),
        (MIDDLE, lines("new", "new", *"abcdef"), HunkStatus.APPLIED, 4, 7),
        (MIDDLE, lines(*"cdecde"), HunkStatus.APPLIED, 3, 6),
        (MIDDLE, lines(*"abcDef"), HunkStatus.ALREADY_APPLIED, 2, 5),
        (MIDDLE, lines("new", *"abcDef"), HunkStatus.ALREADY_APPLIED, 3, 6),
        # What was there and what will be there both stand in the file: it can still be applied.
        (MIDDLE, lines(*"abcdefcDe"), HunkStatus.APPLIED, 2, 5),
        (MIDDLE, lines(*"abcXef"), HunkStatus.REFUSED, 2, 5),
        (MIDDLE, lines(*"abcXYZef"), HunkStatus.REFUSED, 2, 7),
        (MIDDLE, lines(*"abef"), HunkStatus.REFUSED, 0, 3),
        (MIDDLE, lines(*"uvw"), HunkStatus.REFUSED, None, None),
        (MIDDLE, "", HunkStatus.REFUSED, None, None),
        # Anchors, as git has them
        ("@@ -1,2 +1,3 @@\n+new\n a\n b\n", lines(*"abc"), HunkStatus.APPLIED, 0, 2),
        ("@@ -1,2 +1,3 @@\n+new\n a\n b\n", lines(*"xabc"), HunkStatus.REFUSED, 1, 3),
        ("@@ -2,2 +2,3 @@\n b\n c\n+new\n", lines(*"abc"), HunkStatus.APPLIED, 1, 3),
        ("@@ -2,2 +2,3 @@\n b\n c\n+new\n", lines(*"abcd"), HunkStatus.REFUSED, 1, 3),
        ("@@ -2,2 +2,3 @@\n b\n c\n+new\n", lines(*"abc", "new"), HunkStatus.ALREADY_APPLIED, 1, 4),
        # The last newline is part of the last line
        (
            "@@ -2,2 +2,2 @@\n b\n-c\n\\ No newline at end of file\n+C\n",
            "a\nb\nc",
            HunkStatus.APPLIED,
            1,
            3,
        ),
        (
            "@@ -2,2 +2,2 @@\n b\n-c\n\\ No newline at end of file\n+C\n",
            "a\nb\nc\n",
            HunkStatus.REFUSED,
            1,
            3,
        ),
        # Whitespace
        (MIDDLE, lines(*"abcdef").replace("\n", "\r\n"), HunkStatus.REFUSED, 2, 5),
        (MIDDLE, lines("a", "b", "  c", "\td", "e"), HunkStatus.REFUSED, 2, 5),
        # Blank lines tell no place
        ("@@ -2,3 +2,3 @@\n \n-d\n+D\n \n", lines("", "", "", "x"), HunkStatus.REFUSED, None, None),
    ],
)
def test_a_hunk_is_placed(
    text: str, content: str, status: HunkStatus, start: int | None, end: int | None
) -> None:
    (found,) = place(text, content)
    assert (found.status, found.start, found.end) == (status, start, end)
    assert (found.reason is None) == (status is not HunkStatus.REFUSED)


@pytest.mark.parametrize(
    ("text", "content", "says"),
    [
        (MIDDLE, lines(*"abcdef").replace("\n", "\r\n"), "the file has CRLF"),
        (MIDDLE.replace("\n", "\r\n").replace("@\r", "@"), lines(*"abcdef"), "the file has LF"),
        (MIDDLE, lines("c", " d", "e"), "with other whitespace"),
        (MIDDLE, lines(*"abcXef"), "old line 'd' is not here"),
        (MIDDLE, lines(*"abdcef"), "another order"),
        (MIDDLE, lines(*"uvw"), "None of the hunk's old lines"),
        ("@@ -2,2 +2,3 @@\n b\n c\n+new\n", lines(*"abcd"), "after its change"),
        ("@@ -1,2 +1,3 @@\n+new\n a\n b\n", lines(*"xabc"), "before its change"),
    ],
)
def test_a_refusal_says_why(text: str, content: str, says: str) -> None:
    (found,) = place(text, content)
    assert says in (found.reason or "")


def test_later_hunks_are_expected_as_far_off_as_earlier_ones() -> None:
    text = "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -11,3 +11,3 @@\n }\n-x\n+y\n }\n"
    block = ["}", "x", "}"]
    content = lines(*["new"] * 5, "a", "b", "c", *["-"] * 2, *block, *["-"] * 2, *block)
    # The first begins its file no more, so it is refused, and tells nothing about the second.
    first, second = place(text, content)
    assert first.status is HunkStatus.REFUSED
    assert second.start == 10
    moved = text.replace("@@ -1,3 +1,3 @@\n a", "@@ -1,4 +1,4 @@\n new\n a").replace("-1,4", "-2,4")
    first, second = place(moved, content)
    assert (first.status, first.start) == (HunkStatus.APPLIED, 4)
    assert (second.status, second.start) == (HunkStatus.APPLIED, 15)


def test_two_equal_hunks_take_two_places() -> None:
    text = "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n@@ -4,3 +4,3 @@\n a\n-b\n+B\n c\n"
    first, second = place(text, lines(*"abcabc"))
    assert (first.start, second.start) == (0, 3)


def test_lines_within_an_earlier_hunk_are_not_taken_by_a_later_one() -> None:
    """They are the nearest that fit, and are spoken for: the hunk's place is further down."""
    text = "@@ -1,5 +1,5 @@\n x\n a\n y\n-q\n+Q\n r\n@@ -6,2 +6,2 @@\n-a\n+A\n y\n"
    first, second = place(text, lines(*"xayqrstuvwxay"))
    assert (first.status, first.start, first.end) == (HunkStatus.APPLIED, 0, 5)
    assert (second.status, second.start, second.end) == (HunkStatus.APPLIED, 11, 13)


def test_a_hunk_that_is_there_already_and_one_that_applies_are_told_apart() -> None:
    text = MIDDLE + "@@ -13,3 +13,3 @@\n m\n-n\n+N\n o\n"
    statuses = [found.status for found in place(text, lines(*"abcDefghijklmnopq"))]
    assert statuses == [HunkStatus.ALREADY_APPLIED, HunkStatus.APPLIED]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"a", [b"a"]),
        (b"a\n", [b"a\n"]),
        (b"a\r\nb\rc\x0cd\n\n", [b"a\r\n", b"b\rc\x0cd\n", b"\n"]),
    ],
)
def test_lines_are_split_at_lf_alone(content: bytes, expected: list[bytes]) -> None:
    assert split_lines(content) == expected


@pytest.mark.parametrize(
    ("old", "content"),
    [
        (["same"] * 999, ["same"] * 100_000),
        (["same"] * 999 + ["other"], ["same"] * 100_000),
        ([f"{n % 7}" for n in range(1000)], [f"{n % 7}" for n in range(100_000)]),
        ([f"{n}" for n in range(1000)], [f"{n * 2 % 3001}" for n in range(100_000)]),
    ],
)
def test_repetitive_files_do_not_hang(old: list[str], content: list[str]) -> None:
    body = "".join(f" {word}\n" for word in old)
    text = f"@@ -7,{len(old)} +7,{len(old) + 1} @@\n{body}+new\n"
    file = FileLines(split_lines(lines(*content).encode()))
    started = time.process_time()
    list(place_hunks(hunks(text) * 20, file))
    assert time.process_time() - started < HANGING_SECONDS
