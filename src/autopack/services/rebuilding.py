"""Make git objects again that the repository lost or never had. (docs/architecture.md)

Postgres stores the bytes of each accepted patch, and for a merge the merged difference. With the
run's base they give every tree; commits and tags are pure functions of the rows, so their ids are
the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

import structlog

from ..domain.errors import UnavailableError
from ..domain.naming import branch_ref, head_ref, snapshot_message, snapshot_ref
from ..gitrepo import (
    CommitMissingError,
    Remaking,
    RepositoryUnusableError,
    StoredCommit,
    StoredTag,
)
from ..models import Commit, Phase, Run
from ..store import runs
from ..store.commits import list_changes, list_commits, list_commits_since
from ..store.session import RowSession
from .context import AppContext

logger = structlog.get_logger(__name__)

AT_ONCE: Final = 20  # commits whose patches are in memory together


def require_objects(
    context: AppContext, session: RowSession, run: Run, *, durably: bool = True
) -> None:
    """Check that the repository has all objects of the run's branch and snapshots.

    Missing objects are made again; `durably`: on the disk when this returns. Raises
    RepositoryUnusableError when that fails, CommitMissingError when this clone cannot get the
    commit that they stand on.
    """
    repository = context.repository
    tips = [run.head_commit]
    tips += [phase.snapshot_oid for phase in _completed(run) if phase.snapshot_oid]

    def has_all() -> bool:
        return repository.has_objects(tips, since=run.base_commit)

    # Without the head no process need be asked.
    if repository.has_commit(run.head_commit) and has_all():
        return
    _require_base(context, session, run)
    commits = list_commits(session, run.id)
    # First only what another node has made since; objects that a disk lost are the rare case.
    new = [commit for commit in commits if not repository.has_commit(commit.sha)]
    with suppress(RepositoryUnusableError):  # what they stand on is damaged
        _make(session, repository.remaking(durably=durably), run, new, _completed(run))
        if new and has_all():
            return
    logger.warning("objects_missing", run_id=run.run_id, head=run.head_commit)
    repository.remove_empty_objects()
    remaking = repository.remaking(durably=durably, replaces=True)
    _make(session, remaking, run, commits, _completed(run))
    if not has_all():
        raise RepositoryUnusableError(
            f"objects of branch {run.branch} are damaged, not only missing: check"
            " them with `git fsck`"
        )
    logger.warning("objects_rebuilt", run_id=run.run_id, head=run.head_commit)


def add_objects(context: AppContext, session: RowSession, run: Run) -> str | None:
    """Make what another node added to a branch that this node shows; return where that is.

    None where it is not as this node showed it. It costs no process, as what was shown is trusted.
    The objects are not on the disk yet. Raises RepositoryUnusableError.
    """
    repository = context.repository
    at = repository.read_ref(branch_ref(run.run_id))
    if at is None or not repository.has_commit(at):
        return None
    later = list_commits_since(session, run, at)
    if later is None or (later[-1].sha if later else at) != run.head_commit:
        return None
    # A commit is put into the repository after all that it stands on.
    new = [commit for commit in later if not repository.has_commit(commit.sha)]
    untagged = [
        phase
        for phase in _completed(run)
        if phase.snapshot_tag
        and repository.read_ref(snapshot_ref(phase.snapshot_tag)) != phase.snapshot_oid
    ]
    _make(session, repository.remaking(durably=False), run, new, untagged)
    return at


def require_commit(context: AppContext, run_id: str, commit: str) -> None:
    """Check that a commit of a run can be checked out here; another node may have made it.

    With a remote, a checkout fetches from there what cannot be made again. Raises
    RepositoryUnusableError, CommitMissingError.
    """
    if context.repository.has_commit(commit):
        return
    try:
        with context.reading() as session:
            require_objects(context, session, runs.get_run(session, run_id))
    except RepositoryUnusableError as error:
        if context.repository.remote is None:
            raise
        logger.warning("commit_not_made_again", run_id=run_id, commit=commit, why=error.detail)


def _require_base(context: AppContext, session: RowSession, run: Run) -> None:
    """Get the commit that a run stands on: of the run that it continues, or from the remote."""
    repository = context.repository
    if repository.has_commit(run.base_commit):
        return
    if run.continues is not None:
        require_objects(context, session, runs.get_run(session, run.continues))
    why = "there is no remote to fetch it from (AUTOPACK_GIT_REMOTE)"
    known = repository.base().commit
    for wanted in (head_ref(run.base_branch), run.base_commit):
        if repository.has_commit(run.base_commit):
            return
        if repository.remote is not None:
            try:
                repository.remote.fetch(wanted, known)
            except UnavailableError as error:
                why = error.detail
            else:
                why = f"{repository.remote.url} does not have it"
    if not repository.has_commit(run.base_commit):
        raise CommitMissingError(
            f"commit {run.base_commit}, on which run '{run.run_id}' stands, is missing from"
            f" {repository.git_dir} on this node: {why}. Fetch it there, or ask another node",
            commit=run.base_commit,
        )


def _make(
    session: RowSession,
    remaking: Remaking,
    run: Run,
    commits: Sequence[Commit],
    phases: Sequence[Phase],
) -> None:
    for at in range(0, len(commits), AT_ONCE):
        part = commits[at : at + AT_ONCE]
        changes = list_changes(session, [commit.id for commit in part])
        for commit in part:
            recorded = StoredCommit(
                sha=commit.sha,
                parent=commit.parent,
                tree=commit.tree,
                message=commit.message,
                at=commit.committed_at,
                signature=commit.signature,
                patch=changes.get(commit.id),
            )
            remaking.commit(recorded)
        remaking.install()
    for phase in phases:
        tag = _snapshot(run, phase)
        if tag is not None:
            remaking.tag(tag)
    remaking.install()


def _snapshot(run: Run, phase: Phase) -> StoredTag | None:
    if not (phase.snapshot_tag and phase.snapshot_commit and phase.snapshot_oid and phase.ended_at):
        return None
    return StoredTag(
        oid=phase.snapshot_oid,
        name=phase.snapshot_tag,
        commit=phase.snapshot_commit,
        message=snapshot_message(run.run_id, phase.phase_id, phase.name),
        at=phase.ended_at,
        signature=phase.snapshot_signature,
    )


def _completed(run: Run) -> list[Phase]:
    return [phase for phase in runs.phases_of(run).values() if phase.snapshot_tag]
