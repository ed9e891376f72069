"""Runs of CI and what they printed."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.terms import Verdict
from ..models import CiLog, CiRun, Phase, Run
from ..views.record import RecordedCiRun


def add_ci_run(session: Session, run: CiRun) -> CiRun:
    """Store a run of CI; it has its id afterwards."""
    session.add(run)
    session.flush()
    return run


def list_of_run(session: Session, run_pk: int) -> dict[str, list[RecordedCiRun]]:
    """Return a run's judgements by phase, oldest first."""
    columns = [getattr(CiRun, name) for name in RecordedCiRun.model_fields]
    query = (
        select(Phase.phase_id, *columns)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.run_pk == run_pk)
        .order_by(CiRun.id)
    )
    found: dict[str, list[RecordedCiRun]] = {}
    for row in session.execute(query):
        found.setdefault(row.phase_id, []).append(RecordedCiRun.of(row))
    return found


def next_attempt(session: Session, phase_pk: int, commit: str) -> int:
    """Return the number of the next run of CI over a phase's commit."""
    query = select(func.coalesce(func.max(CiRun.attempt), 0) + 1).where(
        CiRun.phase_pk == phase_pk, CiRun.commit_sha == commit
    )
    return session.scalars(query).one()


def find_place(session: Session, ci_run_id: int) -> tuple[str, str] | None:
    """Return the names of the run and the phase that a run of CI is for."""
    query = (
        select(Run.run_id, Phase.phase_id)
        .join_from(CiRun, Run, Run.id == CiRun.run_pk)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.id == ci_run_id)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else (row.run_id, row.phase_id)


def get_ci_run(session: Session, ci_run_id: int) -> CiRun:
    return session.scalars(select(CiRun).where(CiRun.id == ci_run_id)).one()


def list_earlier(session: Session, run: CiRun) -> Sequence[CiRun]:
    """Return the runs of CI over the same commit for the same phase that came before, in order."""
    query = (
        select(CiRun)
        .where(
            CiRun.phase_pk == run.phase_pk,
            CiRun.commit_sha == run.commit_sha,
            CiRun.attempt < run.attempt,
        )
        .order_by(CiRun.attempt)
    )
    return session.scalars(query).all()


def is_awaited(session: Session, ci_run_id: int) -> bool:
    """Say whether a run of CI has neither a verdict nor been given up."""
    query = select(CiRun.id).where(CiRun.id == ci_run_id, CiRun.ended_at.is_(None))
    return session.scalars(query).first() is not None


def list_under_way(session: Session, phase_pks: Collection[int]) -> Sequence[CiRun]:
    """Return the runs of CI of these phases that are still under way."""
    query = select(CiRun).where(CiRun.phase_pk.in_(phase_pks), CiRun.ended_at.is_(None))
    return session.scalars(query).all()


def list_ci_runs(session: Session, run_pk: int) -> list[tuple[CiRun, str]]:
    """Return the runs of CI of a run, in order, each with the name of its phase."""
    query = (
        select(CiRun, Phase.phase_id)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.run_pk == run_pk)
        .order_by(CiRun.id)
    )
    return [(run, phase_id) for run, phase_id in session.execute(query)]


def list_tails(session: Session, phase_pks: Collection[int]) -> dict[str, list[str]]:
    """Return how each run of CI of these phases ended, with its last words, by commit."""
    query = (
        select(CiRun.commit_sha, CiRun.profile, CiRun.verdict, CiRun.reason, CiRun.log_tail)
        .where(CiRun.phase_pk.in_(phase_pks), CiRun.verdict.is_not(None))
        .order_by(CiRun.id)
    )
    found: dict[str, list[str]] = {}
    for row in session.execute(query):
        text = f"$ CI ({row.profile}): {row.verdict}: {row.reason}\n{row.log_tail or ''}"
        found.setdefault(row.commit_sha, []).append(text)
    return found


def add_log(session: Session, ci_run_id: int, log: bytes) -> None:
    """Keep what a run of CI printed, unless another worker was quicker."""
    statement = insert(CiLog).values(ci_run_pk=ci_run_id, compressed=zlib.compress(log))
    session.execute(statement.on_conflict_do_nothing())


def get_log(session: Session, run_pk: int, ci_run_id: int) -> bytes:
    """Return what a run of CI of this run printed. Raises NotFoundError."""
    query = (
        select(CiRun.verdict, CiLog.compressed)
        .outerjoin(CiLog, CiLog.ci_run_pk == CiRun.id)
        .where(CiRun.run_pk == run_pk, CiRun.id == ci_run_id)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"the run has no CI run {ci_run_id}: see `GET /runs/{{run_id}}/ci`")
    if row.compressed is None:
        state = "is not done yet" if row.verdict is None else "was made elsewhere: see its `url`"
        raise NotFoundError(f"CI run {ci_run_id} has no log here: it {state}")
    return zlib.decompress(row.compressed)


def verdicts(runs: Sequence[CiRun]) -> list[Verdict]:
    return [run.verdict for run in runs if run.verdict is not None]
