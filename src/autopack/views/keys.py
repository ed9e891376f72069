"""Answers about keys, callers and the audit log."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..domain.access import AccessRole
from ..domain.audit_log import AuditAction
from ..domain.limits import KeyLimits
from . import Shape, WireTime


class KeyAnswer(Shape):
    """A key without its secret, of which the service stores a digest alone."""

    name: str
    roles: list[AccessRole]
    project_id: str | None
    state: Literal["live", "expired", "revoked"]
    limits: KeyLimits
    created_at: WireTime
    created_by: str
    rotated_at: WireTime | None
    previous_until: WireTime | None
    expires_at: WireTime | None
    revoked_at: WireTime | None
    last_used_at: WireTime | None


class KeysAnswer(Shape):
    csv_rows: ClassVar[str] = "keys"

    keys: list[KeyAnswer]


class SecretKeyAnswer(Shape):
    """A key that was just made; its secret is told here and never again."""

    api_key: str
    key: KeyAnswer


class LimitsAnswer(Shape):
    requests_per_minute: int
    streams: int
    claims: int


class CallerAnswer(Shape):
    """`key` is null for a caller that needs none."""

    auth: Literal["loopback", "disabled", "required"]
    key: str | None
    roles: list[AccessRole]
    project_id: str | None
    limits: LimitsAnswer | None
    actor: str


class AuditEntryAnswer(Shape):
    sequence: int
    at: WireTime
    actor: str
    action: AuditAction
    subject: str
    data: dict[str, Any]
    previous_hash: str
    hash: str


class AuditPage(Shape):
    """Entries in their order; `hash` covers an entry and the hash of the one before it."""

    csv_rows: ClassVar[str] = "entries"

    entries: list[AuditEntryAnswer]
    next_cursor: str | None
