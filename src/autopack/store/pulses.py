"""Signs of life of periodic work."""

from __future__ import annotations

from typing import Final

from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from ..advisory_locks import PERIODIC_WORK
from ..models import Pulse
from .session import RowSession

# A frozen process loses its turn after so long without `keep_turn`; less than the silence after
# which the service counts as unhealthy (services/health.py).
IDLE_MILLISECONDS: Final = 45_000
_TRY_TURN: Final = text(
    f"SELECT pg_try_advisory_xact_lock({PERIODIC_WORK.number(':key')}),"
    " set_config('idle_in_transaction_session_timeout', :idle, true)"
)


def try_turn(session: Session, name: str) -> bool:
    """Try to get the lock of periodic work, until the end of the transaction."""
    values = {"key": PERIODIC_WORK.text_of(name), "idle": str(IDLE_MILLISECONDS)}
    return bool(session.execute(_TRY_TURN, values).one()[0])


def keep_turn(session: Session) -> None:
    """Tell Postgres that the process with the turn works. Raises DBAPIError if it was lost."""
    session.execute(text("SELECT 1"))


def note_completed(session: RowSession, name: str) -> None:
    """Record that periodic work was completed now, by the database's clock."""
    session.gather(
        "INSERT INTO pulses (name, beaten_at) VALUES (%s, now())"
        " ON CONFLICT (name) DO UPDATE SET beaten_at = excluded.beaten_at",
        (name,),
    )


def silence(session: Session, name: str) -> float | None:
    """Return the seconds since periodic work was last completed; None: never."""
    query = select(func.extract("epoch", func.now() - Pulse.beaten_at)).where(Pulse.name == name)
    seconds = session.scalars(query).one_or_none()
    return None if seconds is None else float(seconds)
