"""The audit log of keys and policy. (docs/security.md)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..domain.audit_log import AuditAction, AuditEvent, first_broken
from ..store import audit_log as store
from ..store.session import RowSession
from ..views.keys import AuditEntryAnswer
from .context import AppContext


def note(
    session: RowSession,
    context: AppContext,
    action: AuditAction,
    subject: str,
    data: Mapping[str, Any],
) -> None:
    """Add what the caller does to the log, in the transaction that does it."""
    event = AuditEvent(context.now(), context.caller.actor, action, subject, data)
    store.append_entry(session, event)


def list_entries(
    context: AppContext, *, after: int, limit: int
) -> tuple[list[AuditEntryAnswer], int | None]:
    """Return a page of the log, oldest first, and after which number the next one begins."""
    with context.reading() as session:
        rows = store.list_entries(session, after=after, limit=limit + 1)
    page = rows[:limit]
    more = page[-1].sequence if len(rows) > limit else None
    return [AuditEntryAnswer.of(row) for row in page], more


def first_broken_entry(context: AppContext) -> int | None:
    """Return the number of the first entry that does not follow from those before it, or None."""
    with context.reading() as session:
        return first_broken(store.stream_entries(session))


def last_entries(
    context: AppContext, limit: int, before: int | None = None
) -> list[AuditEntryAnswer]:
    """Return the last entries of the log, or the last before a number, oldest first."""
    with context.reading() as session:
        return [AuditEntryAnswer.of(row) for row in store.last_entries(session, limit, before)]
