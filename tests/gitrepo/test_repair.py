"""Errors in models' patches are repaired if they have one possible meaning, else refused."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import assume
from hypothesis import strategies as st
from tests.campaigns import random_examples

from autopack.domain.changes import DIFF_COMMAND, RepairKind
from autopack.gitrepo import (
    ApplicablePatch,
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    Repository,
)

if TYPE_CHECKING:
    from tests.gitrepo.conftest import History, State

pytestmark = pytest.mark.integration

CODE = b"""import os


def load(path):
    with open(path) as handle:
        return handle.read()


def total(values):
    result = 0
    for value in values:
        result += value
    return result


def mean(values):
    if not values:
        return None

    return total(values) / len(values)
"""
WINDOWS = CODE.replace(b"\n", b"\r\n")
MARKDOWN = b"One\n\n```sh\nls\n```\n\nTwo\n\nThree\n"
FILES = {
    "calc.py": CODE,
    "win.txt": WINDOWS,
    "src/m.py": b"x = 1\n",
    "docs/a.md": b"hello\n",
    "both.py": CODE,
    "src/both.py": CODE,
    "read.me": MARKDOWN,
}
HUNK = b"""@@ -9,6 +9,8 @@ def load(path):
 def total(values):
     result = 0
     for value in values:
+        if value is None:
+            continue
         result += value
     return result
 
