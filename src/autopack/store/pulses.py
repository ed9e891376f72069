"""Signs of life of periodic work."""

from __future__ import annotations

from sqlalchemy import func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..models import Pulse


def try_turn(session: Session, name: str) -> bool:
    """Try to get the lock of periodic work, until the end of the transaction."""
    query = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:key, 0))")
    return bool(session.scalars(query, {"key": f"pulse:{name}"}).one())


def beat(session: Session, name: str) -> None:
    """Record that periodic work was completed now, by the database's clock."""
    statement = insert(Pulse).values(name=name, beaten_at=func.now())
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["name"], set_={"beaten_at": statement.excluded.beaten_at}
        )
    )


def silence(session: Session, name: str) -> float | None:
    """Return the seconds since periodic work was last completed; None: never."""
    query = select(func.extract("epoch", func.now() - Pulse.beaten_at)).where(Pulse.name == name)
    seconds = session.scalars(query).one_or_none()
    return None if seconds is None else float(seconds)
