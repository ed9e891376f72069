"""The scanner against git itself: git must never touch a path that the scanner did not see."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import event
from hypothesis import strategies as st
from tests.campaigns import random_examples

from autopack.config import Settings
from autopack.gitrepo.errors import PatchMalformedError
from autopack.gitrepo.patch import PatchText, ScannedPatch
from autopack.gitrepo.scan import scan_patch

pytestmark = pytest.mark.integration

LIMITS = Settings(_env_file=None)
# Names that a header can hide or that split in more than one way.
NAMES = [
    b"x",
    b"a",
    b"a/x",
    b"b/x",
    b"x b/x",
    b"a/x b/x",
    b"dev/null",
    b"x 2020-01-01",
    b"t\tb",
    b"t\tb 2020-01-01",
    b'q"x',
    b"back\\x",
    b"\xc3\xa4",
    b"\xff",
    b"x.orig",
    b"x ",
]
FILES = [name for name in NAMES if name not in (b"a",)]
CONTENT = b"1\n2\n3\n"
PREFIXES = [b"a/", b"b/", b"i/", b"", b"/", b"x/", b"a//", b"a b/"]
STAMPS = [b""] * 20 + [b"\t", b"\t2020-01-01 00:00:00 +0000", b" 2020-01-01", b"\r", b"\tx\ty"]
HUNK = b"@@ -1,3 +1,3 @@\n 1\n-2\n+two\n 3\n"
OPTIONS: list[list[str]] = [[], ["-M"], ["--no-renames"], ["-U1"], ["--binary"]]
NEW_HUNK = b"@@ -0,0 +1 @@\n+new\n"
OLD_HUNK = b"@@ -1,3 +0,0 @@\n-1\n-2\n-3\n"


def scan(patch: bytes) -> ScannedPatch:
    return scan_patch(PatchText.of(patch), LIMITS)


class Git:
    """A repository without work tree that tells which paths a patch changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": "/nonexistent",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            "GIT_INDEX_FILE": str(folder / "index"),
        }
        self.run("init", "--quiet", "--bare", ".")
        blob = self.run("hash-object", "-w", "--stdin", stdin=CONTENT).strip()
        entries = b"".join(b"100644 %b\t%b\0" % (blob, name) for name in FILES)
        self.run("update-index", "-z", "--index-info", stdin=entries)
        self.tree = self.run("write-tree").strip().decode()
        shutil.copy(folder / "index", folder / "index.before")

    def run(self, *arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(
            ["git", *arguments],
            cwd=self.folder,
            env=self._environment,
            input=stdin,
            capture_output=True,
            check=True,
        ).stdout

    def changed(self, name: bytes, new: bytes | None) -> str:
        """Return the tree in which a file has one line more, and a new name if it has one."""
        blob = self.run("hash-object", "-w", "--stdin", stdin=CONTENT + b"4\n").strip()
        shutil.copy(self.folder / "index.before", self.folder / "index")
        lines = b"0 %b\t%b\0" % (b"0" * 40, name)
        if new is not None:
            lines += b"100644 %b\t%b\0" % (blob, new)
        self.run("update-index", "-z", "--index-info", stdin=lines)
        return self.run("write-tree").decode().strip()

    def touched(self, patch: bytes, *options: str) -> set[bytes] | None:
        """Return the paths that differ after `git apply`, or None when it refuses."""
        shutil.copy(self.folder / "index.before", self.folder / "index")
        try:
            self.run("apply", "--cached", "--whitespace=nowarn", *options, "-", stdin=patch)
        except subprocess.CalledProcessError:
            return None
        output = self.run("diff-index", "--cached", "--name-only", "--no-renames", "-z", self.tree)
        return set(filter(None, output.split(b"\0")))


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Git:
    return Git(tmp_path_factory.mktemp("repo"))


def quoted(name: bytes) -> bytes:
    table = {ord("\t"): b"\\t", ord('"'): b'\\"', ord("\\"): b"\\\\"}
    return b'"%b"' % b"".join(
        table.get(byte, bytes([byte]) if 32 <= byte < 127 else b"\\%03o" % byte) for byte in name
    )


@st.composite
def spelled(draw: st.DrawFn, prefix: bytes = b"", name: bytes | None = None) -> bytes:
    """One of the names, mostly spelled as git would, sometimes not."""
    if name is None:
        name = draw(st.sampled_from(NAMES))
    odd = draw(st.integers(0, 24))
    if odd == 0:
        prefix = draw(st.sampled_from(PREFIXES))
    full = prefix + name
    needs_quotes = any(byte < 32 or byte > 126 or byte in b'"\\' for byte in full)
    if needs_quotes == (odd != 1):
        return quoted(full)
    return full


@st.composite
def sections(draw: st.DrawFn) -> bytes:
    """What looks like the patch of one file, with lines missing, repeated or at odds."""
    old = draw(st.sampled_from(NAMES))
    new = draw(st.sampled_from(NAMES)) if draw(st.integers(0, 3)) == 0 else old
    lines: list[bytes] = []
    kind = draw(st.sampled_from(["change", "change", "new", "gone", "rename", "copy", "mode"]))
    if draw(st.integers(0, 4)):
        lines.append(
            b"diff --git %b %b"
            % (draw(spelled(b"a/", old)), draw(spelled(b"b/", new)) if new else b"")
        )
        extended = {
            "change": [b"index 1234567..7654321 100644"],
            "new": [b"new file mode 100644"],
            "gone": [b"deleted file mode 100644"],
            "rename": [
                b"rename from " + draw(spelled(b"", old)),
                b"rename to " + draw(spelled(b"", new)),
            ],
            "copy": [
                b"copy from " + draw(spelled(b"", old)),
                b"copy to " + draw(spelled(b"", new)),
            ],
            "mode": [b"old mode 100644", b"new mode 100755"],
        }
        lines += extended[kind]
        if draw(st.integers(0, 24)) == 0:
            lines += extended[draw(st.sampled_from(sorted(extended)))]
        if draw(st.integers(0, 24)) == 0:
            lines.append(b"rename old " + draw(spelled()))
    if draw(st.integers(0, 3)):
        first = b"/dev/null" if kind == "new" else draw(spelled(b"a/", old))
        second = b"/dev/null" if kind == "gone" else draw(spelled(b"b/", new))
        lines.append(b"--- " + first + draw(st.sampled_from(STAMPS)))
        lines.append(b"+++ " + second + draw(st.sampled_from(STAMPS)))
    if draw(st.integers(0, 24)) == 0 and lines:
        at = draw(st.integers(0, len(lines) - 1))
        lines.insert(draw(st.integers(0, len(lines))), lines[at])
    if draw(st.integers(0, 24)) == 0 and lines:
        del lines[draw(st.integers(0, len(lines) - 1))]
    hunk = {"new": NEW_HUNK, "gone": OLD_HUNK}.get(kind, HUNK)
    body = hunk if draw(st.integers(0, 24)) else b""
    return b"".join(line + b"\n" for line in lines) + body


@random_examples(
    *(60, 300),
    parts=st.lists(sections(), min_size=1, max_size=3),
    gap=st.sampled_from([b"", b"\n", b"z\n"]),
)
def test_git_touches_no_path_that_the_scanner_did_not_name(
    git: Git, parts: list[bytes], gap: bytes
) -> None:
    patch = gap.join(parts)
    try:
        scanned = scan(patch)
    except PatchMalformedError:
        event("refused by the scanner")
        return
    touched = git.touched(scanned.text.content())
    event("refused by git" if touched is None else "applied")
    if touched is not None:
        assert touched <= scanned.paths()
        # Neither depends on what git guesses about folders to strip.
        assert git.touched(scanned.text.content(), "-p1") == touched


@pytest.mark.parametrize("name", FILES)
def test_what_git_diff_writes_is_accepted_and_understood(git: Git, name: bytes) -> None:
    """For every odd name: a change, a rename to it, and its removal, by any options of git."""
    for new in (name, b"moved to/" + name, None):
        tree = git.changed(name, new)
        expected = {name} | ({new} if new is not None else set())
        written = {git.run("diff-tree", "-p", *options, git.tree, tree) for options in OPTIONS}
        for diff in written:  # many are the same
            *_, file = scan(diff).files
            assert scan(diff).paths() == expected
            assert file.new_path in (new, None)
            assert git.touched(diff) == expected


SEED_PATCHES = [
    b"diff --git a/x b/x\n--- a/x\n+++ b/x\n" + HUNK,
    b"diff --git a/x b/n\nrename from x\nrename to n\nindex 1234567..7654321 100644\n"
    b"--- a/x\n+++ b/n\n" + HUNK,
    b"diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n" + NEW_HUNK,
    b"--- a/x\t2026-01-01 00:00:00 +0000\n+++ b/x\t2026-01-01 00:00:00 +0000\n" + HUNK,
    b'diff --git "a/t\\tb" "b/t\\tb"\nold mode 100644\nnew mode 100755\n',
    b"From " + b"a" * 40 + b" Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n"
    b"diff --git a/x b/x\n--- a/x\n+++ b/x\n" + HUNK + b"-- \n2.39.5\n\n",
]
PIECES = [
    b"\n",
    b"\r\n",
    b"\0",
    b" ",
    b"\t",
    b'"',
    b"\\",
    b"/",
    b"..",
    b"a/",
    b"b/",
    b"-",
    b"+",
    b"@@ ",
]
PIECES += [b"--- ", b"+++ ", b"diff --git ", b"rename to ", b"GIT binary patch\n", b"```\n", b"1"]


@random_examples(60, 300, data=st.data())
def test_damaged_patches_are_refused_cleanly_or_seen_as_git_sees_them(
    git: Git, data: st.DataObject
) -> None:
    patch = b"".join(data.draw(st.lists(st.sampled_from(SEED_PATCHES), min_size=1, max_size=2)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(patch)))
        gone = data.draw(st.integers(0, 3))
        patch = patch[:at] + data.draw(st.sampled_from([b"", *PIECES])) + patch[at + gone :]
    scanned, line = None, 1
    try:
        scanned = scan(patch)
    except PatchMalformedError as error:
        line = error.line or 0
    assert 1 <= line <= patch.count(b"\n") + 1
    touched = git.touched(scanned.text.content()) if scanned is not None else None
    event("applied" if touched is not None else "refused")
    assert scanned is None or touched is None or touched <= scanned.paths()
