"""A ref moves from its recorded to its new commit, or each reason against it has its error."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.dying import killed_after_calls

from autopack.config import Settings
from autopack.gitrepo import (
    GitFailedError,
    RecordedRef,
    RefLockedError,
    RefMovedError,
    RefNameTakenError,
    RefUpdate,
    Repository,
    RepositoryUnusableError,
)
from autopack.gitrepo.process import GitRunner
from autopack.gitrepo.ref_lock import RefLock
from autopack.gitrepo.refs import is_branch_name, is_run_ref

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

BRANCH = "refs/heads/autonomous/run"
TAG = "refs/tags/autonomous/run/p1"


def test_git_that_works_on_a_patch_reaches_no_other_repository(git_repo: GitRepo) -> None:
    """No transport is allowed: what a patch or a configuration names cannot be fetched from."""
    runner = GitRunner(shutil.which("git") or "git", timeout_seconds=30, memory_bytes=2**30)
    other = git_repo.path.as_uri()
    with pytest.raises(GitFailedError, match="transport 'file' not allowed"):
        runner.run("ls-remote", other, folder=git_repo.path, environment={})


@pytest.fixture
def commits(git_repo: GitRepo) -> list[str]:
    return git_repo.put_commits("refs/heads/main", *({"a": f"{number}\n"} for number in range(4)))


def move(repository: Repository, *updates: RefUpdate) -> None:
    with repository.prepare_refs(updates) as prepared:
        prepared.commit()


@pytest.mark.parametrize("is_packed", [False, True], ids=["loose", "packed"])
def test_refs_are_created_and_moved_together(
    git_repo: GitRepo, repository: Repository, commits: list[str], is_packed: bool
) -> None:
    move(repository, RefUpdate(BRANCH, commits[0], None))
    if is_packed:
        git_repo.git("pack-refs", "--all")
    move(repository, RefUpdate(BRANCH, commits[1], commits[0]), RefUpdate(TAG, commits[0], None))

    assert repository.read_ref(BRANCH) == git_repo.git("rev-parse", BRANCH) == commits[1]
    assert repository.read_ref(TAG) == git_repo.git("rev-parse", TAG) == commits[0]
    assert repository.read_ref("refs/heads/autonomous/other") is None
    assert repository.read_ref("refs/heads/autonomous") is None
    assert repository.read_ref("HEAD") == git_repo.git("rev-parse", "HEAD")


def test_leaving_without_a_commit_releases_the_refs(
    repository: Repository, commits: list[str]
) -> None:
    update = RefUpdate(BRANCH, commits[0], None)
    with repository.prepare_refs([update]):
        assert (repository.git_dir / f"{BRANCH}.lock").exists()
    with pytest.raises(ZeroDivisionError), repository.prepare_refs([update]):
        _ = 1 / 0
    assert repository.read_ref(BRANCH) is None
    move(repository, update)
    assert repository.read_ref(BRANCH) == commits[0]


def lock(git_dir: Path) -> Path:
    """Lock our branch as a process would that was killed right now."""
    path = git_dir / f"{BRANCH}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


Prepare = Callable[["GitRepo", list[str]], object]
FOUND_BEFORE_THE_COMMIT: dict[str, tuple[Prepare, int | None, type[Exception]]] = {
    "moved": (lambda repo, c: repo.git("update-ref", BRANCH, c[3]), 0, RefMovedError),
    "moved_back": (lambda repo, c: repo.git("update-ref", BRANCH, c[1]), 2, RefMovedError),
    "moved_to_the_goal": (lambda repo, c: repo.git("update-ref", BRANCH, c[1]), 0, RefMovedError),
    "deleted": (lambda repo, c: None, 0, RefMovedError),
    "squatted": (lambda repo, c: repo.git("update-ref", BRANCH, c[3]), None, RefNameTakenError),
    "above": (
        lambda repo, c: repo.git("update-ref", "refs/heads/autonomous", c[0]),
        None,
        RefNameTakenError,
    ),
    "below": (lambda repo, c: repo.git("update-ref", f"{BRANCH}/x", c[0]), None, RefNameTakenError),
    "below_packed": (
        lambda repo, c: (
            repo.git("update-ref", f"{BRANCH}/x", c[0]),
            repo.git("pack-refs", "--all", "--prune"),
        ),
        None,
        RefNameTakenError,
    ),
    "symbolic": (
        lambda repo, c: repo.git("symbolic-ref", BRANCH, "refs/heads/main"),
        3,
        RefMovedError,
    ),
    "locked": (lambda repo, c: lock(repo.path / ".git"), None, RefLockedError),
}


def test_a_lock_that_was_left_within_a_name_is_no_ref_there(
    repository: Repository, commits: list[str]
) -> None:
    left = repository.git_dir / TAG / "p2.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    repository.require_free_ref(TAG)
    move(repository, RefUpdate(f"{TAG}/p1", commits[0], None))
    with pytest.raises(RefNameTakenError, match="run/p1/p1"):
        repository.require_free_ref(TAG)


@pytest.mark.parametrize(
    ("prepare", "old", "error"), FOUND_BEFORE_THE_COMMIT.values(), ids=FOUND_BEFORE_THE_COMMIT
)
def test_a_blocked_move_is_found_before_the_database_commits(
    git_repo: GitRepo,
    repository: Repository,
    commits: list[str],
    prepare: Prepare,
    old: int | None,
    error: type[Exception],
) -> None:
    prepare(git_repo, commits)
    before = git_repo.git("for-each-ref")

    updates = [
        RefUpdate(TAG, commits[0], None),
        RefUpdate(BRANCH, commits[1], None if old is None else commits[old]),
    ]
    with pytest.raises(error) as caught, repository.prepare_refs(updates):
        pytest.fail("the database would have committed")

    assert caught.type is error
    assert git_repo.git("for-each-ref") == before


def test_a_moved_ref_is_reported_with_both_commits(
    repository: Repository, commits: list[str]
) -> None:
    move(repository, RefUpdate(BRANCH, commits[0], None))
    with (
        pytest.raises(RefMovedError) as caught,
        repository.prepare_refs([RefUpdate(BRANCH, commits[2], commits[1])]),
    ):
        pass
    error = caught.value
    assert (error.ref, error.expected, error.actual) == (BRANCH, commits[1], commits[0])


@pytest.mark.parametrize("old_tip", [None, 0], ids=["new", "there"])
def test_a_stale_lock_of_ours_is_removed(
    repository: Repository,
    commits: list[str],
    caplog: pytest.LogCaptureFixture,
    old_tip: int | None,
) -> None:
    old = None if old_tip is None else commits[old_tip]
    if old is not None:
        move(repository, RefUpdate(BRANCH, old, None))
    left = lock(repository.git_dir)
    os.utime(left, (time.time() - 61,) * 2)

    with caplog.at_level(logging.WARNING):
        move(repository, RefUpdate(BRANCH, commits[1], old))

    assert repository.read_ref(BRANCH) == commits[1]
    assert not left.exists()
    assert "stale lock" in caplog.text


def test_a_lock_that_is_released_in_time_is_waited_for(
    repository: Repository, commits: list[str]
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with repository.prepare_refs([RefUpdate(BRANCH, commits[0], None)]) as prepared:
            second = pool.submit(
                move, repository, RefUpdate("refs/heads/autonomous/other", commits[1], None)
            )
            second.result()
            third = pool.submit(move, repository, RefUpdate(BRANCH, commits[1], commits[0]))
            prepared.commit()
        third.result()
    assert repository.read_ref(BRANCH) == commits[1]


def test_of_many_that_create_one_ref_one_wins(repository: Repository, commits: list[str]) -> None:
    together = threading.Barrier(6)

    def race(number: int) -> type[Exception] | None:
        together.wait()
        try:
            move(repository, RefUpdate(BRANCH, commits[number % 4], None))
        except (RefNameTakenError, RefLockedError) as error:
            return type(error)
        return None

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(race, range(6))).count(None) == 1


DIE_WITH_LOCKS = """
import os, signal, sys
from pathlib import Path
from autopack.gitrepo.ref_lock import RefLock
git_dir, oid, *refs = sys.argv[1:]
for ref in refs:
    RefLock(Path(git_dir), ref).__enter__().write(oid)