"""
NAMES = b"--- a/calc.py\n+++ b/calc.py\n"
PATCH = b"diff --git a/calc.py b/calc.py\n" + NAMES + HUNK
NEW = b"diff --git a/n.txt b/n.txt\nnew file mode 100644\n--- /dev/null\n+++ b/n.txt\n"
NEW += b"@@ -0,0 +1 @@\n+hi\n"
STACK = b"--- a/src/m.py\n+++ b/src/m.py\n@@ -1 +1 @@\n-x = 1\n+x = 2\n"
STACK += b"--- a/docs/a.md\n+++ b/docs/a.md\n@@ -1 +1,2 @@\n hello\n+world\n"
ADDED = b"        if value is None:\n            continue\n"
GOAL = CODE.replace(b"        result += value\n", ADDED + b"        result += value\n")


@dataclass
class Branch:
    """A head, and what becomes of patches for it."""

    history: History
    repository: Repository
    head: str

    def apply(self, patch: bytes) -> ApplicablePatch:
        return self.repository.apply(self.head, patch, lambda changes: None)

    def content(self, applied: ApplicablePatch, path: str) -> bytes:
        command = ["git", "cat-file", "blob", f"{applied.tree}:{path}"]
        folder = self.history.repo.path
        return subprocess.run(command, cwd=folder, capture_output=True, check=True).stdout


@pytest.fixture
def branch(history: History, repository: Repository) -> Branch:
    return Branch(history, repository, history.commit(FILES))


def reason_of(conflict: PatchConflictError) -> str:
    files = cast("list[dict[str, list[dict[str, str]]]]", conflict.extra["files"])
    return files[0]["hunks"][0]["reason"]


def crlf(patch: bytes) -> bytes:
    return patch.replace(b"\n", b"\r\n")


def coloured(patch: bytes) -> bytes:
    """Colour a patch as `git diff --color` does."""
    colours = {b"+": b"\x1b[32m", b"-": b"\x1b[31m", b"@": b"\x1b[36m", b"d": b"\x1b[1m"}
    lines = []
    for line in patch.splitlines():
        colour = colours.get(line[:1], b"")
        if line[:1] == b"+" and line[:2] != b"++":
            lines.append(colour + b"+\x1b[m" + colour + line[1:] + b"\x1b[m\x1b[41m\x1b[m")
        else:
            lines.append(colour + line + b"\x1b[m" * bool(colour))
    return b"".join(line + b"\n" for line in lines)


SHA = b"a" * 40
K = RepairKind
MENDED: dict[str, tuple[bytes, set[RepairKind]]] = {
    "last blank context trimmed": (PATCH.rstrip() + b"\n", {K.TRIMMED_CONTEXT}),
    "trimmed to the last letter": (PATCH.strip(), {K.TRIMMED_CONTEXT, K.FINAL_NEWLINE}),
    "last newline trimmed": (PATCH[:-1], {K.FINAL_NEWLINE}),
    "every line CRLF": (crlf(PATCH), {K.LINE_ENDS}),
    "every line CRLF, the end trimmed": (crlf(PATCH)[:-2], {K.LINE_ENDS, K.FINAL_NEWLINE}),
    "line 1 in the midst": (PATCH.replace(b"-9,6 +9,8", b"-1,6 +1,8"), {K.LINE_NUMBER}),
    "no prefix": (PATCH.replace(b"a/c", b"c").replace(b"b/c", b"c"), {K.PATHS}),
    "no prefix, no git header": (HUNK.join([b"--- calc.py\n+++ calc.py\n", b""]), {K.PATHS}),
    "other prefixes": (HUNK.join([b"--- old/calc.py\n+++ new/calc.py\n", b""]), {K.PATHS}),
    "dots before paths": (PATCH.replace(b"a/c", b"./c").replace(b"b/c", b"./c"), {K.PATHS}),
    "dots behind prefixes": (PATCH.replace(b"/c", b"/./c"), {K.PATHS}),
    "dots and a date": (
        HUNK.join([b"--- ./calc.py\t2026-01-01 10:00:00\n+++ ./calc.py\t2026-01-01\n", b""]),
        {K.PATHS},
    ),
    "a fence": (b"```diff\n" + PATCH + b"```\n", {K.FENCE}),
    "a fence of tildes, trimmed": (b"\n~~~patch\n" + PATCH + b"~~~", {K.FENCE, K.FINAL_NEWLINE}),
    "prose around a fence": (
        b"Here is it.\n\n```diff\n" + PATCH + b"```\n\n- It skips None.\n+ Tested.\n",
        {K.FENCE},
    ),
    "a fence among others": (
        b"Run:\n```sh\nls\n```\nThen:\n````\n" + PATCH + b"````\n```\ndone\n```\n",
        {K.FENCE},
    ),
    "a fence around a trimmed diff": (
        b"Fix:\n```\n" + PATCH.rstrip() + b"\n```\n",
        {K.FENCE, K.TRIMMED_CONTEXT},
    ),
    "byte order mark": (b"\xef\xbb\xbf" + PATCH, {K.BYTE_ORDER_MARK}),
    "counts too small": (PATCH.replace(b"-9,6 +9,8", b"-9,5 +9,7"), {K.HUNK_COUNTS}),
    "new lines not counted": (PATCH.replace(b"-9,6 +9,8", b"-9,6 +9,6"), {K.HUNK_COUNTS}),
    "colours": (coloured(PATCH), {K.COLOURS}),
    "stat before": (
        b" calc.py | 2 ++\n 1 file changed, 2 insertions(+)\n\n" + PATCH,
        {K.PREAMBLE},
    ),
    "raw and numstat before": (
        b":100644 100644 abcdef1 0000000 M\tcalc.py\n2\t0\tcalc.py\n\n" + PATCH,
        {K.PREAMBLE},
    ),
    "show --oneline": (b"abcdef1 Skip None\n" + PATCH, {K.PREAMBLE}),
    "log --oneline --stat": (b"abcdef1 Skip\n---\n calc.py | 2 ++\n\n" + PATCH, {K.PREAMBLE}),
    "show --abbrev-commit": (b"commit abcdef1\nAuthor: A\n\n    Skip\n\n" + PATCH, {K.PREAMBLE}),
    "a mail": (b"Subject: [PATCH] Skip\nFrom: A\n\nWhy.\n---\n" + PATCH, {K.PREAMBLE}),
    "all at once": (
        b"So:\r\n```diff\r\n" + crlf(PATCH.replace(b"/c", b"/./c").rstrip()) + b"\r\n```",
        {K.LINE_ENDS, K.FENCE, K.PATHS, K.TRIMMED_CONTEXT, K.FINAL_NEWLINE},
    ),
}


@pytest.mark.parametrize(("patch", "kinds"), MENDED.values(), ids=MENDED)
def test_an_error_with_one_possible_meaning_is_repaired_and_reported(
    branch: Branch, patch: bytes, kinds: set[RepairKind]
) -> None:
    applied = branch.apply(patch)
    assert branch.content(applied, "calc.py") == GOAL
    assert {repair.kind for repair in applied.repairs} == kinds
    assert [change.path for change in applied.changes] == ["calc.py"]
    assert not applied.merged


def test_a_patch_that_git_accepts_is_not_changed(branch: Branch) -> None:
    for patch in (PATCH, NEW, b"From " + SHA + b" Mon Sep 17\nSubject: x\n\n---\n" + PATCH):
        assert branch.apply(patch).repairs == ()


NEW_FILE: dict[str, bytes] = {
    "without its mode": NEW.replace(b"new file mode 100644\n", b""),
    "a hunk from line 1": NEW.replace(b"-0,0", b"-1,0"),
    "a hunk with an old line": NEW.replace(b"-0,0", b"-1"),
    "lines not counted": NEW.replace(b"+1 @@\n", b"+1,0 @@\n"),
    "both sides named": NEW.replace(b"/dev/null", b"a/n.txt"),
    "no prefix": NEW.replace(b"a/n", b"n").replace(b"b/n", b"n"),
}


@pytest.mark.parametrize("patch", NEW_FILE.values(), ids=NEW_FILE)
def test_a_new_file_is_recognized_by_every_form_of_its_header(branch: Branch, patch: bytes) -> None:
    applied = branch.apply(patch)
    assert branch.content(applied, "n.txt") == b"hi\n"
    assert len(applied.repairs) == 1
    assert applied.changes[0].new_mode == 0o100644


def test_a_deleted_file_needs_no_mode_line(branch: Branch) -> None:
    patch = (
        b"diff --git a/src/m.py b/src/m.py\n--- a/src/m.py\n+++ /dev/null\n@@ -1 +0,0 @@\n-x = 1\n"
    )
    (change,) = branch.apply(patch).changes
    assert (change.path, change.new_oid) == ("src/m.py", None)


def test_a_file_with_crlf_keeps_it_where_the_whole_patch_has_it(branch: Branch) -> None:
    for patch in (
        PATCH.replace(b"calc.py", b"win.txt"),
        PATCH.replace(b"calc.py", b"win.txt")[:-1],
    ):
        applied = branch.apply(crlf(patch))
        assert branch.content(applied, "win.txt") == crlf(GOAL)
    pty = crlf(crlf(PATCH.replace(b"calc.py", b"win.txt")).replace(b"b/win.txt\r", b"b/win.txt"))
    assert b"\r\r\n" in pty


def test_a_terminals_crlf_leaves_a_files_own(branch: Branch) -> None:
    body = HUNK.replace(b"\n", b"\r\n").replace(b"load(path):\r", b"load(path):")
    terminal = crlf(b"--- a/win.txt\n+++ b/win.txt\n" + body)
    assert branch.content(branch.apply(terminal), "win.txt") == crlf(GOAL)


def test_a_diff_of_a_markdown_file_keeps_its_fences(branch: Branch) -> None:
    patch = b"--- a/read.me\n+++ b/read.me\n@@ -1,6 +1,6 @@\n One\n \n ```sh\n-ls\n+pwd\n ```\n \n"
    fenced = b"Look:\n```diff\n" + patch + b"```\nBye\n"
    for sent in (patch, fenced):
        applied = branch.apply(sent)
        assert branch.content(applied, "read.me") == MARKDOWN.replace(b"ls", b"pwd")


def test_of_a_stack_whose_first_part_has_landed_the_rest_is_applied(branch: Branch) -> None:
    head = branch.history.commit({**FILES, "src/m.py": b"x = 2\n"})
    applied = Branch(branch.history, branch.repository, head).apply(STACK)
    assert [change.path for change in applied.changes] == ["docs/a.md"]
    assert [repair.kind for repair in applied.repairs] == [RepairKind.LANDED_PART]


@pytest.mark.parametrize(
    "landed",
    [
        {"src/m.py": b"x = 3\n"},
        {"src/m.py": b"first\nx = 2\n"},
        {"src/m.py": b"x = 2\n", "docs/a.md": b"bye\n"},
    ],
    ids=["otherwise", "elsewhere", "and the rest does not fit"],
)
def test_a_stack_of_which_a_part_neither_fits_nor_is_there_conflicts(
    branch: Branch, landed: State
) -> None:
    head = branch.history.commit({**FILES, **landed})
    with pytest.raises(PatchConflictError):
        Branch(branch.history, branch.repository, head).apply(STACK)


def test_a_series_that_is_on_the_branch_already_is_reported(branch: Branch) -> None:
    head = branch.history.commit({**FILES, "src/m.py": b"x = 2\n", "docs/a.md": b"hello\nworld\n"})
    with pytest.raises(PatchAlreadyAppliedError):
        Branch(branch.history, branch.repository, head).apply(STACK)


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "apply_patch": (
        b"*** Begin Patch\n*** Update File: calc.py\n@@\n-a\n+b\n*** End Patch\n",
        1,
        "`*** Begin Patch` format",
    ),
    "search and replace": (
        b"calc.py\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n",
        2,
        "SEARCH/REPLACE block",
    ),
    "context diff": (b"*** a/x\n--- b/x\n***************\n*** 1,2 ****\n", 3, "context diff"),
    "normal diff": (b"3c3\n< a\n---\n> b\n", 1, "without context"),
    "escaped newlines": (b"--- a/x\\n+++ b/x\\n@@ -1 +1 @@\\n-a\\n+b", 1, "real newlines"),
    "whole file": (b"import os\n\n\ndef load():\n    pass\n", 1, "not part of a diff"),
    "prose": (b"```\nI could not.\n```\n", 1, "Markdown fence"),
    "left out": (PATCH.replace(b"     for value in values:\n", b"...\n"), 7, "left out"),
    "left out in a header": (PATCH.replace(b"@@ -9,6 +9,8 @@", b"@@ ... @@"), 4, "left out"),
    "binary files": (b"diff --git a/x b/x\nBinary files a/x and b/x differ\n", 2, "--binary"),
    "open fence": (b"Here:\n```diff\n" + PATCH, 2, "does not close"),
    "two fences": (b"```\n" + PATCH + b"```\n```\n" + PATCH + b"```\n", 15, "Several"),
    "prose without fence": (b"Here it is:\n" + PATCH, 1, "not part of a diff"),
    "prose behind": (PATCH + b"\nHope this helps!\n", 14, "not part of a diff"),
    "a list behind": (PATCH + b"\n- skips None\n+ tested\n", 14, "not part of a diff"),
    "UTF-16": (PATCH.decode().encode("utf-16"), 1, "UTF-16"),
    "colours of its own": (
        coloured(PATCH).replace(b"is None", b"\x1b[1mis None\x1b[m"),
        8,
        "colours of the file:",
    ),
    "two files for one name": (
        HUNK.join([b"--- src/both.py\n+++ src/both.py\n", b""]),
        1,
        "branch has both",
    ),
    "no such file for a bare name": (
        HUNK.join([b"--- lib/x.py\n+++ lib/x.py\n", b""]),
        1,
        "`diff.noprefix`",
    ),
    "a file outside by dots": (PATCH.replace(b"a/c", b"./../c"), 2, "names ./../calc.py"),
    "an old line in a new file": (
        NEW.replace(b"-0,0", b"-1").replace(b"+hi", b"-a\n+hi"),
        5,
        "new",
    ),
    "no newline, wrong counts": (PATCH.replace(b"-9,6 +9,8", b"-9,7 +9,8")[:-1], 4, "declares"),
}


@pytest.mark.parametrize(("patch", "line", "says"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_diff_or_means_two_things_is_refused_by_its_name_and_line(
    branch: Branch, patch: bytes, line: int, says: str
) -> None:
    with pytest.raises(PatchMalformedError) as refused:
        branch.apply(patch)
    assert says in refused.value.detail
    assert refused.value.line == line


def test_a_hunk_that_is_short_of_lines_is_called_so_and_no_conflict(branch: Branch) -> None:
    index = b"index 1111111..2222222 100644\n"
    patch = PATCH.replace(b"--- a", index + b"--- a").replace(b"-9,6 +9,8", b"-9,7 +9,9")
    for sent in (patch, patch + PATCH.replace(b"calc.py", b"both.py")):
        with pytest.raises(PatchMalformedError, match=r"another number of lines|declares 7 old"):
            branch.apply(sent)


def test_a_hunk_with_missing_lines_is_accepted_only_if_its_index_line_confirms_it(
    branch: Branch,
) -> None:
    goal = branch.history.commit({**FILES, "calc.py": GOAL, "src/m.py": b"x = 2\n"})
    whole = branch.history.patch(branch.head, goal)
    sent = whole.replace(b"-9,6 +9,8", b"-9,7 +9,9")
    assert branch.apply(sent).tree == branch.history.tree(goal)
    with pytest.raises(PatchMalformedError):
        branch.apply(sent.replace(b"+            continue\n", b""))


@pytest.mark.parametrize(
    ("hunk", "reason"),
    [
        (b"@@ -1,2 +1,3 @@\n+new\n def total(values):\n     result = 0\n",
         "no line of context before its change, so it only applies at the beginning of the file;"
         " its lines are at line 9 instead"),
        (b"@@ -9,2 +9,3 @@\n def total(values):\n     result = 0\n+new\n",
         "no line of context after its change, so it only applies at the end of the file;"
         " its lines are at line 9 instead"),
        (b"@@ -8,3 +8,3 @@\n \n def total(values):\n-def\n+new\n", "'def' is not here"),
        (b"@@ -8,3 +8,3 @@\n \n     ...\n-    result = 0\n+    result = 1\n", "were left out"),
    ],
)  # fmt: skip
def test_a_reason_is_true_and_names_the_place(branch: Branch, hunk: bytes, reason: str) -> None:
    with pytest.raises(PatchConflictError) as conflict:
        branch.apply(NAMES + hunk)
    assert reason in reason_of(conflict.value)


def test_a_hunk_that_says_line_1_and_fits_at_two_places_names_both(branch: Branch) -> None:
    head = branch.history.commit({"calc.py": b"0\n" + CODE + CODE})
    patch = PATCH.replace(b"-9,6 +9,8", b"-1,6 +1,8")
    with pytest.raises(PatchConflictError) as conflict:
        Branch(branch.history, branch.repository, head).apply(patch)
    assert "names line 1" in reason_of(conflict.value)
    assert "at line 10, 30 instead" in reason_of(conflict.value)


@pytest.mark.parametrize(
    "path", ["docs", "calc.py/x", "src/m.py/a/b"], ids=["folder", "file", "deep"]
)
def test_a_file_in_the_place_of_a_folder_is_called_so(branch: Branch, path: str) -> None:
    patch = NEW.replace(b"n.txt", path.encode())
    with pytest.raises(PatchConflictError, match="onflict of file and folder"):
        branch.apply(patch)


def test_a_patch_that_makes_a_file_and_a_folder_of_one_name_is_called_so(branch: Branch) -> None:
    patch = NEW.replace(b"n.txt", b"n") + NEW.replace(b"n.txt", b"n/x")
    with pytest.raises(PatchConflictError, match="onflict of file and folder"):
        branch.apply(patch)


def test_the_page_on_patches_has_a_line_for_each_kind_of_repair() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "patches.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(RepairKind)
    assert DIFF_COMMAND in page


# Against git and `patch`


def lines_of_a_file() -> st.SearchStrategy[list[bytes]]:
    line = st.sampled_from([b"", b"", b"a", b"b", b"    c", b"-- d", b"++ e", b"}", b"f"])
    return st.lists(line, min_size=8, max_size=30)


@st.composite
def edits(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A file, and what a few edits make of it."""
    old = draw(lines_of_a_file())
    new = list(old)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(new)))
        gone = draw(st.integers(0, 2))
        new[at : at + gone] = draw(st.lists(st.sampled_from([b"", b"x", b"y"]), max_size=2))
    assume(new != old)
    return b"\n".join(old) + b"\n", b"\n".join(new) + b"\n"


