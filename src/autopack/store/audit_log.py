"""The audit log of keys and policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from ..advisory_locks import AUDIT_LOG
from ..domain.audit_log import AuditEvent, hash_of
from ..domain.events import GENESIS_HASH
from ..models import AuditEntry

PAGE: Final = 1_000
_LOCK: Final = text(f"SELECT pg_advisory_xact_lock({AUDIT_LOG.number})")


def append_entry(session: Session, event: AuditEvent) -> AuditEntry:
    """Add an entry to the log; until the transaction's end no other process can add one."""
    session.execute(_LOCK)
    last = session.execute(
        select(AuditEntry.sequence, AuditEntry.hash).order_by(AuditEntry.sequence.desc()).limit(1)
    ).one_or_none()
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS_HASH)
    entry = AuditEntry(
        sequence=sequence,
        at=event.at,
        actor=event.actor,
        action=event.action,
        subject=event.subject,
        data=dict(event.data),
        previous_hash=previous,
        hash=hash_of(sequence, event, previous),
    )
    session.add(entry)
    return entry


def list_entries(session: Session, *, after: int, limit: int) -> Sequence[AuditEntry]:
    """Return entries of the log in their order, those after a number."""
    query = select(AuditEntry).where(AuditEntry.sequence > after)
    return session.scalars(query.order_by(AuditEntry.sequence).limit(limit)).all()


def last_entries(session: Session, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
    """Return the last entries of the log, or the last before a number, in their order."""
    query = select(AuditEntry).order_by(AuditEntry.sequence.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.sequence < before)
    return session.scalars(query).all()[::-1]


def stream_entries(session: Session) -> Iterator[AuditEntry]:
    """Yield the whole log in its order, a page at a time."""
    after = 0
    while page := list_entries(session, after=after, limit=PAGE):
        yield from page
        after = page[-1].sequence
        session.expunge_all()
