"""Check that database, branch, tags and files of every run agree."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session, undefer

from autopack import database
from autopack.config import Settings
from autopack.domain.events import GENESIS_HASH, seal
from autopack.domain.outcomes import CommitKind, PatchStatus
from autopack.domain.run import FailureCode
from autopack.gitrepo import Repository
from autopack.mirror import Mirror, durability
from autopack.models import BacklogEntry, Commit, EventRow, Issue, Patch, Phase, Run, Submission
from autopack.services.context import AppContext
from autopack.services.projection import project, project_backlog, run_index
from autopack.store import nodes, runs
from autopack.store.session import RowSession

# A page that did not change keeps the revision of its last change.
REVISION = re.compile(rb'(?<=<!-- autopack revision=)\d+|(?<=^  "revision": )\d+', re.MULTILINE)
_COMMIT_FORMAT = "%H%x00%P%x00%T%x00%ct%x00%B"
_MADE: dict[tuple[str, bytes], str] = {}  # what git made of a tree by a patch, in any repository


def assert_consistent(settings: Settings, run_id: str | None = None) -> None:
    """See that nothing lags, nothing contradicts, and nothing is left lying about.

    With the name of a run, other runs are passed over.
    """
    assert settings.database_url is not None
    engine = database.make_engine(settings.database_url, 15)
    repository = Repository.open(settings)
    node_id = repository.node_identity().node_id
    refs = _refs(settings)
    try:
        with RowSession(engine) as session:
            names = list(session.scalars(select(Run.run_id).order_by(Run.id)))
            of_others = [] if run_id is None else [name for name in names if name != run_id]
            looked_at = [name for name in names if name not in of_others]
            for name in looked_at:
                run = runs.get_run(session, name)
                shown = nodes.find_checkpoint(session, run, node_id).revision
                assert shown == run.revision, f"{name} lags"
                _assert_events(session, run)
                _assert_commits(session, settings, run)
                _assert_refs(refs, run)
                _assert_patches(session, settings, run)
            _assert_counts(session)
        heads = {name for name in refs if name.startswith("refs/heads/")}
        assert heads == {f"refs/heads/autonomous/{name}" for name in names}
        _assert_files(engine, settings, repository, looked_at, of_others)
        _assert_no_leftovers(settings)
    finally:
        engine.dispose()
    _git(settings, "fsck", "--strict", "--no-dangling")


def _assert_events(session: RowSession, run: Run) -> None:
    rows = runs.list_events(session, run.id, after=0, limit=1_000_000)
    last_hash = GENESIS_HASH
    for number, row in enumerate(rows, start=1):
        (sealed,) = seal((runs.read_event(row),), number - 1, last_hash)
        assert (row.sequence, row.previous_hash, row.hash) == (number, last_hash, sealed.hash)
        last_hash = sealed.hash
    assert (run.event_sequence, run.event_hash) == (len(rows), last_hash)
    assert [row.kind for row in rows].count("RunStarted") == 1


def _assert_commits(session: Session, settings: Settings, run: Run) -> None:
    """The table of commits and git's own history are the same chain."""
    chain = _commits(session, run)
    assert [commit.position for commit in chain] == list(range(1, len(chain) + 1))
    assert run.head_commit == (chain[-1].sha if chain else run.base_commit)
    log = _git(
        settings,
        *("log", "-z", "--reverse", f"--format={_COMMIT_FORMAT}"),
        f"{run.base_commit}..{run.head_commit}",
    ).split("\0")
    fields = 5
    found = [tuple(log[at : at + fields]) for at in range(0, len(log) - fields + 1, fields)]
    parent = run.base_commit
    expected = []
    for commit in chain:
        assert commit.parent == parent
        at = str(int(commit.committed_at.timestamp()))
        expected.append((commit.sha, commit.parent, commit.tree, at, commit.message))
        parent = commit.sha
    assert found == expected


def _refs(settings: Settings) -> dict[str, str]:
    """Return what the service's branches and tags point at; a tag has its commit too."""
    lines = _git(
        settings,
        *("for-each-ref", "--format=%(refname) %(objectname) %(*objectname)"),
        *("refs/heads/autonomous/", "refs/tags/autonomous/"),
    ).splitlines()
    return {name: target.strip() for name, _, target in (line.partition(" ") for line in lines)}


def _assert_refs(refs: dict[str, str], run: Run) -> None:
    if run.failure_code is FailureCode.BRANCH_MOVED:
        return
    assert refs[f"refs/heads/{run.branch}"] == run.head_commit
    tags = f"refs/tags/autonomous/{run.run_id}/"
    assert {name: target for name, target in refs.items() if name.startswith(tags)} == {
        f"refs/tags/{phase.snapshot_tag}": f"{phase.snapshot_oid} {phase.snapshot_commit}"
        for phase in runs.phases_of(run).values()
        if phase.snapshot_tag
    }


