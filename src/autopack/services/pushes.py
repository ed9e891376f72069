"""Pushes of branches to the remote, outside of requests. (docs/remote.md)"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.orm import Session

from .. import tracing
from ..domain.backoff import doubling
from ..domain.errors import AutopackError, UnavailableError
from ..domain.naming import branch_ref, snapshot_ref
from ..gitrepo import PushInterruptedError, Remote
from ..jobs.queue import defer
from ..models import Run
from ..store import pushes, runs
from ..store.pushes import PushOrder
from ..views.branches import RemoteAnswer
from .context import AppContext
from .rebuilding import require_objects

logger = structlog.get_logger(__name__)

FIRST_WAIT: Final = timedelta(seconds=2)
LONGEST_WAIT: Final = timedelta(minutes=5)
QUEUE: Final = "pushes"
TASK: Final = "push_branch"
MOVED_HERE: Final = (
    "another process moved the run's branch in the repository, so it is not pushed any more"
)


class PushesFailError(UnavailableError):
    """Pushes fail; everything else works."""

    code = "pushes_fail"


def retry_wait(attempts: int) -> timedelta:
    return doubling(FIRST_WAIT, LONGEST_WAIT, attempts)


def resume_pushes(context: AppContext) -> None:
    """Make failed pushes due at a start: their cause may have been corrected."""
    with context.writing() as session:
        for run_pk in pushes.make_due(session, context.now()):
            _queue(session, run_pk)
        session.commit()


def want_push(session: Session, run: Run, now: datetime) -> None:
    """Request a push of a run's branch, as it is after this transaction's commit."""
    at = pushes.want_push(session, run.id, run.revision, now)
    _queue(session, run.id, at if at > now else None)


def push_branch(context: AppContext, remote: Remote, run_pk: int) -> None:
    """Push a run's branch if that is due, and again while there are newer commits.

    Any number of workers may call this at once: one pushes, for others the job is postponed. A
    killed worker's push is due again after the usual wait, and then finds what is on the remote
    already.
    """
    with (
        context.engine.connect() as connection,
        Session(bind=connection, expire_on_commit=False) as session,
        pushes.push_lock(session, run_pk) as is_mine,
    ):
        if not is_mine:  # the other worker may have read the rows before this request
            _queue(session, run_pk, context.now() + retry_wait(1))
            session.commit()
            return
        while _push(context, remote, session, run_pk):
            pass


def remote_status(context: AppContext, session: Session, run: Run) -> RemoteAnswer | None:
    """Return the state of a run's branch on the remote; None without a remote."""
    remote = context.repository.remote
    if remote is None:
        return None
    push = pushes.find_push(session, run.id)
    if push is None:
        return RemoteAnswer(
            url=remote.url,
            pushed_commit=None,
            pushed_at=None,
            is_up_to_date=False,
            attempts=0,
            last_error=None,
            next_try_at=None,
        )
    is_there = push.pushed_to == remote.url
    return RemoteAnswer(
        url=remote.url,
        pushed_commit=push.pushed_commit if is_there else None,
        pushed_at=push.pushed_at if is_there else None,
        is_up_to_date=(
            is_there and push.next_try_at is None and push.pushed_commit == run.head_commit
        ),
        attempts=push.attempts,
        last_error=push.last_error,
        next_try_at=push.next_try_at,
    )


def check_pushes(context: AppContext) -> None:
    """Check that no push fails; a waiting or a long push is not a failure.

    Raises PushesFailError.
    """
    with context.writing() as session:
        failing = pushes.find_failing(session)
    if failing is not None:
        count, words = failing
        waiting = "1 run waits" if count == 1 else f"{count} runs wait"
        raise PushesFailError(f"{waiting} to be pushed: {words}")


def _queue(session: Session, run_pk: int, at: datetime | None = None) -> None:
    defer(
        session,
        TASK,
        queue=QUEUE,
        arguments={"run_pk": run_pk},
        queueing_lock=f"push:{run_pk}",
        at=at,
    )


def _push(context: AppContext, remote: Remote, session: Session, run_pk: int) -> bool:
    """Push a run's branch under its push lock; return whether another push may be needed."""
    begun = _begin(context, session, run_pk)
    if begun is None:
        return False
    order, attempts = begun
    parent = None
    if tracing.is_on():
        parent = runs.last_trace(session, run_pk)
        session.rollback()  # no transaction is open while the remote answers
    try:
        with tracing.span("push", {"autopack.run_id": order.run_id}, parent=parent):
            _require_objects(context, order.run_id)
            remote.push(
                branch_ref(order.run_id),
                order.head,
                recorded=order.recorded,
                tags={snapshot_ref(name): oid for name, oid in order.snapshots.items()},
            )
    except PushInterruptedError:
        _queue(session, run_pk)  # another process may continue
        session.commit()
        return False
    except AutopackError as error:
        logger.warning("push_failed", run_id=order.run_id, attempts=attempts, why=error.detail)
        next_try_at = context.now() + retry_wait(attempts)
        pushes.mark_failed(session, run_pk, error.detail, next_try_at)
        _queue(session, run_pk, next_try_at)
        session.commit()
        return False
    logger.info("branch_pushed", run_id=order.run_id, commit=order.head, remote=remote.url)
    pushes.mark_pushed(
        session,
        run_pk,
        revision=order.revision,
        commit=order.head,
        url=remote.url,
        now=context.now(),
    )
    session.commit()
    return True


def _require_objects(context: AppContext, run_id: str) -> None:
    """Make the commits and tags again that another node has made. Raises UnavailableError."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        if run.mirrored_by != context.node_id:
            require_objects(context, session, run)


def _begin(context: AppContext, session: Session, run_pk: int) -> tuple[PushOrder, int] | None:
    """Count the try and postpone the next one before this one is made: it may kill the service."""
    now = context.now()
    push = pushes.lock_push(session, run_pk)
    if push.next_try_at is None:
        session.rollback()
        return None
    if push.next_try_at > now:  # another process was faster
        _queue(session, run_pk, push.next_try_at)
        session.commit()
        return None
    order = pushes.read_order(session, run_pk)
    if order.is_branch_moved:
        push.next_try_at, push.last_error = None, MOVED_HERE
        session.commit()
        return None
    push.attempts += 1
    push.next_try_at = now + retry_wait(push.attempts)
    session.commit()
    return order, push.attempts
