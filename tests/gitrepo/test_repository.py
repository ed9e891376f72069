"""Which repositories are served, what is read from them, and what a commit is made of."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.dying import EACH_CALL, killed_after_calls

from autopack.domain.rehearsal import GIT_NEEDED
from autopack.gitrepo import Base, RefUpdate, Repository, RepositoryUnusableError

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.gitrepo.conftest import History, OpenRepository

    from autopack.config import Settings

pytestmark = pytest.mark.integration

AT = datetime(2026, 1, 1, tzinfo=UTC)
NEW_FILE = (
    b"diff --git a/d/new b/d/new\nnew file mode 100644\n--- /dev/null\n+++ b/d/new\n"
    b"@@ -0,0 +1 @@\n+hello\n"
)


def apply_and_move(repository: Repository) -> str:
    """Do the whole of what a submission does to git."""
    head = repository.base().commit
    tree = repository.apply(head, NEW_FILE, lambda changes: None).tree
    commit = repository.write_commit(parents=[head], tree=tree, message="x", at=AT)
    with repository.prepare_refs([RefUpdate("refs/heads/autonomous/run", commit, None)]) as moved:
        moved.commit()
    return commit


def test_a_repository_is_found_from_a_folder_within(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    repository = open_repository(git_repo.path / "src")
    assert repository.git_dir == git_repo.path / ".git"
    assert not repository.is_bare
    assert repository.base() == Base("main", git_repo.git("rev-parse", "HEAD"))
    repository.check()


def test_a_bare_repository_is_served(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    git_repo.git("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    repository = open_repository(tmp_path / "bare.git")
    commit = apply_and_move(repository)
    assert repository.is_bare
    bare = type(git_repo)(tmp_path / "bare.git")
    assert bare.git("show", "autonomous/run:d/new") == "hello"
    assert bare.git("rev-parse", "autonomous/run") == commit
    assert repository.checked_out_in("main") is None


def test_a_linked_worktree_is_served_and_stays_as_it_is(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    git_repo.git("worktree", "add", "--quiet", "-b", "side", str(tmp_path / "linked"))
    linked = type(git_repo)(tmp_path / "linked")
    repository = open_repository(linked.path)
    apply_and_move(repository)
    assert repository.git_dir == git_repo.path / ".git"
    assert linked.git("status", "--porcelain") == git_repo.git("status", "--porcelain") == ""
    assert linked.git("show", "autonomous/run:d/new") == "hello"
    assert repository.checked_out_in("side") == linked.path
    assert repository.checked_out_in("refs/heads/main") == git_repo.path


def test_a_shallow_clone_is_served(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    git_repo.commit({"a": "1\n"})
    git_repo.git("clone", "--quiet", "--depth=1", f"file://{git_repo.path}", str(tmp_path / "c"))
    repository = open_repository(tmp_path / "c")
    base = repository.base().commit
    commit = apply_and_move(repository)
    assert repository.ahead_behind(commit, base) == (1, 0)
    assert repository.try_merge(base, commit).mergeable


def test_a_clone_that_borrows_objects_is_served(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    git_repo.git("clone", "--quiet", "--shared", ".", str(tmp_path / "c: with colon"))
    apply_and_move(open_repository(tmp_path / "c: with colon"))
    clone = type(git_repo)(tmp_path / "c: with colon")
    assert clone.git("show", "autonomous/run:d/new") == "hello"
    assert clone.git("fsck", "--strict", "--no-dangling") == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_repository_of_another_owner_is_served(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    for path in [git_repo.path, *git_repo.path.rglob("*")]:
        os.chown(path, 12345, 12345)
    repository = open_repository(git_repo.path)
    commit = apply_and_move(repository)
    assert repository.read_ref("refs/heads/autonomous/run") == commit


@pytest.mark.parametrize(
    ("place", "owner", "name"),
    [("repo/.git/objects", os, "fchmod"), ("home/scratch", tempfile, "mkdtemp")],
    ids=["objects", "scratch"],
)
def test_a_full_disk_is_said_to_be_one(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, place: str, owner: Any, name: str
) -> None:

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(RepositoryUnusableError, match=f"{place}: No space left"):
        apply_and_move(repository)


def unusable(open_repository: OpenRepository, path: Path, **settings: object) -> str:
    with pytest.raises(RepositoryUnusableError) as caught:
        open_repository(path, **settings)
    return caught.value.detail


def test_what_cannot_be_served_is_refused_by_name(
    git_repo: GitRepo,
    open_repository: OpenRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "AUTOPACK_REPO_PATH" in unusable(open_repository, tmp_path / "nowhere")

    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", "/")
    (tmp_path / "plain").mkdir()
    assert "git init" in unusable(open_repository, tmp_path / "plain")

    subprocess.run(["git", "init", "-q", "-b", "main", tmp_path / "empty"], check=True)
    assert "first commit" in unusable(open_repository, tmp_path / "empty")

    subprocess.run(["git", "init", "-q", "--object-format=sha256", tmp_path / "sha"], check=True)
    assert "SHA256" in unusable(open_repository, tmp_path / "sha")

    git_repo.git("config", "uploadpack.allowFilter", "true")
    url = f"file://{git_repo.path}"
    git_repo.git("clone", "--quiet", "--filter=blob:none", url, str(tmp_path / "partial"))
    assert "partial clone" in unusable(open_repository, tmp_path / "partial")

    git_repo.git("config", "core.repositoryFormatVersion", "1")
    git_repo.git("config", "extensions.refStorage", "reftable")
    assert "git" in unusable(open_repository, git_repo.path)


@pytest.mark.parametrize("words", ["git version 2.37.4", "nonsense"])
def test_a_git_that_is_too_old_is_refused(
    git_repo: GitRepo,
    open_repository: OpenRepository,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/git").write_text(f"#!/bin/sh\necho {words}\n")
    (tmp_path / "bin/git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert GIT_NEEDED in unusable(open_repository, git_repo.path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in unusable(open_repository, git_repo.path)


def test_documents_name_the_same_oldest_git() -> None:
    root = Path(__file__).parents[2]
    texts = [path.read_text() for path in (root / "CONTRIBUTING.md", *root.glob("docs/*.md"))]
    told = {version for text in texts for version in re.findall(r"\bgit (\d+\.\d+)", text)}
    assert {f"git {version} or newer" for version in told} == {GIT_NEEDED}


def test_a_repository_that_was_removed_is_reported_as_missing(
    git_repo: GitRepo, repository: Repository
) -> None:
    os.rename(git_repo.path, git_repo.path.with_name("elsewhere"))
    with pytest.raises(RepositoryUnusableError, match="is missing or not"):
        repository.check()


def test_the_base_is_the_one_asked_for_else_main_else_the_default(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    first = git_repo.git("rev-parse", "main")
    second = git_repo.commit({"a": "1\n"})
    git_repo.git("branch", "release/1", first)
    assert open_repository(git_repo.path).base() == Base("main", second)
    assert open_repository(git_repo.path, base_branch="release/1").base() == Base(
        "release/1", first
    )
    assert "AUTOPACK_BASE_BRANCH" in unusable(open_repository, git_repo.path, base_branch="missing")
    git_repo.git("branch", "-m", "main", "trunk")
    assert open_repository(git_repo.path).base() == Base("trunk", second)
    git_repo.git("checkout", "--quiet", "--detach")
    assert "AUTOPACK_BASE_BRANCH" in unusable(open_repository, git_repo.path)


def test_our_own_folder_within_the_checkout_stays_out_of_its_status(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    apply_and_move(open_repository(git_repo.path, home=git_repo.path / ".autopack"))
    assert git_repo.git("status", "--porcelain") == ""


def test_scratch_that_a_killed_service_left_is_cleared_at_the_start(
    git_repo: GitRepo, open_repository: OpenRepository, tmp_path: Path
) -> None:
    scratch = tmp_path / "home/scratch"
    old, young = scratch / "patch-old", scratch / "patch-young"
    for folder in (old, young):
        (folder / "objects").mkdir(parents=True)
    os.utime(old, (1, 1))
    open_repository(git_repo.path)
    assert [path.name for path in scratch.iterdir()] == ["patch-young"]


@EACH_CALL
def test_wherever_a_first_start_is_killed_the_home_gets_its_files_whole(
    repository: Repository, settings: Settings, every: int
) -> None:
    home = settings.home
    for _ in killed_after_calls(lambda: repository._write_home(home), every):
        repository._write_home(home)
        assert (home / ".gitignore").read_text() == "*\n"
        assert (home / "project_id").read_text() != ""
        shutil.rmtree(home)


def test_opening_it_writes_nothing_that_git_of_another_process_may_read(
    repository: Repository, settings: Settings
) -> None:
    own = [settings.home / "git" / name for name in ("HEAD", "config")]
    before = [file.stat().st_mtime_ns for file in own]
    Repository.open(settings)
    assert [file.stat().st_mtime_ns for file in own] == before
    own[0].write_text("")  # a power cut
    Repository.open(settings)
    assert own[0].read_text() == "ref: refs/heads/none\n"


def test_a_commit_is_a_pure_function_of_its_arguments(
    git_repo: GitRepo, repository: Repository
) -> None:
    head = repository.base().commit
    tree = repository.tree_of(head)
    message = "Build p1\n\nAutopack-Run: ü"
    elsewhere = AT.astimezone(timezone(timedelta(hours=5)))
    commit, again = (
        repository.write_commit(parents=[head], tree=tree, message=message, at=at)
        for at in (AT, elsewhere)
    )
    assert commit == again
    assert git_repo.git("cat-file", "commit", commit) == (
        f"tree {tree}\nparent {head}\n"
        "author Autopack <autopack@localhost> 1767225600 +0000\n"
        "committer Autopack <autopack@localhost> 1767225600 +0000\n\n" + message
    )
    assert repository.has_commit(commit)
    assert not repository.has_commit("1" * 40)
    assert not repository.has_commit(tree)
    tag = repository.write_tag(name="autonomous/run/p1", commit=commit, message="before p1", at=AT)
    assert git_repo.git("cat-file", "tag", tag) == (
        f"object {commit}\ntype commit\ntag autonomous/run/p1\n"
        "tagger Autopack <autopack@localhost> 1767225600 +0000\n\nbefore p1"
    )
    git_repo.git("fsck", "--strict", "--no-dangling")


@pytest.mark.parametrize(
    ("message", "at"), [("a\0b", AT), ("x", datetime(2026, 1, 1))]  # noqa: DTZ001 - must be refused
)
def test_a_commit_that_git_would_misread_is_not_written(
    repository: Repository, message: str, at: datetime
) -> None:
    head = repository.base().commit
    with pytest.raises(ValueError, match=r"NUL|zone"):
        repository.write_commit(parents=[], tree=repository.tree_of(head), message=message, at=at)


def test_a_missing_commit_is_named(repository: Repository) -> None:
    with pytest.raises(RepositoryUnusableError, match="1" * 40):
        repository.tree_of("1" * 40)


def test_what_differs_between_two_commits(history: History, repository: Repository) -> None:
    text = b"".join(b"%d\n" % number for number in range(20))
    old = history.commit({"a": text, "b": b"\0", "gone": b"1\n2\n"})
    new = history.commit({"moved/a": text, "b": b"\0\1", "new\nline": b"1\n"})
    stat = repository.diff_stat(old, new)
    assert sorted(stat.files) == ["a", "b", "gone", "moved/a", "new\nline"]
    assert (stat.insertions, stat.deletions) == (21, 22)
    diff = repository.diff(old, new)
    assert b"rename from a\nrename to moved/a" in diff
    applied = repository.dry_apply(old, diff, lambda changes: None)
    assert applied.tree == history.tree(new)
    assert repository.diff(old, old) == b""
    assert repository.diff_stat(old, old).files == ()


def test_whether_two_commits_merge_is_told_without_a_trace(
    git_repo: GitRepo, history: History, repository: Repository
) -> None:
    base = repository.base().commit
    ours = git_repo.commit({"src/app.py": "VALUE = 2\n", "b": "b\n"})
    git_repo.git("checkout", "--quiet", "-b", "side", base)
    theirs = git_repo.commit({"src/app.py": "VALUE = 3\n", "ü b": "c\n"})
    clean = git_repo.commit({"src/app.py": "VALUE = 1\n"})
    files = sorted((git_repo.path / ".git/objects").rglob("*"))

    conflict, merge = repository.try_merge(ours, theirs), repository.try_merge(ours, clean)

    assert (conflict.mergeable, conflict.conflicts) == (False, ("src/app.py",))
    assert (merge.mergeable, merge.conflicts) == (True, ())
    assert sorted((git_repo.path / ".git/objects").rglob("*")) == files
    assert repository.ahead_behind(ours, clean) == (1, 2)
    unrelated = history.commit({"src/app.py": b"x\n"})
    assert not repository.try_merge(ours, unrelated).mergeable


def test_objects_in_a_repository_shared_by_a_group_stay_writable_for_it(
    git_repo: GitRepo, open_repository: OpenRepository
) -> None:
    (git_repo.path / ".git/objects").chmod(0o2775)
    commit = apply_and_move(open_repository(git_repo.path))
    assert (git_repo.path / f".git/objects/{commit[:2]}").stat().st_mode & 0o7777 == 0o2775
