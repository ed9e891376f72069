"""Leases: who holds a phase, told by the hash of a token that only the holder knows."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from ..models import Lease, Phase


def hash_token(token: str) -> str:
    """Return what is kept of a lease token: 256 random bits need no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def add_lease(session: Session, lease: Lease) -> Lease:
    """Store a lease; it has its id afterwards."""
    session.add(lease)
    session.flush()
    return lease


def find_lease(session: Session, phase_pk: int, token: str) -> Lease | None:
    """Return the lease on a phase that a token belongs to, open or not."""
    query = select(Lease).where(Lease.phase_pk == phase_pk, Lease.token_sha256 == hash_token(token))
    return session.scalars(query).one_or_none()


def end_leases(session: Session, lease_ids: Iterable[int], now: datetime) -> None:
    """Close leases."""
    session.execute(
        update(Lease).where(Lease.id.in_(lease_ids), Lease.ended_at.is_(None)).values(ended_at=now)
    )


def extend(
    session: Session,
    lease: Lease,
    phase: Phase,
    expires_at: datetime,
    tokens_reported: int,
    cost_reported: Decimal,
) -> None:
    """Let a lease hold longer, and note what its agent says it has spent so far."""
    lease.expires_at = expires_at
    phase.deadline_at = expires_at
    phase.tokens_reported = tokens_reported
    phase.cost_reported_usd = cost_reported
    session.flush()
