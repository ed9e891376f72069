"""Commits and tags are made again, to their recorded ids, without a process where that is safe."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from autopack.gitrepo import Repository, RepositoryUnusableError, StoredCommit, StoredTag

from .conftest import History, State

if TYPE_CHECKING:
    from tests.conftest import GitRepo

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LINES = b"".join(b"line %d\n" % number for number in range(40))
BEFORE: dict[str, bytes | tuple[str, bytes]] = {
    "text.txt": LINES,
    "bare.txt": b"no newline",
    "crlf.txt": LINES.replace(b"\n", b"\r\n"),
    "link": ("120000", b"text.txt"),
    "sub/old.txt": LINES,
    "sub/gone.txt": b"gone\n",
    "data.bin": bytes(range(256)),
}


def changed(**how: bytes) -> State:
    return BEFORE | {name.replace("__", "/").replace("_", "."): data for name, data in how.items()}


def without(*names: str) -> State:
    return {name: value for name, value in BEFORE.items() if name not in names}


BY_PYTHON: dict[str, State] = {
    "lines changed, added and removed": changed(
        text_txt=LINES.replace(b"line 3\n", b"three\nand more\n").replace(b"line 30\n", b"")
    ),
    "a last line without a newline": changed(text_txt=LINES + b"end", bare_txt=b"no\nnewline\n"),
    "lines with CR LF": changed(crlf_txt=LINES.replace(b"\n", b"\r\n") + b"x\r\n"),
    "new files in new folders": changed(new__deep__file_txt=b"new\n", empty_txt=b""),
    "deleted files, a folder with them": without("sub/old.txt", "sub/gone.txt"),
    "a renamed and changed file": {**without("sub/old.txt"), "sub/new.txt": LINES + b"more\n"},
    "a file that becomes executable": BEFORE | {"text.txt": ("100755", LINES)},
    "a link that becomes a file": BEFORE | {"link": b"no link\n"},
}
BY_GIT: dict[str, State] = {"a binary file": changed(data_bin=bytes(256))}


def recorded(history: History, repository: Repository, after: State) -> StoredCommit:
    """Return what is recorded of a commit that leads to a state; its objects are nowhere."""
    old, new = history.commit(BEFORE), history.commit(after)
    patch, tree = history.patch(old, new, "-M"), history.tree(new)
    sha = repository.write_commit(parents=[old], tree=tree, message="Do it", at=AT)
    history.repo.git("update-ref", "-d", f"refs/states/{history.count}")
    history.repo.git("repack", "-adq")
    history.repo.git("prune", "--expire=now")
    assert not repository.has_commit(sha)
    return StoredCommit(sha, old, tree, "Do it", AT, None, patch)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commits to which git itself has applied a patch again."""
    heads: list[str] = []
    apply_again = Repository.apply_again

    def ask(repository: Repository, head: str, patch: bytes) -> str:
        heads.append(head)
        return apply_again(repository, head, patch)

    monkeypatch.setattr(Repository, "apply_again", ask)
    return heads


@pytest.mark.parametrize("name", [*BY_PYTHON, *BY_GIT])
def test_a_commit_is_made_again_to_the_same_id_by_git_only_where_python_cannot(
    history: History, repository: Repository, asked: list[str], git_repo: GitRepo, name: str
) -> None:
    commit = recorded(history, repository, (BY_PYTHON | BY_GIT)[name])
    remaking = repository.remaking(durably=False)
    remaking.commit(commit)
    assert not repository.has_commit(commit.sha)
    remaking.install()
    assert git_repo.git("rev-parse", f"{commit.sha}^{{tree}}") == commit.tree
    git_repo.git("fsck", "--strict", "--no-dangling", commit.sha)
    assert asked == [commit.parent] * (name in BY_GIT)


def test_commits_and_a_tag_are_made_on_commits_that_are_not_in_the_repository_yet(
    history: History, repository: Repository, git_repo: GitRepo
) -> None:
    first = recorded(history, repository, changed(text_txt=b"first\n"))
    lines = b"--- a/text.txt\n+++ b/text.txt\n@@ -1 +1 @@\n-first\n+second\n"
    patch = b"diff --git a/text.txt b/text.txt\n" + lines
    tree = history.tree(history.commit(changed(text_txt=b"second\n")))
    sha = repository.write_commit(parents=[first.sha], tree=tree, message="Again", at=AT)
    second = StoredCommit(sha, first.sha, tree, "Again", AT, None, patch)
    oid = repository.write_tag(name="autonomous/run/p1", commit=sha, message="Again", at=AT)
    for each in (sha, oid):
        (git_repo.path / ".git/objects" / each[:2] / each[2:]).unlink()
    remaking = repository.remaking(durably=True)
    remaking.commit(first)
    remaking.commit(second)
    remaking.tag(StoredTag(oid, "autonomous/run/p1", sha, "Again", AT, None))
    remaking.install()
    git_repo.git("fsck", "--strict", "--no-dangling", oid)
    assert git_repo.git("show", f"{oid}^{{commit}}:text.txt") == "second"


@pytest.mark.parametrize("wrong", ["sha", "tree"])
def test_what_comes_out_otherwise_than_recorded_is_not_put_into_the_repository(
    history: History, repository: Repository, wrong: str
) -> None:
    commit = recorded(history, repository, changed(text_txt=b"other\n"))
    ids = {"sha": commit.sha, "tree": commit.tree, wrong: "1" * 40}
    other = replace(commit, sha=ids["sha"], tree=ids["tree"])
    remaking = repository.remaking(durably=False)
    with pytest.raises(RepositoryUnusableError, match="1" * 40):
        remaking.commit(other)
    remaking.install()
    assert not repository.has_commit(commit.sha)


def test_damaged_files_of_objects_are_written_anew_where_they_are_to_be_replaced(
    history: History, repository: Repository, git_repo: GitRepo
) -> None:
    commit = recorded(history, repository, changed(text_txt=b"other\n"))
    remaking = repository.remaking(durably=True)
    remaking.commit(commit)
    remaking.install()
    for path in (git_repo.path / ".git/objects").glob("??/*"):
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[:10])
    again = repository.remaking(durably=True, replaces=True)
    again.commit(commit)
    again.install()
    git_repo.git("fsck", "--strict", "--no-dangling", commit.sha)
