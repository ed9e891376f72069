"""Answers that are stored by the key, the lease or the body of their request. (rules §5)"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from ..models import Reply
from ..models.work import OF_ALL_RUNS
from .rows import Prepared, PreparedSelect, Rows
from .session import RowSession

REPLIES: Final = Rows(Reply)
_OF_SCOPE: Final = PreparedSelect(REPLIES, "WHERE run_pk = %s AND scope = %s")
_KEEP_REPLY: Final = Prepared(
    "keep_reply",
    "INSERT INTO replies (run_pk, scope, fingerprint, error_kind, body, created_at)"
    " SELECT %s, scope, %s, %s, %s, %s FROM unnest(%s::text[]) scope"
    " ON CONFLICT (run_pk, scope) DO UPDATE SET fingerprint = excluded.fingerprint,"
    " error_kind = excluded.error_kind, body = excluded.body, created_at = excluded.created_at",
)


_COMPLETE_REPLY: Final = (
    "UPDATE replies SET body = body || %s WHERE run_pk = %s AND scope = ANY(%s)"
)


def find_reply(session: RowSession, run_pk: int, scope: str) -> Reply | None:
    """Return the stored answer of a scope."""
    found = session.rows_by(_OF_SCOPE, (run_pk, scope))
    return found[0] if found else None


def find_run_of(session: RowSession, scope: str) -> str | None:
    """Return the run whose stored answer has a scope that counts over all runs."""
    query = """SELECT r.run_id FROM replies p JOIN runs r ON r.id = p.run_pk
        WHERE p.scope = %s AND starts_with(p.scope, %s)"""
    found = session.fetch(query, (scope, OF_ALL_RUNS))
    return str(found[0][0]) if found else None


def keep_reply(
    session: RowSession,
    run_pk: int,
    scopes: Sequence[str],
    *,
    fingerprint: str,
    error_kind: str | None,
    body: Mapping[str, Any],
    now: datetime,
) -> None:
    """Store an answer; a later one of the same scope replaces it."""
    values = (run_pk, fingerprint, error_kind, REPLIES.encode("body", dict(body)), now)
    session.gather(_KEEP_REPLY, (*values, list(scopes)))


def complete_reply(
    session: RowSession, run_pk: int, scopes: Sequence[str], late: Mapping[str, Any]
) -> None:
    """Add to a stored answer what is known only after its commit; a power cut may lose it."""
    values = (REPLIES.encode("body", dict(late)), run_pk, list(scopes))
    session.gather_unsynced((_COMPLETE_REPLY, values))