def recounted(branch: Branch, patch: bytes) -> str | None:
    """The tree that `git apply --recount` gives, or None."""
    quarantine = branch.repository.quarantine()
    with quarantine as room:
        room.git("read-tree", branch.head)
        options = ("apply", "--cached", "--recount", "--whitespace=nowarn", "-")
        if room.git(*options, stdin=patch, allowed=(0, 1, 128)).status:
            return None
        return room.git("write-tree").stdout.decode().strip()


MANGLES: dict[str, Callable[[bytes], bytes]] = {
    "trimmed": lambda patch: patch.rstrip() + b"\n",
    "stripped": lambda patch: patch.strip(),
    "terminal": crlf,
    "coloured": coloured,
    "fenced": lambda patch: b"So:\n```diff\n" + patch + b"```\n- done\n",
    "no index": lambda patch: b"".join(
        line for line in patch.splitlines(keepends=True) if not line.startswith(b"index ")
    ),
}
REFUSALS = (
    PatchMalformedError,
    PatchConflictError,
    PatchAlreadyAppliedError,
    PatchEmptyError,
)


@random_examples(
    *(12, 60),
    edit=edits(),
    names=st.lists(st.sampled_from(sorted(MANGLES)), min_size=1, max_size=3),
)
def test_a_repaired_patch_gives_the_same_result_as_the_whole_one_or_is_refused(
    history: History, repository: Repository, edit: tuple[bytes, bytes], names: list[str]
) -> None:
    old, goal = (history.commit({"calc.py": content}) for content in edit)
    patch = history.patch(old, goal)
    for name in names:
        patch = MANGLES[name](patch)
    try:
        applied = Branch(history, repository, old).apply(patch)
    except REFUSALS:
        return
    assert applied.tree == history.tree(goal)


