"""Requested pushes, and their results."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import case, func, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..advisory_locks import PUSH
from ..domain.run import FailureCode
from ..models import Commit, Phase, Push, Run

_TRY_LOCK: Final = text(f"SELECT pg_try_advisory_lock({PUSH.number(':key')})")
_UNLOCK: Final = text(f"SELECT pg_advisory_unlock({PUSH.number(':key')})")


@dataclass(frozen=True, slots=True)
class PushOrder:
    """A run's branch and tags, as they are recorded at a revision."""

    run_id: str
    revision: int
    head: str
    recorded: frozenset[str]
    snapshots: dict[str, str]
    is_branch_moved: bool


def want_push(session: Session, run_pk: int, revision: int, now: datetime) -> datetime:
    """Request a push of a run's branch as of a revision; return when it may be tried.

    A failing push keeps its wait.
    """
    statement = insert(Push).values(
        run_pk=run_pk, wanted_revision=revision, next_try_at=now, attempts=0
    )
    wanted = statement.on_conflict_do_update(
        index_elements=["run_pk"],
        set_={
            "wanted_revision": statement.excluded.wanted_revision,
            "next_try_at": func.coalesce(Push.next_try_at, statement.excluded.next_try_at),
        },
    )
    return session.execute(wanted.returning(Push.next_try_at)).scalar_one() or now


def find_push(session: Session, run_pk: int) -> Push | None:
    return session.scalars(select(Push).where(Push.run_pk == run_pk)).one_or_none()


def find_failing(session: Session) -> tuple[int, str] | None:
    """Return how many runs' pushes fail, and the error of one of them."""
    query = select(func.count(), func.max(Push.last_error)).where(
        Push.next_try_at.is_not(None), Push.last_error.is_not(None)
    )
    count, words = session.execute(query).one()
    return None if words is None else (count, words)


@contextmanager
def push_lock(session: Session, run_pk: int) -> Iterator[bool]:
    """Try to get the lock for pushing a run's branch, over any number of transactions.

    No row stays locked meanwhile. The session must be bound to a connection; the lock ends with it,
    so a killed service leaves none.
    """
    key = {"key": PUSH.text_of(run_pk)}
    is_mine = bool(session.scalars(_TRY_LOCK, key).one())
    session.commit()
    try:
        yield is_mine
    finally:
        if is_mine:
            session.rollback()
            connection = session.connection()
            try:
                session.execute(_UNLOCK, key)
                session.commit()
            except DBAPIError:
                connection.invalidate()


def lock_push(session: Session, run_pk: int) -> Push:
    """Return a run's existing push row, FOR UPDATE."""
    query = select(Push).where(Push.run_pk == run_pk).with_for_update()
    return session.scalars(query.execution_options(populate_existing=True)).one()


def read_order(session: Session, run_pk: int) -> PushOrder:
    """Return what to push of a run."""
    run = session.execute(
        select(Run.run_id, Run.revision, Run.head_commit, Run.base_commit, Run.failure_code).where(
            Run.id == run_pk
        )
    ).one()
    commits = session.scalars(select(Commit.sha).where(Commit.run_pk == run_pk))
    snapshots = session.execute(
        select(Phase.snapshot_tag, Phase.snapshot_oid).where(
            Phase.run_pk == run_pk, Phase.snapshot_oid.is_not(None)
        )
    )
    return PushOrder(
        run_id=run.run_id,
        revision=run.revision,
        head=run.head_commit,
        recorded=frozenset({run.base_commit, *commits}),
        snapshots={str(name): str(oid) for name, oid in snapshots},
        is_branch_moved=run.failure_code is FailureCode.BRANCH_MOVED,
    )


def mark_pushed(
    session: Session, run_pk: int, *, revision: int, commit: str, url: str, now: datetime
) -> None:
    """Record that the remote has a revision; a later requested revision is due at once."""
    session.execute(
        update(Push)
        .where(Push.run_pk == run_pk)
        .values(
            pushed_commit=commit,
            pushed_to=url,
            pushed_at=now,
            attempts=0,
            last_error=None,
            next_try_at=case((Push.wanted_revision > revision, now), else_=None),
        ),
        execution_options={"synchronize_session": False},
    )


def mark_failed(session: Session, run_pk: int, error: str, next_try_at: datetime) -> None:
    session.execute(
        update(Push).where(Push.run_pk == run_pk).values(last_error=error, next_try_at=next_try_at),
        execution_options={"synchronize_session": False},
    )


def make_due(session: Session, now: datetime) -> list[int]:
    """Make every waiting push due; return the runs with a due push."""
    pending = update(Push).where(Push.next_try_at.is_not(None))
    due = pending.values(next_try_at=func.least(Push.next_try_at, now))
    return list(session.scalars(due.returning(Push.run_pk)))
