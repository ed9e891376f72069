"""Runs of CI."""

from __future__ import annotations

from dataclasses import fields

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..domain.reports import CiRunReport, read_off
from ..models import CiRun, Phase


def add_ci_run(session: Session, run: CiRun) -> CiRun:
    """Store a run of CI; it has its id afterwards."""
    session.add(run)
    session.flush()
    return run


def list_of_run(session: Session, run_pk: int) -> dict[str, list[CiRunReport]]:
    """Return a run's judgements by phase, oldest first."""
    columns = [getattr(CiRun, field.name) for field in fields(CiRunReport)]
    query = (
        select(Phase.phase_id, *columns)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.run_pk == run_pk)
        .order_by(CiRun.id)
    )
    found: dict[str, list[CiRunReport]] = {}
    for row in session.execute(query):
        found.setdefault(row.phase_id, []).append(read_off(CiRunReport, row))
    return found


def next_attempt(session: Session, phase_pk: int, commit: str) -> int:
    """Return the number of the next run of CI over a phase's commit."""
    query = select(func.coalesce(func.max(CiRun.attempt), 0) + 1).where(
        CiRun.phase_pk == phase_pk, CiRun.commit_sha == commit
    )
    return session.scalars(query).one()
