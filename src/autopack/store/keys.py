"""API keys, and the sessions of browsers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, func, or_, select, update
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..models import ApiKey, BrowserSession


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
