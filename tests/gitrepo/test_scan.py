"""What the scanner takes, what it refuses, and what it says about it."""

from __future__ import annotations

import base64
import subprocess
import time
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from autopack.config import Settings
from autopack.gitrepo.errors import PatchMalformedError, PatchTooLargeError
from autopack.gitrepo.patch import PatchText, ScannedFile, ScannedPatch
from autopack.gitrepo.scan import scan_patch

pytestmark = pytest.mark.unit
# No measurement: a second is enough, coverage makes it three, and what is not linear takes hours.
HANGING_SECONDS = 30

LIMITS = Settings(_env_file=None)
HEADER = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n"
PATCH = HEADER + b"@@ -1,3 +1,4 @@\n a\n-b\n+c\n+d\n e\n"


def scan(patch: bytes) -> ScannedPatch:
    return scan_patch(PatchText.of(patch), LIMITS)


def only_file(patch: bytes) -> ScannedFile:
    (file,) = scan(patch).files
    return file


def refusal(patch: bytes, limits: Settings = LIMITS) -> PatchMalformedError:
    with pytest.raises(PatchMalformedError) as caught:
        scan_patch(PatchText.of(patch), limits)
    return caught.value


def binary(content: bytes, *, declared: int | None = None, method: bytes = b"literal") -> bytes:
    packed = zlib.compress(content)
    rows = []
    for start in range(0, len(packed), 52):
        row = packed[start : start + 52]
        length = bytes([64 + len(row) if len(row) <= 26 else 70 + len(row)])
        rows.append(length + base64.b85encode(row + bytes(-len(row) % 4)) + b"\n")
    size = len(content) if declared is None else declared
    return method + b" %d\n" % size + b"".join(rows) + b"\n"


def binary_patch(*hunks: bytes) -> bytes:
    return (
        b"diff --git a/x b/x\nindex " + b"1" * 40 + b".." + b"2" * 40 + b" 100644\n"
        b"GIT binary patch\n" + b"".join(hunks)
    )


def test_a_plain_diff_is_counted_and_passed_on_unchanged() -> None:
    scanned = scan(PATCH)
    (file,) = scanned.files
    (hunk,) = file.hunks
    assert scanned.text.content() == PATCH
    assert (scanned.hunk_count, scanned.insertions, scanned.deletions) == (1, 2, 1)
    assert (file.paths, file.old_path, file.new_path) == ((b"x",), b"x", b"x")
    assert (hunk.old_start, hunk.old_count, hunk.new_start, hunk.new_count) == (1, 3, 1, 4)
    assert hunk.line == 4
    assert hunk.body == (b" a", b"-b", b"+c", b"+d", b" e")


