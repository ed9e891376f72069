"""A patch becomes the tree that git itself would make of it, and nothing else changes."""

from __future__ import annotations

import os
import random
import re
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import strategies as st
from tests.campaigns import random_examples

from autopack.domain.changes import Violation
from autopack.gitrepo import (
    ChangeSet,
    GitTimeoutError,
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
    PatchTooLargeError,
    RefUpdate,
    Repository,
    objects,
)
from autopack.gitrepo.apply import _explain as explain

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.gitrepo.conftest import History, OpenRepository, State

pytestmark = pytest.mark.integration

AT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.unit
@pytest.mark.parametrize(
    "said",
    [
        "invalid path 'a/.git/x'",
        "affected file 'a/.git/x' is beyond a symbolic link",
    ],
)
def test_a_path_that_git_itself_refuses_is_named(said: str) -> None:
    with pytest.raises(PatchPolicyError) as refused:
        explain(1, f"error: {said}\n", [])
    (violation,) = refused.value.violations
    assert (violation.path, violation.rule) == ("a/.git/x", "path")


TEXT = b"".join(b"line %d\n" % number for number in range(30))
CHANGED = TEXT.replace(b"line 7\n", b"seven\n")
BINARY = bytes(range(256)) * 20


def allow(changes: ChangeSet) -> None:
    """A policy check that accepts everything."""


def refuse(changes: ChangeSet) -> None:
    raise PatchPolicyError([Violation("a", "rule", "is refused")])


KINDS: dict[str, tuple[State, State]] = {
    "add": ({"a": TEXT}, {"a": TEXT, "b": b"new\n"}),
    "add_in_new_folders": ({"a": TEXT}, {"a": TEXT, "x/y/z/w/b": b"new\n"}),
    "modify": ({"d/a": TEXT, "d/b": TEXT}, {"d/a": CHANGED, "d/b": TEXT}),
    "delete": ({"a": TEXT, "b": TEXT}, {"a": TEXT}),
    "delete_the_last_file_of_folders": ({"x/y/z/a": TEXT, "b": TEXT}, {"b": TEXT}),
    "delete_all": ({"x/a": TEXT, "b": TEXT}, {}),
    "rename": ({"d/a": TEXT, "k": b"k\n"}, {"e/f/a": TEXT, "k": b"k\n"}),
    "rename_with_change": ({"a": TEXT}, {"b": CHANGED}),
    "swap_by_rename": ({"a": TEXT, "b": BINARY}, {"b": TEXT, "a": BINARY}),
    "copy": ({"a": TEXT, "c": b"c"}, {"a": TEXT + b"more\n", "b": TEXT, "c": b"c"}),
    "mode": ({"a": TEXT}, {"a": ("100755", TEXT)}),
    "mode_back_with_change": ({"a": ("100755", TEXT)}, {"a": CHANGED}),
    "link": ({"a": TEXT}, {"a": TEXT, "l": ("120000", b"a")}),
    "link_target": ({"a": TEXT, "l": ("120000", b"a")}, {"a": TEXT, "l": ("120000", b"b")}),
    "file_to_link": ({"a": TEXT, "l": b"a\n"}, {"a": TEXT, "l": ("120000", b"a")}),
    "link_to_folder": ({"l": ("120000", b"a")}, {"l/x": TEXT}),
    "binary": ({"a": BINARY}, {"a": BINARY[:1000] + b"\0\1\2" + BINARY[1000:]}),
    "binary_new": ({"a": TEXT}, {"a": TEXT, "b": BINARY}),
    "binary_deleted": ({"a": TEXT, "b": BINARY}, {"a": TEXT}),
    "crlf": ({"a": TEXT.replace(b"\n", b"\r\n")}, {"a": CHANGED.replace(b"\n", b"\r\n")}),
    "crlf_mixed": ({"a": b"1\r\n2\n3\r\n"}, {"a": b"1\n2\r\n3\r\n"}),
    "no_newline_at_end": ({"a": b"1\n2"}, {"a": b"1\n2\n3"}),
    "newline_at_end_lost": ({"a": b"1\n2\n"}, {"a": b"1\n2"}),
    "trailing_whitespace": ({"a": b"1\n"}, {"a": b"1 \t \n\n\n"}),
    "empty_file": ({"a": TEXT}, {"a": TEXT, "e": b""}),
    "empty_file_deleted": ({"a": TEXT, "e": b""}, {"a": TEXT}),
    "emptied": ({"a": TEXT}, {"a": b""}),
    "file_to_folder": ({"a": TEXT, "z": b"z"}, {"a/b/c": TEXT, "z": b"z"}),
    "folder_to_file": ({"a/b/c": TEXT, "a/d": b"d", "z": b"z"}, {"a": TEXT, "z": b"z"}),
    "names_around_the_slash": (
        {"a-b": TEXT, "a/b": TEXT, "a.b": TEXT, "a0": TEXT},
        {"a-b": CHANGED, "a/b": CHANGED, "a.b": CHANGED, "a0": CHANGED, "a/c": b"", "a-": b""},
    ),
    "unicode": ({"ä/ö ü": TEXT, "日本": TEXT}, {"ä/ö ü": CHANGED, "日本語": TEXT}),
    "not_utf_8": ({"k": b"k", "\udcff\udcfe": TEXT}, {"k": b"k", "\udcff\udcfe": CHANGED}),
    "quoted": ({'a"b\\c\td\ne': TEXT}, {'a"b\\c\td\ne': CHANGED, "tab\there": b"x\n"}),
    "spaces": ({" a b ": TEXT, "b/ c": TEXT}, {" a b ": CHANGED, "b/ d": TEXT}),
    "like_a_header": ({"a": b"-- x\n"}, {"a": b"++ x\n-- y\n@@ -1 +1 @@\n"}),
    "long_name": ({"a": TEXT}, {"a": TEXT, "n" * 250 + "/" + "m" * 250: TEXT}),
}


