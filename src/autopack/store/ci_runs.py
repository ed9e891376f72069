"""CI runs and their logs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Final

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.retention import DetailsRemovedError
from ..domain.terms import Verdict
from ..models import CiLog, CiRun, Phase, Run
from ..views.record import RecordedCiRun
from .rows import Rows
from .session import RowSession

CI_RUNS: Final = Rows(CiRun)


def add_ci_run(session: RowSession, run: CiRun) -> CiRun:
    """Store a CI run; its id and the number of its attempt at the commit are set at once."""
    ((run.attempt, run.id),) = session.fetch(
        "SELECT coalesce(max(attempt), 0) + 1, nextval(pg_get_serial_sequence('ci_runs', 'id'))"
        " FROM ci_runs WHERE phase_pk = %s AND commit_sha = %s",
        (run.phase_pk, run.commit_sha),
    )
    return session.put(CI_RUNS, run)


def list_of_run(session: Session, run_pk: int) -> dict[str, list[RecordedCiRun]]:
    """Return a run's CI runs by phase, oldest first."""
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


def find_phase(session: Session, ci_run_id: int) -> tuple[str, str] | None:
    """Return the names of the run and the phase of a CI run."""
    query = (
        select(Run.run_id, Phase.phase_id)
        .join_from(CiRun, Run, Run.id == CiRun.run_pk)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.id == ci_run_id)
    )
    row = session.execute(query).one_or_none()
    return None if row is None else (row.run_id, row.phase_id)


def get_ci_run(session: RowSession, ci_run_id: int) -> CiRun:
    """Return a run of CI. Raises NotFoundError, as its run may have been deleted by hand."""
    found = session.row(CI_RUNS, "WHERE id = %s", (ci_run_id,))
    if found is None:
        raise NotFoundError(f"there is no CI run {ci_run_id}")
    return found


def list_earlier(session: RowSession, run: CiRun) -> Sequence[CiRun]:
    """Return the earlier CI runs on the same commit for the same phase, in order."""
    earlier = "WHERE phase_pk = %s AND commit_sha = %s AND attempt < %s ORDER BY attempt"
    return session.rows(CI_RUNS, earlier, (run.phase_pk, run.commit_sha, run.attempt))


def is_awaited(session: Session, ci_run_id: int) -> bool:
    """Return whether a CI run has neither a verdict nor an end."""
    query = select(CiRun.id).where(CiRun.id == ci_run_id, CiRun.ended_at.is_(None))
    return session.scalars(query).first() is not None


def list_under_way(session: RowSession, phase_pks: Sequence[int]) -> Sequence[CiRun]:
    """Return the CI runs of these phases that have not ended."""
    under_way = "WHERE phase_pk = ANY(%s) AND ended_at IS NULL"
    return session.rows(CI_RUNS, under_way, (list(phase_pks),))


def list_ci_runs(session: Session, run_pk: int) -> list[tuple[CiRun, str]]:
    """Return a run's CI runs in order, each with the name of its phase."""
    query = (
        select(CiRun, Phase.phase_id)
        .join(Phase, Phase.id == CiRun.phase_pk)
        .where(CiRun.run_pk == run_pk)
        .order_by(CiRun.id)
    )
    return [(run, phase_id) for run, phase_id in session.execute(query)]


def list_of_phase(session: Session, phase_pk: int) -> Sequence[CiRun]:
    """Return the CI runs of a phase, newest first."""
    query = select(CiRun).where(CiRun.phase_pk == phase_pk).order_by(CiRun.id.desc())
    return session.scalars(query).all()


def list_tails(session: RowSession, phase_pks: Sequence[int]) -> dict[str, list[str]]:
    """Return the verdict and the end of the log of each CI run of these phases, by commit."""
    query = (
        "SELECT commit_sha, profile, verdict, reason, log_tail FROM ci_runs"
        " WHERE phase_pk = ANY(%s) AND verdict IS NOT NULL ORDER BY id"
    )
    found: dict[str, list[str]] = {}
    for commit, profile, verdict, reason, tail in session.fetch(query, (list(phase_pks),)):
        text = f"$ CI ({profile}): {verdict}: {reason}\n{tail or ''}"
        found.setdefault(commit, []).append(text)
    return found


def add_log(session: Session, ci_run_id: int, log: bytes) -> None:
    """Store the log of a CI run, unless another worker has stored one."""
    statement = insert(CiLog).values(ci_run_pk=ci_run_id, compressed=zlib.compress(log))
    session.execute(statement.on_conflict_do_nothing())


def get_log(session: Session, run_pk: int, ci_run_id: int) -> bytes:
    """Return the log of a CI run of this run. Raises NotFoundError."""
    query = (
        select(CiRun.verdict, CiLog.compressed, Run.run_id, Run.details_removed_at)
        .join(Run, Run.id == CiRun.run_pk)
        .outerjoin(CiLog, CiLog.ci_run_pk == CiRun.id)
        .where(CiRun.run_pk == run_pk, CiRun.id == ci_run_id)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"the run has no CI run {ci_run_id}: see `GET /runs/{{run_id}}/ci`")
    if row.compressed is None and row.details_removed_at is not None:
        raise DetailsRemovedError.of(row.run_id, row.details_removed_at)
    if row.compressed is None:
        state = "is not done yet" if row.verdict is None else "was made elsewhere: see its `url`"
        raise NotFoundError(f"CI run {ci_run_id} has no log here: it {state}")
    return zlib.decompress(row.compressed)


def verdicts(runs: Sequence[CiRun]) -> list[Verdict]:
    return [run.verdict for run in runs if run.verdict is not None]
