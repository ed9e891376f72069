"""API keys and the audit log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func, or_, select, text, update
from sqlalchemy.orm import Session

from ..advisory_locks import AUDIT_LOG
from ..domain.audit import Deed, hash_of
from ..domain.errors import NotFoundError
from ..domain.events import GENESIS_HASH
from ..models import ApiKey, AuditEntry, BrowserSession

PAGE: Final = 1_000
_LOCK: Final = text(f"SELECT pg_advisory_xact_lock({AUDIT_LOG.number})")


def find_by_digest(session: Session, digest: str) -> ApiKey | None:
    """Return the key whose digest of now, or of before its rotation, this is."""
    query = select(ApiKey).where(or_(ApiKey.sha256 == digest, ApiKey.previous_sha256 == digest))
    return session.scalars(query).one_or_none()


def has_name(session: Session, name: str) -> bool:
    """Say whether there is, or was, a key of this name in any case."""
    query = select(ApiKey.id).where(func.lower(ApiKey.name) == name.lower())
    return session.scalars(query).first() is not None


def lock_key(session: Session, name: str) -> ApiKey:
    """Return a key for a change. Raises NotFoundError."""
    key = session.scalars(select(ApiKey).where(ApiKey.name == name).with_for_update()).one_or_none()
    if key is None:
        raise no_such_key(name)
    return key


def no_such_key(name: str) -> NotFoundError:
    """Return the error of a name that no key has, as far as the caller may know."""
    return NotFoundError(f"there is no key '{name}'")


def list_keys(session: Session) -> Sequence[ApiKey]:
    """Return every key, revoked and expired ones too, oldest first."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def append_deed(session: Session, deed: Deed) -> AuditEntry:
    """Add an entry to the log; until the transaction's end no other process can add one."""
    session.execute(_LOCK)
    last = session.execute(
        select(AuditEntry.sequence, AuditEntry.hash).order_by(AuditEntry.sequence.desc()).limit(1)
    ).one_or_none()
    sequence, previous = (last.sequence + 1, last.hash) if last else (1, GENESIS_HASH)
    entry = AuditEntry(
        sequence=sequence,
        at=deed.at,
        actor=deed.actor,
        action=deed.action,
        subject=deed.subject,
        data=dict(deed.data),
        previous_hash=previous,
        hash=hash_of(sequence, deed, previous),
    )
    session.add(entry)
    return entry


def list_deeds(session: Session, *, after: int, limit: int) -> Sequence[AuditEntry]:
    """Return entries of the log in their order, those after a number."""
    query = select(AuditEntry).where(AuditEntry.sequence > after)
    return session.scalars(query.order_by(AuditEntry.sequence).limit(limit)).all()


def last_deeds(session: Session, limit: int, before: int | None = None) -> Sequence[AuditEntry]:
    """Return the last entries of the log, or the last before a number, in their order."""
    query = select(AuditEntry).order_by(AuditEntry.sequence.desc()).limit(limit)
    if before is not None:
        query = query.where(AuditEntry.sequence < before)
    return session.scalars(query).all()[::-1]


def stream_deeds(session: Session) -> Iterator[AuditEntry]:
    """Yield the whole log in its order, a page at a time."""
    after = 0
    while page := list_deeds(session, after=after, limit=PAGE):
        yield from page
        after = page[-1].sequence
        session.expunge_all()


def touch(session: Session, key: ApiKey, now: datetime) -> None:
    """Note that a key was used."""
    session.execute(update(ApiKey).where(ApiKey.id == key.id).values(last_used_at=now))


def find_session(session: Session, digest: str, now: datetime) -> BrowserSession | None:
    """Return the browser's session of a cookie's digest, if it is not over."""
    found = session.get(BrowserSession, digest)
    return None if found is None or found.expires_at <= now else found


def add_session(session: Session, opened: BrowserSession, now: datetime) -> None:
    """Add a browser's session, and remove those that are over."""
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    session.add(opened)


def remove_session(session: Session, digest: str) -> None:
    """End a browser's session."""
    session.execute(delete(BrowserSession).where(BrowserSession.sha256 == digest))