@pytest.mark.parametrize(
    ("patch", "old", "new", "paths"),
    [
        (
            b"diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n"
            b"@@ -0,0 +1 @@\n+x\n",
            None,
            b"n",
            {b"n"},
        ),
        (
            b"diff --git a/n b/n\ndeleted file mode 100644\n--- a/n\n+++ /dev/null\n"
            b"@@ -1 +0,0 @@\n-x\n",
            b"n",
            None,
            {b"n"},
        ),
        (b"diff --git a/n b/n\nnew file mode 100644\n", None, b"n", {b"n"}),
        (b"diff --git a/a b b/a b\nold mode 100644\nnew mode 100755\n", b"a b", b"a b", {b"a b"}),
        (
            b"diff --git a/x b/y b b/x\nsimilarity index 100%\nrename from x b/y b\nrename to x\n",
            b"x b/y b",
            b"x",
            {b"x b/y b", b"x"},
        ),
        (b"diff --git a/s b/t\ncopy from s\ncopy to t\n", b"s", b"t", {b"s", b"t"}),
        (
            b'diff --git "a/t\\tb" "b/t\\tb"\n--- "a/t\\tb"\n+++ "b/t\\tb"\n@@ -1 +1 @@\n-x\n+y\n',
            b"t\tb",
            b"t\tb",
            {b"t\tb"},
        ),
        (
            b'diff --git "a/\\303\\244\\"\\\\" "b/\\303\\244\\"\\\\"\n'
            b"old mode 100644\nnew mode 100755\n",
            b'\xc3\xa4"\\',
            b'\xc3\xa4"\\',
            {b'\xc3\xa4"\\'},
        ),
        (b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-x\n+y\n", b"x", b"x", {b"x"}),
        (b"--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+y\n", None, b"x", {b"x"}),
        (
            b"--- a/x\t2026-01-01 10:00:00.000000000 +0100\n+++ b/x\t2026-01-01 10:00:00 +0100\n"
            b"@@ -1 +1 @@\n-x\n+y\n",
            b"x",
            b"x",
            {b"x"},
        ),
        (
            b"diff --git i/x w/x\n--- i/x\n+++ w/x\n@@ -1 +1 @@\n-x\n+y\n",
            b"x",
            b"x",
            {b"x"},
        ),
        (
            b"diff --git a/o b/n\n--- a/o\n+++ b/n\n@@ -1 +1 @@\n-x\n+y\n",
            b"o",
            b"n",
            {b"o", b"n"},
        ),
    ],
)
def test_the_paths_are_those_of_every_header(
    patch: bytes, old: bytes | None, new: bytes | None, paths: set[bytes]
) -> None:
    file = only_file(patch)
    assert (file.old_path, file.new_path, set(file.paths)) == (old, new, paths)


@pytest.mark.parametrize(
    "around",
    [
        b"%b",
        b"\n\n%b\n\n\n",
        b"From " + b"a" * 40 + b" Mon Sep 17 00:00:00 2001\nFrom: A <a@b>\nSubject: [PATCH] x\n\n"
        b"Why.\n---\n x | 3 ++-\n 1 file changed\n\n%b-- \n2.39.5 (Apple Git-154)\n\n",
        b"commit " + b"a" * 40 + b" (HEAD -> main)\nAuthor: A <a@b>\n\n    Why\n\n%b",
        b"Index: x\n" + b"=" * 67 + b"\n%b",
        b"diff -ru a/y b/y\n%b",
    ],
)
def test_text_that_git_prints_around_a_diff_is_accepted(around: bytes) -> None:
    assert [file.paths for file in scan(around % PATCH).files] == [(b"x",)]


def test_several_mails_in_a_row_are_one_patch() -> None:
    mail = b"From " + b"a" * 40 + b" Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n%b-- \n2.39.5\n\n"
    assert len(scan(mail % PATCH + mail % PATCH).files) == 2


def test_a_context_line_trimmed_to_nothing_counts_as_context() -> None:
    scanned = scan(HEADER + b"@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n")
    assert (scanned.insertions, scanned.deletions) == (1, 1)


def test_lines_of_a_hunk_that_look_like_headers_are_content() -> None:
    patch = HEADER + b"@@ -1,4 +1,2 @@\n a\n--- a/y\n-diff --git a/y b/y\n-@@ -1 +1 @@\n+++ b/y\n"
    scanned = scan(patch)
    assert [file.paths for file in scanned.files] == [(b"x",)]
    assert scanned.deletions == 3


def test_nul_bytes_in_a_hunk_are_content_as_they_are_to_git() -> None:
    assert scan(HEADER + b"@@ -1 +1 @@\n-a\0b\n+c\n").insertions == 1


def test_no_newline_markers_do_not_count() -> None:
    patch = HEADER + (
        b"@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n"
    )
    scanned = scan(patch)
    assert (scanned.insertions, scanned.deletions) == (1, 1)


@pytest.mark.parametrize(
    ("patch", "line", "says"),
    [
        # No diff
        (b"", 1, "has no line of a diff"),
        (b" \n\n", 1, "not part of a diff"),
        (b"I could not do it, sorry.", 1, "not part of a diff"),
        (b"diff --git a/src/auth.py ...", 1, "does not name a file clearly"),
        (
            b"From " + b"a" * 40 + b" Mon Sep 17 00:00:00 2001\nSubject: x\n\n",
            1,
            "has no line of a diff",
        ),
        # Text around a diff
        (b"Here it is:\n" + PATCH, 1, "not part of a diff"),
        (PATCH + b"\nHope this helps!\n", 11, "not part of a diff"),
        (PATCH + b"```\n", 10, "Markdown fence"),
        # Line ends
        (PATCH.replace(b"\n", b"\r\n"), 1, "CRLF"),
        (PATCH.replace(b"b/x\n", b"b/x\r\n", 1), 1, "CRLF"),
        (PATCH.replace(b"+++ b/x\n", b"+++ b/x\r\n"), 3, "CRLF"),
        (PATCH.replace(b"@@\n", b"@@\r\n"), 4, "CRLF"),
        # Hunk counts
        (HEADER + b"@@ -1,3 +1,3 @@\n a\n-b\n+c\n", 4, "3 old and 3 new lines, but 2 and 2"),
        (HEADER + b"@@ -1,3 +1,3 @@\n a\n-b\n+c", 4, "3 old and 3 new lines, but 2 and 2"),
        (HEADER + b"@@ -1,1 +1,2 @@\n a\n+b\n+c\n", 4, "1 old and 2 new lines, but 1 and 3"),
        (HEADER + b"@@ -1,2 +1,1 @@\n a\n-b\n-c\n", 4, "2 old and 1 new lines, but 3 and 1"),
        (HEADER + b"@@ -1,2 +1,1 @@\n a\n-b\n c\n d\n", 4, "2 old and 1 new lines, but 4 and 3"),
        (HEADER + b"@@ -1,2 +1,2 @@\n a\n+b\n c\n d\n", 4, "2 old and 2 new lines, but 3 and 4"),
        (HEADER + b"@@ -1,3 +1,3 @@\n a\n-b\n+c\n" + PATCH, 4, "but 2 and 2"),
        (HEADER + b"@@ -1,3 +1,3 @@\n a\n-b\n+c\n@@ -9 +9 @@\n-a\n+b\n", 4, "but 2 and 2"),
        # Hunks
        (HEADER + b"@@ -1 @@\n a\n", 4, "not a hunk header"),
        (HEADER + b"@@ ... @@\n a\n", 4, "left out"),
        (HEADER + b"@@ -1,9 +1,9 @@\n a\n-b\n+c\n...\n e\n", 8, "left out"),
        (HEADER + b"@@ -1,2 +1,2 @@\n a\n b\n", 4, "changes nothing"),
        (HEADER + b"@@ -99999999999,2 +1,2 @@\n a\n-b\n+c\n", 4, "no file has"),
        (HEADER + b"@@ -1,2 +18446744073709551615,2 @@\n a\n-b\n+c\n", 4, "no file has"),
        (HEADER + b"@@ -5,0 +6 @@\n+new\n", 4, "no line of context"),
        (HEADER + b"@@ -5 +5 @@\n-old\n+new\n", 4, "no line of context"),
        (b"@@ -1 +1 @@\n-a\n+b\n", 1, "without its file"),
        (PATCH.replace(b"--- a/x\n", b""), 2, "as a pair"),
        (PATCH.replace(b"+++ b/x\n", b""), 2, "as a pair"),
        (PATCH + b"+++ b/y\n", 4, "but 3 and 5 follow"),
        (HEADER, 1, "no change"),
        (
            b"diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n"
            b"@@ -1 +1 @@\n-a\n+b\n",
            5,
            "new file cannot have old lines",
        ),
        (
            b"diff --git a/x b/x\ndeleted file mode 100644\n--- a/x\n+++ /dev/null\n"
            b"@@ -1,2 +1 @@\n a\n-b\n",
            5,
            "deleted file cannot leave lines",
        ),
        # Headers that can be read in two ways
        (b"diff --git a/x b/x\n--- a/x\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n", 1, "different paths"),
        (b"--- a/x\n+++ b/y\n@@ -1 +1 @@\n-a\n+b\n", 1, "different paths"),
        (
            b"diff --git a/x b/y\nrename from x\nrename to y\n--- a/x\n+++ b/z\n"
            b"@@ -1 +1 @@\n-a\n+b\n",
            1,
            "different paths",
        ),
        (b"diff --git a/x b/y\nrename from x\n", 1, "contradict"),
        (
            b"diff --git a/x b/y\nrename from x\nrename to y\nnew file mode 100644\n",
            1,
            "contradict",
        ),
        (b"diff --git a/x b/x\nold mode 100644\nold mode 100644\n", 3, "is given twice"),
        (
            b"diff --git a/x b/x\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+a\n",
            1,
            "new file mode 100644",
        ),
        (
            b"diff --git a/x b/x\n--- a/x\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n",
            1,
            "deleted file mode 100644",
        ),
        (b"--- x\n+++ x\n@@ -1 +1 @@\n-a\n+b\n", 1, "without the a/ or b/"),
        (b"--- src/x\n+++ src/x\n@@ -1 +1 @@\n-a\n+b\n", 1, "without the a/ or b/"),
        (b"--- a/x 2026-01-01\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", 1, "may be a date"),
        (b"--- a/x\ty\t2026-01-01\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n", 1, "may be a date"),
        (b"--- a/../x\n+++ b/../x\n@@ -1 +1 @@\n-a\n+b\n", 1, "not a path inside"),
        (b"--- a//etc/x\n+++ b//etc/x\n@@ -1 +1 @@\n-a\n+b\n", 1, "not a path inside"),
        (b"diff --git a/x b/x\nrename from /etc/passwd\nrename to x\n", 2, "not a path inside"),
        (b'diff --git a/x b/x\nrename from "x\\000y"\nrename to x\n', 2, "\\000"),
        (b'diff --git a/x b/x\nrename from "x\nrename to x\n', 2, "closing quote"),
        (b'diff --git a/x b/x\nrename from "x" y\nrename to x\n', 2, "after the quoted"),
        (b'diff --git a/x b/x\nrename from "\\x41"\nrename to x\n', 2, "unknown escape"),
        (b"diff --git a/x b/x\nrename from x\0y\nrename to x\n", 2, "control characters"),
        # Modes
        (b"diff --git a/x b/x\nnew file mode 040000\n", 2, "Mode 040000"),
        (b"diff --git a/x b/x\nindex 1234567..7654321 040000 x\n", 2, "no mode"),
        (b"diff --git a/x b/x\nold mode 100644\nnew mode 777\n", 3, "Mode 777"),
        (b"diff --git a/x b/x\nold mode 100644\nnew mode x\n", 3, "has no mode"),
        # Binary
        (b"diff --git a/x b/x\nBinary files a/x and b/x differ\n", 2, "--binary"),
        (b"diff --git a/x b/x\nindex 12345..54321\nGIT binary patch\n", 3, "full object ids"),
        (binary_patch(), 4, "must follow"),
        (b"--- a/x", 1, "one half of a header"),
        (binary_patch(b'delta 4\nx"""""\n\n'), 5, "damaged"),
        (binary_patch(b"delta 4\nE00000\n\n"), 5, "damaged"),
        (binary_patch(b"delta 4\nD~~~~~\n\n"), 5, "damaged"),  # five letters above four bytes
        (binary_patch(binary(b"", method=b"delta")), 5, "no readable head"),
        # Merges
        (b"diff --cc x\nindex 1,2..3\n--- a/x\n+++ b/x\n@@@ -1,1 -1,1 +1,1 @@@\n", 1, "merge"),
    ],
)
def test_a_malformed_patch_is_refused_with_the_line_and_the_reason(
    patch: bytes, line: int, says: str
) -> None:
    error = refusal(patch)
    assert says in error.detail
    assert error.line == line
    assert error.extra["line"] == line


@pytest.mark.parametrize(
    ("patch", "limit", "most"),
    [
        (PATCH, "max_patch_line_bytes", 10),
        (PATCH * 3, "max_patch_files", 2),
        (PATCH + b"@@ -9,2 +9,2 @@\n a\n-b\n+c\n", "max_patch_hunks", 1),
        (PATCH.replace(b"/x", b"/" + b"x" * 20), "max_path_bytes", 19),
        (PATCH.replace(b"/x", b"/x/y/z"), "max_path_depth", 2),
        (binary_patch(binary(b"x" * 1000)), "max_binary_bytes", 999),
        (binary_patch(binary(b"x" * 600), binary(b"x" * 600)), "max_binary_bytes", 1000),
        (binary_patch(binary(b"x", declared=10**11)), "max_binary_bytes", 10**6),
        # A delta of a few bytes whose result would be large.
        (binary_patch(binary(b"\x05\x80\x80\x80\x01", method=b"delta")), "max_binary_bytes", 10**6),
    ],
)
def test_a_patch_past_a_limit_is_refused_naming_limit_and_figure(
    patch: bytes, limit: str, most: int
) -> None:
    limits = LIMITS.model_copy(update={limit: most})
    with pytest.raises(PatchTooLargeError) as caught:
        scan_patch(PatchText.of(patch), limits)
    error = caught.value
    assert error.extra["limit"] == limit
    assert error.extra["most"] == most
    assert isinstance(error.extra["figure"], int)
    assert error.extra["figure"] > most
    assert f"AUTOPACK_{limit.upper()}" in error.detail


def test_of_a_delta_no_more_is_unpacked_than_its_head() -> None:
    bomb = binary(b"\x05\x06" + bytes(40_000_000), method=b"delta", declared=10)
    tracemalloc.start()
    scan(binary_patch(bomb))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1_000_000


@pytest.mark.parametrize(
    "patch",
    [
        HEADER + b"@@ -1 +1,900001 @@\n a\n" + b"+abcdefgh\n" * 900_000,
        PATCH * 1_999 + HEADER + b"@@ -1 +1,200001 @@\n a\n" + b"+abcdefgh\n" * 200_000,
        HEADER + b"".join(b"@@ -%d,2 +1,2 @@\n a\n-b\n+c\n" % n for n in range(1, 20_000)),
        b'diff --git "' + b"\\" * 90_000 + b"\n",
        b"diff --git a/" + b'a "' * 30_000 + b"\n",
        b"diff --git a/" + b" a/a" * 20_000 + b"\n",
        b"--- a/x" + b" 11-11-11" * 10_000 + b"x\n+++ b/x\n@@ -1 +1 @@\n-a\n+b\n",
        HEADER + b"@@ -1,9 +1,9 @@\n a\n" + b"\n" * 900_000,
        (HEADER + b"@@ -1,9 +1,9 @@\n a\n\n") * 1_000,
    ],
    ids=["lines", "files", "hunks", "quotes", "spaces", "splits", "dates", "blanks", "counts"],
)
def test_the_largest_patches_do_not_hang(patch: bytes) -> None:
    started = time.process_time()
    with suppress(PatchMalformedError):
        scan(patch)
    assert time.process_time() - started < HANGING_SECONDS


def test_gits_own_mail_and_log_output_is_taken_whole(tmp_path: Path) -> None:
    def git(*arguments: str) -> bytes:
        return subprocess.run(
            ["git", "-c", "user.name=A", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            capture_output=True,
            check=True,
        ).stdout

    git("init", "--quiet", ".")
    (tmp_path / "text").write_text("".join(f"{n}\n" for n in range(50)))
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "blob").write_bytes(bytes(range(256)) * 8)
    git("add", ".")
    git("commit", "--quiet", "-m", "First\n\n    diff --git a/no b/no\n--- dashes\n---")
    (tmp_path / "text").rename(tmp_path / "odd näme")
    (tmp_path / "blob").write_bytes(bytes(range(255)) * 8 + b"\0")
    (tmp_path / "empty").chmod(0o755)
    git("add", "--all", ".")
    git("commit", "--quiet", "-m", "Second")
    for output in (
        git("format-patch", "--stdout", "--root", "HEAD", "--binary"),
        git("log", "-p", "--binary", "--root"),
        git("show", "--binary", "-M"),
        git("show", "--binary", "--no-renames", "--stat", "-p"),
        git("diff", "--binary", "HEAD^"),
    ):
        paths = scan(output).paths()
        assert {b"text", "odd näme".encode(), b"empty", b"blob"} == paths


MAKE = b"""diff --git a/n b/n
new file mode 100644
--- /dev/null
+++ b/n
@@ -0,0 +1 @@
+one
"""
REMOVE = b"""diff --git a/n b/n
deleted file mode 100644
--- a/n
+++ /dev/null
@@ -1 +0,0 @@
-one
"""


def test_a_file_that_was_moved_away_may_be_created_again_and_one_that_was_copied_may_not() -> None:
    def section(kind: bytes) -> bytes:
        lines = (
            b"diff --git a/n b/m\nsimilarity index 100%\n",
            kind,
            b" from n\n",
            kind,
            b" to m\n",
        )
        return b"".join(lines)

    assert len(scan(MAKE + section(b"rename") + MAKE).files) == 3
    with pytest.raises(PatchMalformedError, match="n is created twice"):
        scan(MAKE + section(b"copy") + MAKE)


def test_a_file_that_is_created_twice_is_refused_and_one_made_anew_is_not() -> None:
    with pytest.raises(PatchMalformedError, match="n is created twice") as refused:
        scan(MAKE + MAKE)
    assert refused.value.extra["line"] == 7
    assert len(scan(MAKE + REMOVE + MAKE).files) == 3