os.kill(os.getpid(), signal.SIGKILL)
"""


def lock_and_die(repository: Repository, commit: str) -> None:
    """Leave the locks of a process that is killed with its refs prepared."""
    words = [sys.executable, "-c", DIE_WITH_LOCKS, str(repository.git_dir), commit, BRANCH, TAG]
    assert subprocess.run(words, check=False).returncode == -signal.SIGKILL
    assert (repository.git_dir / f"{BRANCH}.lock").exists()


def test_the_locks_of_a_killed_process_block_no_other_process(
    repository: Repository, commits: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    lock_and_die(repository, commits[0])
    with caplog.at_level(logging.WARNING):
        move(repository, RefUpdate(BRANCH, commits[1], None))
    assert "stale lock" in caplog.text
    assert repository.read_ref(BRANCH) == commits[1]


@pytest.mark.safety_critical
def test_a_process_blocks_no_ref_wherever_in_a_move_it_is_killed(
    repository: Repository, commits: list[str]
) -> None:
    def move() -> None:
        with RefLock(repository.git_dir, BRANCH) as lock:
            lock.write(commits[0])
            lock.move()

    for _ in killed_after_calls(move):
        move()
    assert repository.read_ref(BRANCH) == commits[0]
    mode = stat.S_IMODE((repository.git_dir / BRANCH).stat().st_mode)
    assert mode == stat.S_IMODE((repository.git_dir / "refs/heads/main").stat().st_mode)


def test_a_start_removes_the_locks_of_a_killed_process_and_no_others(
    repository: Repository, settings: Settings, commits: list[str]
) -> None:
    lock_and_die(repository, commits[0])
    theirs = repository.git_dir / "refs/heads/main.lock"
    fresh = repository.git_dir / "refs/heads/autonomous/other.lock"
    for path in (theirs, fresh):
        path.touch()
    os.utime(theirs, (0, 0))
    with repository.prepare_refs([RefUpdate(f"{BRANCH}-2", commits[0], None)]):
        Repository.open(settings)
        left = {path for path in (repository.git_dir / "refs").rglob("*.lock")}
    assert left == {theirs, fresh, repository.git_dir / f"{BRANCH}-2.lock"}


def test_git_and_others_respect_a_lock_whose_process_lives(
    git_repo: GitRepo, repository: Repository, commits: list[str]
) -> None:
    move(repository, RefUpdate(BRANCH, commits[0], None))
    with repository.prepare_refs([RefUpdate(BRANCH, commits[1], commits[0])]) as prepared:
        with pytest.raises(RefLockedError):
            move(repository, RefUpdate(BRANCH, commits[2], commits[0]))
        with pytest.raises(AssertionError, match="cannot lock ref"):
            git_repo.git("update-ref", BRANCH, commits[2])
        prepared.commit()
    assert git_repo.git("rev-parse", BRANCH) == commits[1]


@pytest.mark.safety_critical
def test_no_move_is_lost_while_git_packs_the_refs(
    git_repo: GitRepo, repository: Repository, commits: list[str]
) -> None:
    """git takes the loose file away of each ref that it packs, and then its empty folders."""
    done = threading.Event()

    def pack() -> None:
        while not done.is_set():
            git_repo.git("pack-refs", "--all", "--prune")

    with ThreadPoolExecutor(1) as pool:
        packing = pool.submit(pack)
        try:
            old = None
            for number in range(60):
                new = commits[number % 4]
                tag = RefUpdate(f"refs/tags/autonomous/run/t{number}/p", new, None)
                move(repository, RefUpdate(BRANCH, new, old), tag)
                old = new
                assert repository.read_ref(BRANCH) == new
        finally:
            done.set()
        packing.result()
    assert git_repo.git("rev-parse", BRANCH) == old
    assert len(git_repo.git("tag", "--list", "autonomous/*").split()) == 60


def test_a_ref_can_take_the_place_of_refs_that_were_within_its_name(
    git_repo: GitRepo, repository: Repository, commits: list[str]
) -> None:
    move(repository, RefUpdate(f"{TAG}/within/it", commits[0], None))
    git_repo.git("pack-refs", "--all", "--no-prune")
    git_repo.git("update-ref", "-d", f"{TAG}/within/it")
    (repository.git_dir / TAG / "within").mkdir(parents=True, exist_ok=True)
    move(repository, RefUpdate(TAG, commits[1], None))
    assert git_repo.git("rev-parse", TAG) == commits[1]


def test_a_lock_that_was_left_within_a_new_name_is_in_its_way(
    repository: Repository, commits: list[str]
) -> None:
    left = repository.git_dir / TAG / "p2.lock"
    left.parent.mkdir(parents=True)
    left.touch()
    with pytest.raises(RefNameTakenError, match="with files"):
        move(repository, RefUpdate(BRANCH, commits[0], None), RefUpdate(TAG, commits[0], None))
    assert repository.read_ref(BRANCH) is None


def test_no_ref_gets_a_value_that_git_would_refuse(
    git_repo: GitRepo, repository: Repository, commits: list[str]
) -> None:
    with pytest.raises(RepositoryUnusableError, match="is missing"):
        move(repository, RefUpdate(BRANCH, "1" * 40, None))
    tree = git_repo.git("rev-parse", f"{commits[0]}^{{tree}}")
    with pytest.raises(GitFailedError, match="is a tree"):
        move(repository, RefUpdate(BRANCH, tree, None))
    assert repository.read_ref(BRANCH) is None


def test_the_refs_of_a_shared_repository_are_its_groups(
    repository: Repository, commits: list[str]
) -> None:
    (repository.git_dir / "refs").chmod(0o2775)
    move(repository, RefUpdate(TAG, commits[0], None))
    made = repository.git_dir / TAG
    assert stat.S_IMODE(made.stat().st_mode) == 0o664
    assert stat.S_IMODE(made.parent.stat().st_mode) == 0o2775


@pytest.mark.parametrize("has_moved", [False, True])
def test_a_branch_that_is_only_checked_stays_free_for_others(
    git_repo: GitRepo, repository: Repository, commits: list[str], has_moved: bool
) -> None:
    main = git_repo.git("rev-parse", "main")
    check = RefUpdate.check("refs/heads/main", commits[0] if has_moved else main)
    updates = [check, RefUpdate(BRANCH, commits[0], None)]
    if has_moved:
        with pytest.raises(RefMovedError, match="refs/heads/main"):
            move(repository, *updates)
        assert repository.read_ref(BRANCH) is None
        return
    with repository.prepare_refs(updates) as prepared:
        git_repo.git("update-ref", "refs/heads/main", commits[1])
        prepared.commit()
    assert git_repo.git("rev-parse", "main") == commits[1]


@pytest.mark.parametrize("start", ["absent", "recorded", "there"])
def test_a_ref_that_lags_is_rolled_forward(
    repository: Repository, commits: list[str], start: str
) -> None:
    if start != "absent":
        at = commits[0] if start == "recorded" else commits[2]
        move(repository, RefUpdate(BRANCH, at, None))
    repository.roll_refs_forward([RecordedRef(BRANCH, commits[2], commits[:2])])
    assert repository.read_ref(BRANCH) == commits[2]


@pytest.mark.safety_critical
def test_a_ref_that_was_moved_is_never_overwritten(
    repository: Repository, commits: list[str]
) -> None:
    move(repository, RefUpdate(BRANCH, commits[3], None))
    with pytest.raises(RefMovedError):
        repository.roll_refs_forward([RecordedRef(BRANCH, commits[2], commits[:2])])
    assert repository.read_ref(BRANCH) == commits[3]


def test_a_damaged_ref_is_named(repository: Repository) -> None:
    path = repository.git_dir / BRANCH
    path.parent.mkdir(parents=True)
    path.write_text("")
    with pytest.raises(RepositoryUnusableError, match=BRANCH):
        repository.read_ref(BRANCH)


@pytest.mark.parametrize("is_sorted", [True, False], ids=["sorted", "by an old git"])
def test_of_many_packed_refs_the_right_one_is_read(
    git_repo: GitRepo, repository: Repository, commits: list[str], is_sorted: bool
) -> None:
    lines = "".join(f"create refs/heads/b{n} {commits[n % 3]}\n" for n in range(100))
    git_repo.git("update-ref", "--stdin", stdin=lines)
    for name in ("0", "annotated", "last"):
        git_repo.git("tag", "-a", "-m", "x", name, commits[3])
    git_repo.git("pack-refs", "--all")
    if not is_sorted:
        packed = repository.git_dir / "packed-refs"
        *entries, _ = re.split(r"(?m)^(?=[0-9a-f])", packed.read_text())[1:]
        packed.write_text("# pack-refs with: peeled\n" + "".join(reversed(entries)))
    refs = [line.split() for line in git_repo.git("show-ref").splitlines()]
    assert {ref: repository.read_ref(ref) for _, ref in refs} == {ref: oid for oid, ref in refs}
    for absent in ("refs/heads/b", "refs/heads/b100", "refs/a", "refs/zz"):
        assert repository.read_ref(absent) is None
    with pytest.raises(RefNameTakenError, match="refs/heads/b"):
        repository.require_free_ref("refs/heads")


def test_no_packed_refs_are_no_refs(repository: Repository, commits: list[str]) -> None:
    (repository.git_dir / "packed-refs").write_bytes(b"")
    assert repository.read_ref("refs/heads/none") is None


OUTSIDE = (
    "refs/heads/main",
    "refs/heads/autonomous",
    "refs/heads/autonomous/",
    "refs/heads/autonomous/../main",
    "refs/heads/autonomous/a//b",
    "refs/heads/autonomous/.a",
    "refs/heads/autonomous/a.lock",
    "refs/heads/autonomous/a.lock/b",
    "refs/heads/autonomous/a\nupdate refs/heads/main",
    "refs/heads/autonomous/a b",
    "refs/heads/autonomous/a~1",
    "refs/heads/autonomous/@{1}",
    "refs/heads/autonomous/a.",
    "refs/heads/autonomous/a\0",
    "refs/heads/autonomous-x/a",
    "refs/tags/v1",
    "refs/autopack",
    "HEAD",
    "",
)


@pytest.mark.safety_critical
@pytest.mark.parametrize("ref", OUTSIDE)
def test_no_other_ref_is_ever_moved(repository: Repository, commits: list[str], ref: str) -> None:
    with (
        pytest.raises(ValueError, match="is not a ref of a run"),
        repository.prepare_refs([RefUpdate(ref, commits[0], None)]),
    ):
        pytest.fail("it was prepared")


@pytest.mark.parametrize("oid", ["", "0" * 39, "g" * 40, f"{'0' * 40}\n", "--stdin"])
def test_a_value_that_is_no_id_is_refused(repository: Repository, oid: str) -> None:
    with (
        pytest.raises(ValueError, match="not ids"),
        repository.prepare_refs([RefUpdate(BRANCH, oid, None)]),
    ):
        pytest.fail("it was prepared")


@given(st.text(alphabet="abA1.-_/\\ ~^:?*[@{}\n\0ü", max_size=12))
@example("a..b")
@example("a.lock")
def test_whatever_counts_as_ours_git_takes_and_keeps_within_our_folders(name: str) -> None:
    ref = f"refs/heads/autonomous/{name}"
    if is_run_ref(ref):
        assert Path(os.path.normpath(ref)) == Path(ref)
        done = subprocess.run(["git", "check-ref-format", ref], check=False)
        assert done.returncode == 0


@pytest.mark.parametrize("name", ["main", "a/b", "feature/x-1.2", "a@b", "ü", "HEAD", "x" * 250])
def test_a_name_that_git_takes_for_a_branch_is_one(git_repo: GitRepo, name: str) -> None:
    git_repo.git("check-ref-format", f"refs/heads/{name}")
    assert is_branch_name(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "-x",
            "..",
            "a..b",
            "../../x",
            "a//b",
            "a.lock",
            "a/b.lock/c",
            "a/.b",
            ".a",
            "/a",
            "a/",
        ),
        *("a.", "a@{1}", "a b", "a~1", "a^", "a:b", "a\nb", "a\\b", "*", "[", "x" * 251),
    ],
)
def test_a_name_that_git_or_the_disk_refuses_is_no_branch(name: str) -> None:
    assert not is_branch_name(name)