@random_examples(12, 60, edit=edits(), data=st.data())
def test_a_patch_that_is_cut_off_in_its_midst_is_never_applied(
    history: History, repository: Repository, edit: tuple[bytes, bytes], data: st.DataObject
) -> None:
    """With its `index` line: without it, a cut between two changes may leave a whole patch."""
    branch = Branch(history, repository, history.commit({"calc.py": edit[0]}))
    patch = history.patch(branch.head, history.commit({"calc.py": edit[1]}))
    cut = patch[: data.draw(st.integers(1, len(patch.rstrip()) - 1))]
    try:
        applied = branch.apply(cut)
    except REFUSALS:
        return
    # Cut at the edge of a hunk it is a whole patch, which git takes as it is; the newline at that
    # edge may be what was cut last.
    assert {repair.kind for repair in applied.repairs} <= {RepairKind.FINAL_NEWLINE}
    assert applied.tree == recounted(branch, cut if cut.endswith(b"\n") else cut + b"\n")


@random_examples(12, 60, edit=edits(), data=st.data())
def test_a_hunk_with_other_counts_gives_what_git_recounts_or_is_refused(
    history: History, repository: Repository, edit: tuple[bytes, bytes], data: st.DataObject
) -> None:
    branch = Branch(history, repository, history.commit({"calc.py": edit[0]}))
    patch = history.patch(branch.head, history.commit({"calc.py": edit[1]}))
    if data.draw(st.booleans()):
        patch = MANGLES["no index"](patch)
    lines = patch.split(b"\n")
    headers = [at for at, line in enumerate(lines) if line.startswith(b"@@ ")]
    old, new = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 9))
    at = data.draw(st.sampled_from(headers))
    start = lines[at].split(b",")[0].split(b" ")[1]
    lines[at] = b"@@ %b,%d +%b,%d @@" % (start, old, start[1:], new)
    patch = b"\n".join(lines)
    try:
        applied = branch.apply(patch)
    except REFUSALS:
        return
    assert applied.tree == recounted(branch, patch)
