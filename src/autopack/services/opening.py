"""Opening a change of one run: its lock, and the run brought up to date.

1. The run's advisory lock lasts for all steps; its row is locked within the transaction.
2. The use case decides; git objects are written that are in no ref yet.
3. The refs are locked and checked, then one commit in Postgres: with it the change has happened.
4. The refs move, the files are written, `mirrored_revision` catches up.

A failure before the commit leaves nothing; a failure after it is rolled forward (after_commit.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

import structlog

from .. import tracing
from ..domain.deadlines import Tick
from ..domain.errors import UnavailableError
from ..domain.events import SUPERVISOR
from ..domain.operating import BranchMoved
from ..gitrepo import RefMovedError, RefNameTakenError, RepositoryUnusableError
from ..models import Run
from ..store import nodes, runs
from ..store.nodes import Checkpoint
from ..store.session import RowSession
from .after_commit import commit_change
from .change import RunChange
from .context import AppContext
from .projection import is_branch_elsewhere, roll_forward
from .rebuilding import require_objects
from .settling import settle

logger = structlog.get_logger(__name__)


class SupersededError(UnavailableError):
    """Another service works with a copy of this home, so two clones would pass for one node."""

    code = "superseded"


def require_not_superseded(context: AppContext) -> None:
    """Check that no service runs with a copy of this home. Raises SupersededError."""
    if context.superseded.is_set():
        raise SupersededError(
            "another service has started with a copy of this one's home, so both pass for one node,"
            " or its clone was replaced; start this one again: it becomes a node of its own"
        )


@contextmanager
def session_for_locks(context: AppContext) -> Iterator[RowSession]:
    """Open a session that can hold a run's lock. Raises SupersededError."""
    require_not_superseded(context)
    with context.autocommit.connect() as connection, RowSession(connection) as session:
        yield session


@contextmanager
def locked_session(
    context: AppContext, run_id: str, *, is_waiting: bool = True
) -> Iterator[RowSession]:
    """Hold the lock of a run name, even if the run does not exist. Raises SupersededError."""
    with (
        session_for_locks(context) as session,
        runs.run_lock(session, run_id, is_waiting=is_waiting),
    ):
        yield session


@contextmanager
def changing(context: AppContext, run_id: str, *, is_waiting: bool = True) -> Iterator[RunChange]:
    """Hold a run's lock, bring the run up to date, and commit what the body decides and settles.

    An exception in the body changes nothing. Raises RunBusyError when another process holds the run
    and the caller must not wait.
    """
    with (
        locked_session(context, run_id, is_waiting=is_waiting) as session,
        changing_locked(context, session, run_id) as change,
    ):
        yield change


@contextmanager
def changing_locked(context: AppContext, session: RowSession, run_id: str) -> Iterator[RunChange]:
    """Change a run as `changing` does, in a session that holds its lock."""
    run = up_to_date(context, session, run_id)
    change = RunChange(context, session, run, context.caller.actor)
    try:
        with tracing.step("decide"):
            yield change
    except RepositoryUnusableError:
        session.rollback()
        _heal(context, session, run_id)
        raise
    with _ending_if_moved(context, session, run_id, is_raised=True):
        commit_change(change)


def up_to_date(context: AppContext, session: RowSession, run_id: str) -> Run:
    """Roll projections forward and apply passed deadlines; both are separate changes.

    Raises RefMovedError when it finds here that another process moved the branch.
    """
    run = runs.lock_run(session, run_id)
    checkpoint = nodes.find_checkpoint(session, run, context.node_id)
    is_lagging = checkpoint.revision < run.revision
    # A run that is over has its end: only a change that moves its branch again looks where it is.
    if is_lagging or (
        run.ended_at is None and is_branch_elsewhere(context, run_id, run.head_commit)
    ):
        with _ending_if_moved(context, session, run_id, is_raised=not is_lagging):
            _roll_forward(context, session, run, checkpoint if is_lagging else None)
        session.commit()  # committed separately: it stays done if the request is refused
        run = runs.lock_run(session, run_id)
    if _is_overdue(run, context.now_in(run)):
        change = RunChange(context, session, run, SUPERVISOR)
        change.decide(Tick())
        settle(change)
        with _ending_if_moved(context, session, run_id, is_raised=True):
            commit_change(change)
        session.commit()
        run = runs.lock_run(session, run_id)
    return run


def _heal(context: AppContext, session: RowSession, run_id: str) -> None:
    """Rebuild lost objects, so that a request that failed for them succeeds when it is repeated."""
    try:
        require_objects(context, session, runs.lock_run(session, run_id))
    except UnavailableError as error:
        logger.warning("objects_not_rebuilt", run_id=run_id, why=error.detail)


def _roll_forward(
    context: AppContext, session: RowSession, run: Run, lagging: Checkpoint | None
) -> None:
    """Roll forward. If nothing lags, an unusable repository does not stop other work."""
    try:
        roll_forward(context, session, run, lagging or Checkpoint(0))
    except UnavailableError as error:
        if lagging is not None:
            raise
        logger.warning("repository_lags", run_id=run.run_id, why=error.detail)


def _is_overdue(run: Run, now: datetime) -> bool:
    if run.ended_at is not None:
        return False
    deadlines = [phase.deadline_at for phase in run.phases if phase.deadline_at]
    return min([run.deadline_at, *deadlines]) <= now


@contextmanager
def _ending_if_moved(
    context: AppContext, session: RowSession, run_id: str, *, is_raised: bool
) -> Iterator[None]:
    """End a run whose branch or tags another process moved; the moved refs are not overwritten."""
    try:
        yield
    except (RefMovedError, RefNameTakenError) as error:
        session.rollback()
        change = RunChange(context, session, runs.lock_run(session, run_id), SUPERVISOR)
        change.decide(BranchMoved(error.detail))
        change.touch_backlog()  # lagging files must be written too
        settle(change)
        commit_change(change)
        session.commit()
        if is_raised:
            raise
