"""Reviews that were requested."""

from __future__ import annotations

from typing import Final

from ..models import Audit
from .rows import Rows
from .session import RowSession

AUDITS: Final = Rows(Audit)


def add_audit(session: RowSession, audit: Audit) -> Audit:
    """Store an audit; it has its id at once."""
    audit.id = session.next_id(AUDITS)
    return session.put(AUDITS, audit)


def find_audit(session: RowSession, phase_pk: int, audit_id: int) -> Audit | None:
    """Return an audit of a phase."""
    return session.row(AUDITS, "WHERE phase_pk = %s AND id = %s", (phase_pk, audit_id))


def find_open_audit(session: RowSession, phase_pk: int) -> Audit | None:
    """Return the oldest audit of a phase that has no answer."""
    is_open = "WHERE phase_pk = %s AND answered_at IS NULL ORDER BY id LIMIT 1"
    return session.row(AUDITS, is_open, (phase_pk,))
