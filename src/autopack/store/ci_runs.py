"""Runs of CI."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..models import CiRun


def add_ci_run(session: Session, run: CiRun) -> CiRun:
    """Store a run of CI; it has its id afterwards."""
    session.add(run)
    session.flush()
    return run


def next_attempt(session: Session, phase_pk: int, commit: str) -> int:
    """Return the number of the next run of CI over a phase's commit."""
    query = select(func.coalesce(func.max(CiRun.attempt), 0) + 1).where(
        CiRun.phase_pk == phase_pk, CiRun.commit_sha == commit
    )
    return session.scalars(query).one()
