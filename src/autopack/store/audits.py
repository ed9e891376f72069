"""Reviews that were asked for."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..models import Audit


def add_audit(session: Session, audit: Audit) -> Audit:
    """Store an audit; it has its id afterwards."""
    session.add(audit)
    session.flush()
    return audit


def find_audit(session: Session, phase_pk: int, audit_id: int) -> Audit | None:
    """Return an audit of a phase."""
    query = select(Audit).where(Audit.phase_pk == phase_pk, Audit.id == audit_id)
    return session.scalars(query).one_or_none()


def find_open_audit(session: Session, phase_pk: int) -> Audit | None:
    """Return the oldest audit of a phase that nobody has answered."""
    query = (
        select(Audit)
        .where(Audit.phase_pk == phase_pk, Audit.answered_at.is_(None))
        .order_by(Audit.id)
        .limit(1)
    )
    return session.scalars(query).one_or_none()