def _assert_patches(session: Session, settings: Settings, run: Run) -> None:
    """The accepted patches, put on the base by git itself one by one, give the branch's trees."""
    chain = _commits(session, run)
    applied = session.scalars(
        select(Patch.id)
        .join(Submission, Submission.id == Patch.submission_pk)
        .where(Submission.run_pk == run.id, Patch.status == PatchStatus.APPLIED)
    ).all()
    placed = {each.patch_pk for each in chain if each.patch_pk is not None}
    assert sorted(applied) == sorted(placed)
    _assert_once_between_undos(chain)
    trees = {run.base_commit: _git(settings, "rev-parse", f"{run.base_commit}^{{tree}}").strip()}
    with tempfile.TemporaryDirectory() as folder:
        scratch = _Scratch(settings, Path(folder))
        for commit in chain:
            if commit.kind is CommitKind.PATCH:
                patch = session.get_one(Patch, commit.patch_pk, options=[undefer(Patch.content)])
                assert hashlib.sha256(patch.content).hexdigest() == patch.sha256
                assert f"Autopack-Patch-SHA256: {patch.sha256}\n" in commit.message
                content = commit.difference if commit.is_merged else patch.content
                assert content is not None
                tree = scratch.apply(trees[commit.parent], content)
                assert tree == commit.tree
            elif commit.kind in (CommitKind.RECORD, CommitKind.REPLAY):
                content = commit.difference
                assert content is not None
                tree = scratch.apply(trees[commit.parent], content)
                assert tree == commit.tree
            else:
                assert commit.tree in trees.values()
            trees[commit.sha] = commit.tree


def _assert_once_between_undos(chain: list[Commit]) -> None:
    """A patch is on the branch once; only an undo takes it off, and it may be applied again."""
    since_undo: set[int | None] = set()
    for commit in chain:
        if commit.kind is CommitKind.UNDO:
            since_undo = set()
        elif commit.kind is CommitKind.PATCH:
            assert commit.patch_pk not in since_undo
            since_undo.add(commit.patch_pk)


class _Scratch:
    """An index and objects aside, in which git itself puts patches on trees."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        objects = folder / "objects"
        objects.mkdir()
        self._own = {
            "GIT_INDEX_FILE": str(folder / "index"),
            "GIT_OBJECT_DIRECTORY": str(objects),
            "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(_git_dir(settings) / "objects"),
        }
        self._tree = ""  # what the index has

    def apply(self, tree: str, patch: bytes) -> str:
        """Return the tree that git makes; of the patches that many stories share, it makes one."""
        if (tree, patch) not in _MADE:
            _MADE[tree, patch] = self._apply(tree, patch)
        return _MADE[tree, patch]

    def _apply(self, tree: str, patch: bytes) -> str:
        if tree != self._tree:
            self._git("read-tree", tree)
        self._git("apply", "--cached", "--whitespace=nowarn", "-", stdin=patch)
        self._tree = self._git("write-tree").strip()
        return self._tree

    def _git(self, *arguments: str, stdin: bytes = b"") -> str:
        return _git(self._settings, *arguments, stdin=stdin, extra=self._own)


def _assert_counts(session: Session) -> None:
    """What is counted equals a recount."""
    for entry in session.scalars(select(BacklogEntry)):
        issues = session.scalars(
            select(Issue).where(Issue.issue_key == entry.issue_key, Issue.is_expected.is_(False))
        ).all()
        assert entry.total_occurrences == sum(issue.occurrence_count for issue in issues)
        assert entry.age_in_runs == len({issue.run_pk for issue in issues})
    for run_pk, recorded in session.execute(select(Run.id, Run.tokens_used)):
        of_phases = session.scalars(select(Phase.tokens_used).where(Phase.run_pk == run_pk))
        assert recorded == sum(of_phases)
    for phase in session.scalars(select(Phase)):
        attempts = session.execute(
            select(Submission.role, Submission.attempt)
            .where(Submission.phase_pk == phase.id)
            .order_by(Submission.role, Submission.attempt)
        ).all()
        for role in {each.role for each in attempts}:
            numbers = [each.attempt for each in attempts if each.role == role]
            assert numbers == list(range(1, len(numbers) + 1))
    for run_pk, recorded in session.execute(select(Run.id, Run.event_sequence)):
        count = len(session.scalars(select(EventRow.id).where(EventRow.run_pk == run_pk)).all())
        assert recorded == count


def _assert_files(
    engine: Engine,
    settings: Settings,
    repository: Repository,
    names: list[str],
    of_others: list[str],
) -> None:
    """Every file is what writing all of them anew would make of database and branch."""
    with tempfile.TemporaryDirectory() as scratch:
        mirror = Mirror(Path(scratch))
        mirror.prepare()
        context = AppContext(
            settings, engine, engine, repository, mirror, now=lambda: datetime.now(UTC)
        )
        with RowSession(engine) as session:
            for name in names:
                run = runs.get_run(session, name)
                project(context, session, run, phases=None, index=run_index(session, run))
            project_backlog(context, session)
        expected, found = _content(Path(scratch)), _content(settings.autonomous_runs_dir)
    others = {name for name in found if Path(name).parts[0] in of_others}
    others |= {name for name in found if name.startswith("project_ruleset_")} | {durability.MARK}
    assert found.keys() - others == expected.keys()
    for name, content in expected.items():
        assert found[name] == content, name


def _content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): REVISION.sub(b"0", path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _assert_no_leftovers(settings: Settings) -> None:
    assert not list(settings.autonomous_runs_dir.rglob("*.tmp"))
    assert not list(settings.autonomous_runs_dir.rglob(".*.tmp"))
    assert not list((_git_dir(settings) / "refs").rglob("*.lock"))


def _commits(session: Session, run: Run) -> list[Commit]:
    query = (
        select(Commit)
        .where(Commit.run_pk == run.id)
        .order_by(Commit.position)
        .options(undefer(Commit.difference))
    )
    return list(session.scalars(query))


def _git_dir(settings: Settings) -> Path:
    own = settings.repo_path / ".git"
    return own if own.is_dir() else settings.repo_path


def _git(
    settings: Settings,
    *arguments: str,
    stdin: bytes = b"",
    extra: Mapping[str, str] | None = None,
) -> str:
    done = subprocess.run(
        ["git", *arguments],
        cwd=settings.repo_path,
        env={
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
            **(extra or {}),
        },
        input=stdin,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode(errors="surrogateescape")
