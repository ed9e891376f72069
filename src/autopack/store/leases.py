"""Leases: an agent's claim on a phase, found by the hash of its secret token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from ..advisory_locks import LEASES_OF_CALLER
from ..models import Lease
from .rows import Rows
from .session import RowSession


def hash_token(token: str) -> str:
    """Return the stored hash of a lease token. It has 256 random bits, so it needs no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


LEASES: Final = Rows(Lease)
_LOCK: Final = f"SELECT pg_advisory_xact_lock({LEASES_OF_CALLER.number('%s')})"
# More answers of one claim than are ever on their way at the same time.
MOST_FURTHER_TOKENS: Final = 8


def add_lease(session: RowSession, lease: Lease) -> Lease:
    """Store a lease; it has its id at once."""
    lease.id = session.next_id(LEASES)
    return session.put(LEASES, lease)


def find_lease(session: RowSession, phase_pk: int, token: str) -> Lease | None:
    """Return the open lease on a phase if this token proves it.

    Ended leases stay in the table for good. The index of the open ones has one entry a phase, so
    the hashes in it need no index of their own.
    """
    is_theirs = (
        "WHERE phase_pk = %s AND ended_at IS NULL"
        " AND (token_sha256 = %s OR %s = ANY(further_sha256))"
    )
    digest = hash_token(token)
    return session.row(LEASES, is_theirs, (phase_pk, digest, digest))


def add_token(session: RowSession, lease_id: int, token: str) -> Lease:
    """Let another token prove a lease too; return the lease.

    The tokens of before stay valid: a request that was sent twice may be answered in any order.
    """
    (lease,) = session.rows(LEASES, "WHERE id = %s", (lease_id,))
    lease.further_sha256 = [*lease.further_sha256, hash_token(token)][-MOST_FURTHER_TOKENS:]
    return lease


def count_open_of(session: RowSession, actor_prefix: str) -> int:
    """Return how many open leases actors of a prefix hold.

    Until the transaction ends, another count for this prefix waits: two claims see each other.
    """
    session.gather(_LOCK, (LEASES_OF_CALLER.text_of(actor_prefix),))
    count = "SELECT count(*) FROM leases WHERE ended_at IS NULL AND starts_with(actor, %s)"
    ((held,),) = session.fetch(count, (actor_prefix,))
    return int(held)


def end_leases(session: RowSession, lease_ids: Sequence[int], now: datetime) -> None:
    """Close leases."""
    statement = "UPDATE leases SET ended_at = %s WHERE id = ANY(%s) AND ended_at IS NULL"
    session.gather(statement, (now, list(lease_ids)))
