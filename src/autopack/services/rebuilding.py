"""Rebuild git objects that the repository lost, with the same ids. (docs/architecture.md)

Postgres stores the bytes of each accepted patch, and for a merge the merged difference. With the
run's base they give every tree; commits and tags are pure functions of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import structlog

from ..domain.errors import UnavailableError
from ..domain.naming import snapshot_message
from ..gitrepo import CommitMissingError, RepositoryUnusableError
from ..models import Commit, Phase, Run
from ..store import runs, submissions
from ..store.session import RowSession
from .context import AppContext

logger = structlog.get_logger(__name__)


def require_objects(context: AppContext, session: RowSession, run: Run) -> None:
    """Check that the repository has all objects of the run's branch and snapshots.

    Missing objects are rebuilt. Raises RepositoryUnusableError when that fails, CommitMissingError
    when this clone cannot get the commit that they stand on.
    """
    tips = [run.head_commit]
    tips += [phase.snapshot_oid for phase in _completed(run) if phase.snapshot_oid]
    if context.repository.has_objects(tips, since=run.base_commit):
        return
    _require_base(context, session, run)
    commits = submissions.list_commits(session, run.id)
    # First only what another node has made since; objects that a disk lost are the rare case.
    new = [commit for commit in commits if not context.repository.has_commit(commit.sha)]
    with suppress(RepositoryUnusableError):  # what they stand on is damaged
        _rebuild(context, session, run, new)
    if new and context.repository.has_objects(tips, since=run.base_commit):
        return
    logger.warning("objects_missing", run_id=run.run_id, head=run.head_commit)
    context.repository.remove_empty_objects()
    _rebuild(context, session, run, commits)
    if not context.repository.has_objects(tips, since=run.base_commit):
        raise RepositoryUnusableError(
            f"objects of branch {run.branch} are damaged, not only missing: check"
            " them with `git fsck`"
        )
    logger.warning("objects_rebuilt", run_id=run.run_id, head=run.head_commit)


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
    for wanted in (f"refs/heads/{run.base_branch}", run.base_commit):
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


def _rebuild(context: AppContext, session: RowSession, run: Run, commits: Sequence[Commit]) -> None:
    for commit in commits:
        _rebuild_commit(context, session, commit)
    for phase in _completed(run):
        _rebuild_tag(context, run, phase)


def _rebuild_commit(context: AppContext, session: RowSession, commit: Commit) -> None:
    repository = context.repository
    tree = commit.tree  # of an undo or a rollback: an earlier tree
    patch = submissions.find_change(session, commit)
    if patch is not None:
        tree = repository.apply_again(commit.parent, patch)
    sha = repository.write_commit(
        parents=[commit.parent],
        tree=tree,
        message=commit.message,
        at=commit.committed_at,
        signature=commit.signature,
    )
    _require_same(f"commit {commit.position} of the branch", commit.sha, sha)


def _rebuild_tag(context: AppContext, run: Run, phase: Phase) -> None:
    if not (phase.snapshot_tag and phase.snapshot_commit and phase.snapshot_oid and phase.ended_at):
        return
    oid = context.repository.write_tag(
        name=phase.snapshot_tag,
        commit=phase.snapshot_commit,
        message=snapshot_message(run.run_id, phase.phase_id, phase.name),
        at=phase.ended_at,
        signature=phase.snapshot_signature,
    )
    _require_same(f"tag {phase.snapshot_tag}", phase.snapshot_oid, oid)


def _require_same(what: str, recorded: str, made: str) -> None:
    if made != recorded:
        raise RepositoryUnusableError(
            f"{what} is missing from the repository and was {recorded}, but made again it is"
            f" {made}: restore it (`git fetch`)"
        )


def _completed(run: Run) -> list[Phase]:
    return [phase for phase in runs.phases_of(run).values() if phase.snapshot_tag]
