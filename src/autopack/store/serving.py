"""The clone that the database belongs to, and the lock of its services.

The services of one clone share an advisory lock, which lasts as long as their connections: a killed
service holds none, a stopped one (SIGSTOP) still does.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import exists, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..models import Run, ServedClone

_KEY: Final = {"key": "served_clone"}
_GUARD = text("SELECT pg_advisory_xact_lock(hashtextextended(:key, 1))")
_TRY_ALONE = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 2))")
_SHARE = text("SELECT pg_advisory_lock_shared(hashtextextended(:key, 2))")
_LEAVE = text("SELECT pg_advisory_unlock_all()")


def lock_clone(session: Session) -> ServedClone | None:
    """Return the served clone, locked until the end of the transaction."""
    session.execute(_GUARD, _KEY)
    return session.scalars(select(ServedClone)).one_or_none()


def is_served(session: Session) -> bool:
    """Return whether another connection holds the services' lock."""
    return not session.scalars(_TRY_ALONE, _KEY).one()


def has_runs(session: Session) -> bool:
    return bool(session.scalars(select(exists().select_from(Run))).one())


def put_clone(session: Session, *, clone: str, place: str, root_commits: list[str]) -> None:
    """Set the clone that the database belongs to."""
    values = {"clone": clone, "place": place, "root_commits": root_commits, "since": func.now()}
    statement = insert(ServedClone).values(id=1, **values)
    session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=values))


def share(session: Session) -> None:
    """Take the services' lock, until this connection ends or `leave`. Call under `lock_clone`."""
    session.execute(_SHARE, _KEY)


def leave(session: Session) -> None:
    """Release the services' lock, on a connection that holds no other lock."""
    session.execute(_LEAVE)