@pytest.mark.parametrize("options", [(), ("-M", "-C", "--find-copies-harder")], ids=["", "moves"])
@pytest.mark.parametrize(("old", "new"), KINDS.values(), ids=KINDS)
def test_every_kind_of_change_gives_the_tree_that_git_has(
    history: History,
    repository: Repository,
    old: State,
    new: State,
    options: tuple[str, ...],
) -> None:
    head, goal = history.commit(old), history.commit(new)
    patch = history.patch(head, goal, *options)
    judged: list[ChangeSet] = []

    assert repository.dry_apply(head, patch, judged.append).tree == history.tree(goal)
    applied = repository.apply(head, patch, judged.append)

    assert applied.tree == history.tree(goal)
    assert not applied.merged
    raw = history.repo.git("diff-tree", "-r", "-z", "--no-renames", "--no-abbrev", head, goal)
    assert [
        f":{each.old_mode:06o} {each.new_mode:06o} {each.old_oid or '0' * 40}"
        f" {each.new_oid or '0' * 40} "
        for each in applied.changes
    ] == [word[: word.rindex(" ") + 1] for word in raw.split("\0")[:-1:2]]
    assert [each.path for each in applied.changes] == raw.split("\0")[1:-1:2]
    assert judged[0].files == applied.changes
    history.repo.git("fsck", "--strict", "--full", "--no-dangling")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "declares less": lambda patch: patch.replace(b"literal 5120", b"literal 5119"),
    "declares more": lambda patch: patch.replace(b"literal 5120", b"literal 5121"),
    "is another alphabet": lambda patch: patch.replace(b"zc", b'z"', 1),
    "has a letter less": lambda patch: patch.replace(b"zc", b"z", 1),
    "has a line less": lambda patch: re.sub(rb"(literal 5120\n)z.*\n", rb"\1", patch),
    "has a damaged way back": lambda patch: patch.replace(b"literal 0\n", b"literal 9\n"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_patch_with_a_corrupt_binary_part_is_refused_as_a_whole(
    history: History, repository: Repository, damage: Callable[[bytes], bytes]
) -> None:
    """git ends its reading there, with a message, and applies what stands before it."""
    old = history.commit({"a": TEXT})
    patch = history.patch(old, history.commit({"a": CHANGED, "b": BINARY}))
    assert damage(patch) != patch
    with pytest.raises(PatchMalformedError, match="corrupt binary patch"):
        repository.dry_apply(old, damage(patch), allow)


NAMES = ("a", "b", "a/b", "a/c", "a-b", "d/e/f", "d/e", "d", "ü/x y")
CONTENTS = (b"", b"1\n", b"1\n2\n3\n", b"1\r\n2", b"\0\1\2", TEXT, CHANGED)


def states() -> st.SearchStrategy[dict[str, bytes | tuple[str, bytes]]]:
    """Any tree of a few files: names that stand in each other's way are left out."""
    values = st.tuples(
        st.sampled_from(["100644", "100755"]), st.sampled_from(CONTENTS)
    ) | st.tuples(st.just("120000"), st.sampled_from([b"a", b"d/e"]))
    return st.dictionaries(st.sampled_from(NAMES), values, max_size=6).map(
        lambda files: {
            name: value
            for name, value in files.items()
            if not any(name.startswith(f"{other}/") for other in files)
        }
    )


@random_examples(5, 15, derandomize=True, walk=st.lists(states(), min_size=2, max_size=4))
def test_patches_of_a_history_give_its_trees(
    history: History, repository: Repository, walk: list[dict[str, bytes | tuple[str, bytes]]]
) -> None:
    commits = [history.commit(state) for state in walk]
    head = commits[0]
    for old, new in pairwise(commits):
        if history.tree(old) == history.tree(new):
            continue
        # git refuses its own patch that renames a link `a` to `a/b`.
        patch = history.patch(old, new, "--no-renames")
        applied = repository.apply(head, patch, allow)
        head = repository.write_commit(parents=[head], tree=applied.tree, message="x", at=AT)
        assert history.tree(head) == history.tree(new)


def test_a_long_history_in_wide_and_deep_folders_is_applied_to_identical_trees(
    history: History, repository: Repository
) -> None:
    dice = random.Random(4)
    files: dict[str, bytes | tuple[str, bytes]] = {
        f"{number % 7}/{number % 5}/{'x/' * (number % 3)}{number}": TEXT + b"%d\n" % number
        for number in range(300)
    }
    commits = [history.commit(files)]
    for step in range(25):
        for path in dice.sample(sorted(files), 4):
            value = files.pop(path)
            if dice.random() < 0.3:
                files[f"{path}-moved/{step}"] = value
            elif dice.random() < 0.8:
                files[path] = (b"%d\n" % step) + (value if isinstance(value, bytes) else b"")
        commits.append(history.commit(files))
    head = commits[0]
    for old, new in pairwise(commits):
        applied = repository.apply(head, history.patch(old, new, "-M"), allow)
        head = repository.write_commit(parents=[head], tree=applied.tree, message="x", at=AT)
        assert applied.tree == history.tree(new)


# What stays untouched


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder but the objects and our refs, which are what we may write."""
    ours = (".git/objects/", ".git/refs/heads/autonomous/", ".git/refs/tags/autonomous/")
    found = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if not name.startswith(ours) and not path.is_dir():
            found[name] = (
                path.lstat().st_mtime_ns,
                b"" if path.is_symlink() else path.read_bytes(),
            )
    return found


HOSTILE = {
    "core.hooksPath": "evil-hooks",
    "core.splitIndex": "true",
    "core.fsmonitor": "evil-hooks/post-index-change",
    "core.autocrlf": "true",
    "core.whitespace": "trailing-space,cr-at-eol",
    "core.attributesFile": "evil-attributes",
    "core.logAllRefUpdates": "always",
    "apply.whitespace": "fix",
    "apply.ignoreWhitespace": "change",
    "diff.noprefix": "true",
    "filter.evil.clean": "touch fired-clean; cat",
    "filter.evil.smudge": "touch fired-smudge; cat",
    "filter.evil.required": "true",
    "index.version": "4",
    "commit.gpgSign": "true",
    "gpg.program": "false",
}


def make_hostile(repo: GitRepo) -> None:
    hooks = repo.path / "evil-hooks"
    hooks.mkdir()
    names = ("post-index-change", "reference-transaction", "pre-commit", "update", "post-commit")
    for name in names:
        for folder in (hooks, repo.path / ".git/hooks"):
            hook = folder / name
            folder.mkdir(exist_ok=True)
            hook.write_text(f"#!/bin/sh\ntouch '{repo.path}/fired-{name}'\nexit 1\n")
            hook.chmod(0o755)
    (repo.path / "evil-attributes").write_text("* text eol=crlf filter=evil\n")
    (repo.path / ".git/info").mkdir(exist_ok=True)
    (repo.path / ".git/info/attributes").write_text("* filter=evil ident\n")
    (repo.path / ".gitattributes").write_text("* filter=evil ident eol=crlf\n")
    with (repo.path / ".git/config").open("a") as config:
        for name, value in HOSTILE.items():
            section, _, key = name.rpartition(".")
            first, _, second = section.partition(".")
            title = f'{first} "{second}"' if second else first
            config.write(f'[{title}]\n\t{key} = "{value}"\n')


def make_dirty(repo: GitRepo) -> None:
    (repo.path / "src/app.py").write_text("VALUE = 'not committed'\n")
    (repo.path / "staged").write_text("staged\n")
    repo.git("add", "staged")
    (repo.path / "untracked").write_text("untracked\n")
    (repo.path / "README.md").unlink()


@pytest.mark.safety_critical
@pytest.mark.parametrize("is_hostile", [False, True], ids=["plain", "hostile"])
@pytest.mark.parametrize("is_dirty", [False, True], ids=["clean", "dirty"])
def test_the_checkout_and_its_settings_are_neither_read_nor_written(
    history: History,
    git_repo: GitRepo,
    open_repository: OpenRepository,
    is_hostile: bool,
    is_dirty: bool,
) -> None:
    old = history.commit({"README.md": b"# \t \n", "src/app.py": b"$Id$\n 1 \n" + TEXT})
    new = history.commit({"README.md": b"# \t \n", "src/app.py": b"$Id$\n 1 \r\n \t\n" + CHANGED})
    patch = history.patch(old, new)
    goal = history.tree(new)
    if is_dirty:
        make_dirty(git_repo)
    if is_hostile:
        make_hostile(git_repo)
    before = contents(git_repo.path)

    repository = open_repository(git_repo.path)
    repository.dry_apply(old, patch, allow)
    tree = repository.apply(old, patch, allow).tree
    commit = repository.write_commit(parents=[old], tree=tree, message="x", at=AT)
    tag = repository.write_tag(name="autonomous/run/p1", commit=commit, message="x", at=AT)
    updates = [
        RefUpdate("refs/heads/autonomous/run", commit, None),
        RefUpdate("refs/tags/autonomous/run/p1", tag, None),
    ]
    with repository.prepare_refs(updates) as prepared:
        prepared.commit()
    repository.try_merge(old, commit)
    repository.diff(old, commit)

    assert tree == goal
    assert contents(git_repo.path) == before


def test_the_environment_of_the_service_does_not_reach_git(
    history: History, repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    head, new = history.commit({"a": TEXT}), history.commit({"a": CHANGED})
    patch = history.patch(head, new)
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home/.gitconfig").write_text("[core]\n\thooksPath = /x\n[broken\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "apply.whitespace")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "error")

    applied = repository.apply(head, patch, allow)
    monkeypatch.undo()

    assert applied.tree == history.tree(new)


# What a patch costs, and what it leaves


def object_files(repo: GitRepo) -> set[Path]:
    return {path for path in (repo.path / ".git/objects").rglob("*") if path.is_file()}


def test_no_object_is_kept_unless_the_policy_accepts_the_patch(
    history: History, repository: Repository, tmp_path: Path
) -> None:
    head = history.commit({"a": TEXT})
    before = object_files(history.repo)

    repository.dry_apply(head, NEW_FILE, allow)
    with pytest.raises(PatchPolicyError):
        repository.apply(head, NEW_FILE, refuse)
    assert object_files(history.repo) == before

    repository.apply(head, NEW_FILE, allow)
    assert len(object_files(history.repo) - before) == 3  # the file, its folder, the root
    assert list((tmp_path / "home/scratch").iterdir()) == []


@pytest.mark.safety_critical
@pytest.mark.parametrize("is_at_once", [False, True], ids=["each file", "the file system"])
def test_a_new_object_is_on_disk_before_it_gets_its_name(
    history: History, repository: Repository, monkeypatch: pytest.MonkeyPatch, is_at_once: bool
) -> None:
    """What is synced alone is a file before its rename and a folder after it."""
    head = history.commit({"a": TEXT})
    steps: list[tuple[str, str]] = []
    names: dict[int, str] = {}
    opened, synced, renamed = os.open, os.fsync, os.rename

    def open_(path: Any, *rest: Any, **more: Any) -> int:
        descriptor = opened(path, *rest, **more)
        names[descriptor] = str(path)
        return descriptor

    def fsync(descriptor: int) -> None:
        steps.append(("fsync", names[descriptor]))
        synced(descriptor)

    def sync_all(descriptor: int) -> None:
        steps.append(("syncfs", names[descriptor]))

    def rename(source: Any, target: Any) -> None:
        assert is_at_once or ("fsync", str(source)) in steps
        steps.append(("rename", str(target)))
        renamed(source, target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(objects, "sync_file_system", sync_all)
    monkeypatch.setattr(objects, "is_quick_to_sync", lambda _: is_at_once)
    before = object_files(history.repo)
    repository.apply(head, NEW_FILE, allow)
    monkeypatch.undo()

    new = {str(path) for path in object_files(history.repo) - before}
    assert {name for step, name in steps if step == "rename"} == new
    if is_at_once:
        store = ("syncfs", str(repository.objects.folder))
        kinds = [step for step in steps if step[0] != "rename"]
        assert (steps[0], steps[-1], kinds) == (store, store, [store, store])
    else:
        last = max(number for number, (step, _) in enumerate(steps) if step == "rename")
        assert {str(Path(name).parent) for name in new} <= {name for _, name in steps[last + 1 :]}


def test_the_objects_of_a_change_are_installed_together_each_after_those_that_it_names(
    history: History, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = history.commit({"a": TEXT})
    before = object_files(history.repo)
    made: list[str] = []
    renamed = os.rename

    def rename(source: Any, target: Any) -> None:
        made.append(f"{Path(target).parent.name}{Path(target).name}")
        renamed(source, target)

    new = repository.new_objects()
    tree = repository.apply(head, NEW_FILE, allow, into=new).tree
    commit = repository.write_commit(parents=[head], tree=tree, message="x", at=AT, into=new)
    tag = repository.write_tag(name="t", commit=commit, message="x", at=AT, into=new)
    assert object_files(history.repo) == before
    monkeypatch.setattr(os, "rename", rename)
    new.install()
    monkeypatch.undo()
    kinds = [history.repo.git("cat-file", "-t", oid) for oid in made]
    assert (made[-2:], kinds) == (
        [commit, tag],
        ["blob", *["tree"] * (len(made) - 3), "commit", "tag"],
    )
    assert repository.objects.read(commit)[0] == "commit"


def test_a_patch_for_a_commit_that_is_not_installed_yet_finds_it(
    history: History, repository: Repository
) -> None:
    head, next_, goal = (history.commit({"a": text}) for text in (TEXT, CHANGED, BINARY))
    new = repository.new_objects()
    for old, wanted in ((head, next_), (next_, goal)):
        tree = repository.apply(head, history.patch(old, wanted), allow, into=new).tree
        head = repository.write_commit(parents=[head], tree=tree, message="x", at=AT, into=new)
    new.install()
    assert repository.tree_of(head) == history.tree(goal)


def test_an_object_that_gc_may_prune_is_marked_as_in_use(
    history: History, repository: Repository
) -> None:
    head = history.commit({"a": TEXT})
    before = object_files(history.repo)
    repository.apply(head, NEW_FILE, allow)
    written = object_files(history.repo) - before
    for path in written:
        os.utime(path, (1, 1))

    repository.apply(head, NEW_FILE, allow)

    assert all(path.stat().st_mtime > 1 for path in written)


def test_a_patch_spawns_git_once_and_moving_its_refs_never(
    history: History, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, new = history.commit({"a": TEXT}), history.commit({"a": CHANGED, "b/c": BINARY})
    patch = history.patch(head, new)
    spawned: list[str] = []
    start = subprocess.Popen.__init__

    def count(self: Any, command: list[str], **options: Any) -> None:
        spawned.append(next(word for word in command if word in ("apply", "update-ref")))
        start(self, command, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", count)
    tree = repository.apply(head, patch, allow).tree
    commit = repository.write_commit(parents=[head], tree=tree, message="x", at=AT)
    tag = repository.write_tag(name="autonomous/run/p1", commit=head, message="x", at=AT)
    updates = [
        RefUpdate("refs/heads/autonomous/run", commit, None),
        RefUpdate("refs/tags/autonomous/run/p1", tag, None),
    ]
    with repository.prepare_refs(updates) as prepared:
        prepared.commit()

    assert spawned == ["apply"]


def test_eight_runs_at_once_do_not_meet(history: History, repository: Repository) -> None:
    states: list[State] = [{"a": TEXT + b"%d\n" % step, f"b/{step}": TEXT} for step in range(6)]
    commits = [history.commit(state) for state in states]
    patches = [history.patch(old, new, "-M") for old, new in pairwise(commits)]
    together = threading.Barrier(8)

    def build(number: int) -> str:
        ref, head, at = f"refs/heads/autonomous/run-{number}", commits[0], None
        together.wait()
        for patch in patches:
            tree = repository.apply(head, patch, allow).tree
            head = repository.write_commit(
                parents=[head], tree=tree, message=f"run {number}", at=AT
            )
            with repository.prepare_refs([RefUpdate(ref, head, at)]) as prepared:
                prepared.commit()
            at = head
        return head

    with ThreadPoolExecutor(8) as pool:
        heads = list(pool.map(build, range(8)))

    assert len(set(heads)) == 8
    assert {history.tree(head) for head in heads} == {history.tree(commits[-1])}
    assert [repository.read_ref(f"refs/heads/autonomous/run-{n}") for n in range(8)] == heads


def test_objects_are_found_after_a_repack_and_in_new_alternates(
    history: History, repository: Repository, tmp_path: Path
) -> None:
    git = history.repo.git
    head, new = history.commit({"a": TEXT}), history.commit({"a": CHANGED})
    patch = history.patch(head, new)
    assert repository.apply(head, patch, allow).tree == history.tree(new)
    git("repack", "-adfq")
    git("prune-packed")
    assert repository.apply(head, patch, allow).tree == history.tree(new)
    git("gc", "--quiet", "--prune=now")
    assert repository.apply(head, patch, allow).tree == history.tree(new)

    git("clone", "--quiet", "--bare", str(history.repo.path), str(tmp_path / "other.git"))
    other = type(history.repo)(tmp_path / "other.git")
    other.git("fetch", "--quiet", str(history.repo.path), "refs/states/*:refs/states/*")
    blob = other.git("hash-object", "-w", "--stdin", stdin="only there\n")
    (history.repo.path / ".git/objects/info/alternates").write_text(f"{other.path}/objects\n")
    git("update-ref", "-d", "refs/states/1")
    git("reflog", "expire", "--expire=all", "--all")
    git("repack", "-adlfq")
    git("prune", "--expire=now")

    assert repository.objects.read(blob) == ("blob", b"only there\n")
    assert repository.apply(head, patch, allow).tree == history.tree(new)


# Refusals

NEW_FILE = (
    b"diff --git a/d/new b/d/new\nnew file mode 100644\n--- /dev/null\n+++ b/d/new\n"
    b"@@ -0,0 +1 @@\n+hello\n"
)


def new_file(path: str, mode: str = "100644", text: str = "hello") -> bytes:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+{text}\n"
    ).encode()


def rename(old: str, new: str, word: str = "rename") -> bytes:
    return (
        f"diff --git a/{old} b/{new}\nsimilarity index 100%\n{word} from {old}\n{word} to {new}\n"
    ).encode()


MODE_ALREADY_SET = b"diff --git a/x b/x\nold mode 100644\nnew mode 100755\n"
SAME_LINES = b"diff --git a/a b/a\n--- a/a\n+++ b/a\n@@ -1,2 +1,2 @@\n-line 0\n+line 0\n line 1\n"
GONE = SAME_LINES.replace(b"-line 0", b"-line 900").replace(b"+line 0", b"+line 901")

REFUSED: dict[str, tuple[bytes, type[Exception]]] = {
    "parent": (new_file("../x"), PatchMalformedError),
    "parent_within": (new_file("a/../../x"), PatchMalformedError),
    "absolute": (new_file("/etc/x"), PatchMalformedError),
    "copy_from_outside": (rename("../../../etc/passwd", "b", "copy"), PatchMalformedError),
    "copy_from_root": (rename("/etc/passwd", "b", "copy"), PatchMalformedError),
    "git_dir": (new_file(".git/hooks/post-commit"), PatchPolicyError),
    "git_dir_upper": (new_file(".GIT/config"), PatchPolicyError),
    "git_dir_below": (new_file("d/.git/config"), PatchPolicyError),
    "git_dir_ntfs": (new_file("git~1/config"), PatchPolicyError),
    "git_dir_ntfs_stream": (new_file(".git::$INDEX_ALLOCATION/config"), PatchPolicyError),
    "git_dir_hfs": (new_file(".g\u200cit/config"), PatchPolicyError),
    "rename_into_git_dir": (rename("a", ".git/config"), PatchPolicyError),
    "through_a_link": (new_file("link/x"), PatchPolicyError),
    "folder_mode": (new_file("x", "040000"), PatchMalformedError),
    "odd_mode": (new_file("x", "104755"), PatchMalformedError),
    "below_a_file": (new_file("a/b"), PatchConflictError),
    "over_a_folder": (new_file("d"), PatchConflictError),
    "there_already": (new_file("a"), PatchConflictError),
    "not_there": (rename("nowhere", "b"), PatchConflictError),
    "other_lines": (GONE, PatchConflictError),
    "mode_already_set": (MODE_ALREADY_SET, PatchAlreadyAppliedError),
    "same_lines": (SAME_LINES, PatchEmptyError),
    "nothing": (b"", PatchMalformedError),
    "prose": (b"Here is the patch you wanted.\n", PatchMalformedError),
    "cut_off": (NEW_FILE[:-8], PatchMalformedError),
}


@pytest.mark.parametrize(("patch", "error"), REFUSED.values(), ids=REFUSED)
def test_a_refused_patch_leaves_everything_as_it_was(
    history: History,
    repository: Repository,
    patch: bytes,
    error: type[Exception],
    tmp_path: Path,
) -> None:
    head = history.commit({"a": TEXT, "d/e": TEXT, "x": ("100755", b""), "link": ("120000", b"d")})
    before, files = object_files(history.repo), contents(history.repo.path)

    with pytest.raises(error) as caught:
        repository.apply(head, patch, allow)

    assert caught.type is error
    assert object_files(history.repo) == before
    assert contents(history.repo.path) == files
    assert list((tmp_path / "home/scratch").iterdir()) == []


def test_a_file_takes_a_folder_s_place_only_when_nothing_is_left_in_it(
    history: History, repository: Repository
) -> None:
    head, one_left = history.commit({"d/a": TEXT, "d/b": TEXT}), history.commit({"d/b": TEXT})
    emptied, goal = history.commit({}), history.commit({"d": b"hello\n"})

    with pytest.raises(PatchConflictError):
        repository.apply(head, history.patch(head, one_left) + new_file("d"), allow)
    applied = repository.apply(head, history.patch(head, emptied) + new_file("d"), allow)

    assert applied.tree == history.tree(goal)


def test_a_change_that_is_there_already_is_not_a_conflict(
    history: History, repository: Repository
) -> None:
    head, new = history.commit({"a": TEXT}), history.commit({"a": CHANGED})
    with pytest.raises(PatchAlreadyAppliedError):
        repository.apply(new, history.patch(head, new), allow)


def test_a_patch_for_an_earlier_commit_is_merged_and_checked(
    history: History, repository: Repository
) -> None:
    nine = TEXT.replace(b"line 9\n", b"nine\n")
    base, theirs = history.commit({"a": TEXT}), history.commit({"a": CHANGED})
    ours = history.tree(history.commit({"a": nine, "b": b"b"}))
    head = repository.write_commit(parents=[base], tree=ours, message="x", at=AT)
    both = history.commit({"a": nine.replace(b"line 7\n", b"seven\n"), "b": b"b"})
    judged: list[ChangeSet] = []

    applied = repository.apply(head, history.patch(base, theirs), judged.append, base_commit=base)

    assert applied.merged
    assert applied.tree == history.tree(both)
    assert [change.path for change in judged[0].files] == ["a"]
    history.repo.git("fsck", "--strict", "--full", "--no-dangling")


def test_git_is_ended_when_it_takes_too_long(
    history: History, git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    head = history.commit({"a": TEXT})
    repository = open_repository(git_repo.path, git_timeout_seconds=1)
    slow = tmp_path / "git"
    slow.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    slow.chmod(0o755)
    runner = type(repository._runner)(str(slow), 0.05, 2**30)
    repository._runner = runner

    with pytest.raises(GitTimeoutError, match="AUTOPACK_GIT_TIMEOUT_SECONDS"):
        repository.apply(head, NEW_FILE, allow)


@pytest.mark.skipif(not Path("/proc/self/limits").exists(), reason="limits are set on Linux alone")
def test_git_is_refused_more_memory_than_it_may_have(
    history: History, git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    large = b"a line of text\n" * 2_000_000
    head, new = history.commit({"a": large}), history.commit({"a": large + b"end\n"})
    patch = history.patch(head, new)
    repository = open_repository(git_repo.path, git_memory_bytes=40_000_000)

    with pytest.raises(PatchTooLargeError, match="AUTOPACK_GIT_MEMORY_BYTES"):
        repository.apply(head, patch, allow)


def test_a_policy_check_gets_contents_and_the_resulting_tree(
    history: History, repository: Repository
) -> None:
    head = history.commit({"a": TEXT, "d/e": TEXT, "l": ("120000", b"a")})
    new = history.commit({"a": CHANGED, "d/f/g": BINARY, "l": ("120000", b"a")})
    seen: list[object] = []

    def look(changes: ChangeSet) -> None:
        old_oid, new_oid = changes.files[0].old_oid, changes.files[0].new_oid
        assert (old_oid and changes.read(old_oid), new_oid and changes.read(new_oid)) == (
            TEXT,
            CHANGED,
        )
        seen.extend(changes.was_there(path) for path in ("a", "d", "d/e", "d/f", "l", "l/x"))
        seen.extend(set(changes.names_in(folder)) for folder in ("", "d", "d/f", "d/e", "l"))
        seen.append((changes.links_before is changes.links, dict(changes.links.targets)))

    repository.apply(head, history.patch(head, new), look)

    assert seen == [
        *(True, True, True, False, True, False),
        *({"a", "d", "l"}, {"f"}, {"g"}, set(), set()),
        (True, {"l": b"a"}),
    ]


def test_a_policy_check_gets_the_links_of_the_whole_resulting_tree(
    history: History, repository: Repository
) -> None:
    old: State = {
        "x/y/z/l": ("120000", b"../a"),
        "m": ("120000", b"x"),
        "f": TEXT,
        "120000 f": TEXT,
    }
    states: list[State] = [
        old,
        {**old, "n/o": ("120000", b"p")},
        {**old, "x/y/z/l": ("120000", b"."), "n/o": TEXT},
        {"m/a": TEXT, "x/y/z/l": TEXT},
    ]
    commits = [history.commit(state) for state in states]
    for before, after, head, new in zip(states, states[1:], commits, commits[1:], strict=False):

        def look(changes: ChangeSet, before: State = before, after: State = after) -> None:
            for table, state in ((changes.links_before, before), (changes.links, after)):
                links = {path: each[1] for path, each in state.items() if isinstance(each, tuple)}
                assert table.targets == links

        for _ in range(2):  # walked, then known
            repository.dry_apply(head, history.patch(head, new), look)


def test_a_tree_s_links_are_found_once_and_patches_read_no_folder_more(
    history: History, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"d{number}/e/f": b"%d" % number for number in range(50)}
    first = history.commit({**files, "l": ("120000", b"d1")})
    second = history.commit({**files, "l": ("120000", b"d2"), "d1/e/f": CHANGED})
    changed: dict[str, bytes | tuple[str, bytes]] = {
        "l": ("120000", b"d2"),
        "d1/e/f": CHANGED,
        "d2/e/f": CHANGED,
    }
    third = history.commit({**files, **changed})
    read: list[str] = []
    objects = repository.objects
    really = objects.read

    def note(oid: str) -> tuple[str, bytes]:
        read.append(oid)
        return really(oid)

    monkeypatch.setattr(objects, "read", note)

    def reads(head: str, new: str) -> int:
        read.clear()
        repository.dry_apply(head, history.patch(head, new), allow)
        return len(read)

    assert reads(first, second) > 100
    assert reads(second, third) < 20
    assert reads(first, second) < 20


HOSTILE_NAMES = (
    *("..", ".", "", "/", "\\..\\", "\\000", "-x", "~", "$HOME", "a", "x", "refs", "hooks"),
    *(".git", ".GIT", ".git ", "git~1", "\\056git", "\u200d.git"),
)
Patch = Callable[[str], bytes]
SOURCES: tuple[Patch, ...] = (
    new_file,
    lambda path: rename("a", path),
    lambda path: rename("a", path, "copy"),
    lambda path: new_file(path, "120000", "../../etc/passwd"),
    lambda path: f'--- /dev/null\n+++ "b/{path}"\n@@ -0,0 +1 @@\n+x\n'.encode(),
    lambda path: new_file("fine") + rename(path, "b", "copy"),
)


@random_examples(
    *(20, 60),
    derandomize=True,
    make=st.sampled_from(SOURCES),
    parts=st.lists(st.sampled_from(HOSTILE_NAMES), min_size=1, max_size=5),
)
def test_no_path_leads_out_of_the_tree(
    history: History, repository: Repository, tmp_path: Path, make: Patch, parts: list[str]
) -> None:
    head = (
        history.commit({"a": TEXT})
        if history.count == 0
        else history.repo.git("rev-parse", "refs/states/1")
    )
    around = contents(tmp_path / "repo")
    outside = {path.name for path in tmp_path.iterdir()}
    try:
        applied = repository.apply(head, make("/".join(parts)), allow)
    except (PatchMalformedError, PatchPolicyError, PatchConflictError, PatchAlreadyAppliedError):
        pass
    else:
        listed = history.repo.git("ls-tree", "-r", "-z", "--name-only", applied.tree).split("\0")
        names = {name.lower() for path in listed for name in path.split("/")}
        assert not names & {"..", ".", ".git", "git~1", "\u200d.git", ".git "}
    assert contents(tmp_path / "repo") == around
    assert {path.name for path in tmp_path.iterdir()} == outside
