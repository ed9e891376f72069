"""API keys, and the log of what was done to keys and policy."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, Text, text
from sqlalchemy.orm import Mapped, mapped_column

from ..domain.access import AccessRole
from ..domain.audit_log import AuditAction
from .base import Base, Id, Json, one_of

_ROLES = ", ".join(f"'{role}'" for role in AccessRole)


class ApiKey(Base):
    """A key by its digests; a rotation keeps the digest before for an hour."""

    __tablename__ = "api_keys"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    roles: Mapped[list[str]] = mapped_column(ARRAY(Text))
    project_id: Mapped[str | None]
    limits: Mapped[Json] = mapped_column(default=dict, server_default=text("'{}'"))
    sha256: Mapped[str] = mapped_column(unique=True)
    previous_sha256: Mapped[str | None] = mapped_column(unique=True)
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    rotated_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]

    __table_args__ = (
        CheckConstraint(f"roles <@ ARRAY[{_ROLES}] AND cardinality(roles) > 0", name="roles_known"),
    )


class BrowserSession(Base):
    """A browser that is signed in to the dashboard, by the digests of its cookie and of the key.

    The session is as good as that secret of the key: it ends when the key does, and an hour after
    the key's rotation.
    """

    __tablename__ = "browser_sessions"

    sha256: Mapped[str] = mapped_column(primary_key=True)
    key_sha256: Mapped[str]
    expires_at: Mapped[datetime] = mapped_column(index=True)


class AuditEntry(Base):
    """One entry of the audit log; entries are added and never changed."""

    __tablename__ = "audit_log"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[AuditAction]
    subject: Mapped[str]
    data: Mapped[Json]
    previous_hash: Mapped[str]
    hash: Mapped[str]

    __table_args__ = (
        one_of("action", AuditAction),
        CheckConstraint("sequence > 0", name="sequence_positive"),
    )
