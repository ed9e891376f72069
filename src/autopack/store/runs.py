"""Runs with their tiers and phases, and their passage between the tables and the rules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import datetime
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    ScalarResult,
    TextClause,
    and_,
    bindparam,
    exists,
    func,
    insert,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from ..domain.errors import NotFoundError, UnavailableError
from ..domain.events import Event, EventRecord, from_record, seal, to_record
from ..domain.run import PhaseState, RunState, TierState
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Role
from ..models import Base, EventRow, Phase, Run, Tier
from .rows import read_off

Position = tuple[datetime, int]

RUNS_SEARCHED: Final = 5_000


class RunBusyError(UnavailableError):
    code = "run_busy"


_LOCK = text("SELECT pg_advisory_lock(hashtextextended(:run_id, 0))")
_TRY_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended(:run_id, 0))")
_UNLOCK = text("SELECT pg_advisory_unlock(hashtextextended(:run_id, 0))")


@contextmanager
def run_lock(session: Session, run_id: str, *, is_waiting: bool = True) -> Iterator[None]:
    """Hold the run's advisory lock, over any number of transactions of the session's connection.

    Raises RunBusyError when somebody else holds it and we are not to wait.

    The session has to be bound to a connection. The lock goes when the connection does, so a
    killed service leaves none behind.
    """
    key = {"run_id": run_id.lower()}
    if is_waiting:
        session.connection().execute(_LOCK, key)
    else:
        if not session.connection().scalar(_TRY_LOCK, key):
            raise RunBusyError(f"run '{run_id}' is busy; try again")
    try:
        yield
    except BaseException:
        with suppress(DBAPIError):  # the first failure is the one to be told
            session.rollback()  # which expires what was loaded, so only here
        raise
    finally:
        # A connection that was lost holds no lock; whatever was recorded before is.
        try:
            session.connection().execute(_UNLOCK, key)
            session.commit()
        except (DBAPIError, InvalidRequestError):
            session.invalidate()


def get_run(session: Session, run_id: str) -> Run:
    """Return a run with its tiers and phases. Raises NotFoundError."""
    return _with_graph(session, _one(session.scalars(_BY_NAME, _names(run_id)), run_id))


def lock_run(session: Session, run_id: str) -> Run:
    """Return a run with its tiers and phases, FOR UPDATE. Raises NotFoundError."""
    return _with_graph(session, _one(session.scalars(_BY_NAME_LOCKED, _names(run_id)), run_id))


def find_run_by_any_case(session: Session, run_id: str) -> Run | None:
    """Return the run whose name is the same but for case."""
    run = session.scalars(_BY_ANY_CASE, {"lower": run_id.lower()}).one_or_none()
    return run if run is None else _with_graph(session, run)


def list_runs(
    session: Session,
    *,
    limit: int,
    before: Position | None = None,
    status: RunStatus | None = None,
    project_id: str | None = None,
    containing: str | None = None,
) -> tuple[list[Run], Position | None]:
    """Return runs, newest first, without their phases, and where to go on, if there may be more.

    Text is looked for in a limited number of runs at a time, so that a rare one costs no more.
    """
    newest_first = (Run.created_at.desc(), Run.id.desc())
    wanted: list[ColumnElement[bool] | TextClause] = []
    if status is not None:
        wanted.append(Run.state == status)
    if project_id is not None:
        wanted.append(Run.project_id == project_id)
    if before is not None:
        after = text("(created_at, id) < (:at, :id)").bindparams(at=before[0], id=before[1])
        wanted.append(after)
    query = select(Run).order_by(*newest_first)
    if containing:
        names = select(Run.id, Run.created_at, Run.run_id).where(*wanted).order_by(*newest_first)
        name = names.limit(RUNS_SEARCHED).subquery("name").c
        found = select(name.id).where(name.run_id.icontains(containing, autoescape=True))
        found = found.order_by(name.created_at.desc(), name.id.desc()).limit(limit + 1)
        page = list(session.scalars(query.where(Run.id.in_(found))))
    else:
        page = list(session.scalars(query.where(*wanted).limit(limit + 1)))
    if len(page) > limit:
        page.pop()
        return page, (page[-1].created_at, page[-1].id)
    if containing:
        last = session.execute(names.offset(RUNS_SEARCHED - 1).limit(1)).one_or_none()
        return page, last and (last.created_at, last.id)
    return page, None


def list_with_work(
    session: Session, role: Role, limit: int, *, account: str | None, now: datetime
) -> list[str]:
    """Return live runs in which a phase may wait for an agent of this role, oldest first.

    A run that waits for the capacity of the agent's own account is none of them.
    """
    if role is Role.BUILDER:
        waiting = Phase.state == PhaseStatus.QUEUED
    else:
        waiting = and_(Phase.state == PhaseStatus.GATE, Phase.lease_id.is_(None))
    lacks_capacity = Phase.retry_at > now
    if account is not None:
        is_theirs = or_(Phase.retry_account.is_(None), Phase.retry_account == account)
        lacks_capacity = and_(lacks_capacity, is_theirs)
    query = (
        select(Run.run_id)
        .where(
            Run.ended_at.is_(None),
            exists().where(Phase.run_pk == Run.id, waiting),
            ~exists().where(
                Phase.run_pk == Run.id,
                or_(Phase.state.in_(_BUSY[role]), lacks_capacity),
            ),
        )
        .order_by(Run.created_at, Run.id)
        .limit(limit)
    )
    return list(session.scalars(query))


# A run whose phase is in such a state has nothing for that role: its phases follow each other.
_BUSY = {
    Role.BUILDER: (PhaseStatus.EXECUTING, PhaseStatus.GATE, PhaseStatus.CI_RUNNING),
    Role.AUDITOR: (PhaseStatus.EXECUTING, PhaseStatus.CI_RUNNING),
}


def list_lagging(session: Session, limit: int) -> list[str]:
    """Return runs whose branch or files have not caught up."""
    return list(
        session.scalars(
            select(Run.run_id)
            .where(Run.mirrored_revision < Run.revision)
            .order_by(Run.id)
            .limit(limit)
        )
    )


def list_mirrored(session: Session, limit: int | None) -> list[str]:
    """Return runs whose files have caught up, newest first."""
    query = (
        select(Run.run_id)
        .where(Run.mirrored_revision == Run.revision)
        .order_by(Run.created_at.desc(), Run.id.desc())
        .limit(limit)
    )
    return list(session.scalars(query))


def forget_mirrored(session: Session, run_ids: Collection[str]) -> None:
    """Let runs lag whose files are gone, so that all of them are written again."""
    lost = update(Run).where(Run.run_id.in_(run_ids)).values(mirrored_revision=0)
    session.execute(lost.execution_options(synchronize_session=False))


def list_overdue(session: Session, now: datetime, limit: int) -> list[str]:
    """Return live runs in which some wait has lasted too long."""
    overdue_runs = select(Run.run_id).where(Run.ended_at.is_(None), Run.deadline_at <= now)
    overdue_phases = (
        select(Run.run_id)
        .join(Phase, Phase.run_pk == Run.id)
        .where(Run.ended_at.is_(None), Phase.deadline_at.is_not(None), Phase.deadline_at <= now)
    )
    return list(session.scalars(overdue_runs.union(overdue_phases).limit(limit)))


def touch(session: Session) -> None:
    """See that the database answers and holds our tables."""
    session.execute(select(Run.id).limit(1))


def list_live_heads(session: Session) -> list[tuple[str, str]]:
    """Return the runs that are not over, each with the recorded head of its branch."""
    rows = session.execute(select(Run.run_id, Run.head_commit).where(Run.ended_at.is_(None)))
    return [(run_id, head) for run_id, head in rows]


def mark_mirrored(session: Session, run_pk: int, revision: int) -> None:
    """Note that branch and files show this revision; whoever lets go of the lock commits it."""
    session.connection().execute(_MIRRORED, {"key": run_pk, "shown": revision})


def phases_of(run: Run) -> dict[str, Phase]:
    """Return a loaded run's phases by name."""
    return {phase.phase_id: phase for tier in run.tiers for phase in tier.phases}


def get_phase(run: Run, phase_id: str) -> Phase:
    """Return a phase of a loaded run. Raises NotFoundError."""
    phase = phases_of(run).get(phase_id)
    if phase is None:
        raise NotFoundError(f"run '{run.run_id}' has no phase '{phase_id}'")
    return phase


def list_finished(session: Session, project_id: str, *, limit: int) -> list[Run]:
    """Return the newest runs that are over, without their tiers."""
    query = (
        select(Run)
        .where(Run.project_id == project_id, Run.ended_at.is_not(None))
        .order_by(Run.created_at.desc(), Run.id.desc())
        .limit(limit)
    )
    return list(session.scalars(query))


def get_plan(session: Session, run: Run) -> dict[str, Any]:
    """Return the plan as it was taken, debt cleanup included."""
    document: dict[str, Any] = session.scalars(select(Run.plan).where(Run.id == run.id)).one()
    return document


def get_strategy(session: Session, run: Run) -> dict[str, Any]:
    """Return the strategy document that was compiled when the run started."""
    document: dict[str, Any] | None = run.__dict__.get("strategy")  # a new run still has it
    return document or session.scalars(select(Run.strategy).where(Run.id == run.id)).one()


def list_events(session: Session, run_pk: int, *, after: int, limit: int | None) -> list[EventRow]:
    """Return a run's events in order, after a sequence number."""
    query = (
        select(EventRow)
        .where(EventRow.run_pk == run_pk, EventRow.sequence > after)
        .order_by(EventRow.sequence)
        .limit(limit)
    )
    return list(session.scalars(query))


def get_run_pk(session: Session, run_id: str) -> int:
    """Return a run's key without loading the run. Raises NotFoundError."""
    query = select(Run.id).where(func.lower(Run.run_id) == run_id.lower(), Run.run_id == run_id)
    key = session.scalars(query).one_or_none()
    if key is None:
        raise NotFoundError(f"there is no run '{run_id}'")
    return key


def read_state(run: Run) -> RunState:
    """Return a loaded run as the rules see it."""
    return read_off(
        RunState,
        run,
        tiers=tuple(read_off(TierState, tier) for tier in run.tiers),
        phases=tuple(read_off(PhaseState, phase) for tier in run.tiers for phase in tier.phases),
        issues={},
    )


def write_state(run: Run, state: RunState, before: RunState | None = None) -> None:
    """Write to the rows what the rules changed since `before`; None: write everything."""
    known: set[int] = {id(each) for each in (*before.tiers, *before.phases)} if before else set()
    _write(run, state, before)
    tiers = {tier.tier_id: tier for tier in run.tiers}
    for tier in state.tiers:
        if id(tier) not in known:  # values never change, so what is the same object is the same
            _write(tiers[tier.tier_id], tier)
    phases = phases_of(run)
    for phase in state.phases:
        if id(phase) not in known:
            _write(phases[phase.phase_id], phase)


def read_event(row: EventRow) -> EventRecord:
    """Return an event as it was recorded."""
    return read_off(EventRecord, row)


def read_events(session: Session, run_pk: int) -> list[tuple[int, Event]]:
    """Return all that happened to a run, each event with its sequence, in order.

    Raises EventError for one that these rules do not know.
    """
    rows = list_events(session, run_pk, after=0, limit=None)
    return [(row.sequence, from_record(read_event(row))) for row in rows]


def add_events(session: Session, run: Run, events: Sequence[Event]) -> None:
    """Append events to the run's chain; the caller holds the run's lock."""
    sealed = seal([to_record(event) for event in events], run.event_sequence, run.event_hash)
    if not sealed:
        return
    run.event_sequence = sealed[-1].sequence
    run.event_hash = sealed[-1].hash
    if run in session.new:
        session.flush()  # a new run gets its key, with the chain's end in the same statement
    rows = [
        {
            "run_pk": run.id,
            "sequence": one.sequence,
            "at": one.event.at,
            "actor": one.event.actor,
            "kind": one.event.kind,
            "phase_id": one.event.phase_id,
            "tier_id": one.event.tier_id,
            "from_state": one.event.from_state,
            "to_state": one.event.to_state,
            "reason": one.event.reason,
            "data": dict(one.event.data),
            "previous_hash": one.previous_hash,
            "hash": one.hash,
        }
        for one in sealed
    ]
    # Nobody asks for these rows again, so they need not become objects.
    session.connection().execute(insert(_EVENTS), rows)


# The index is over lower(run_id); the name itself has to match in full. These are made once, since
# every request needs one of them.
_BY_ANY_CASE = select(Run).where(func.lower(Run.run_id) == bindparam("lower"))
_BY_NAME = _BY_ANY_CASE.where(Run.run_id == bindparam("name"))
_BY_NAME_LOCKED = _BY_NAME.with_for_update(of=Run).execution_options(populate_existing=True)
_TIERS_AND_PHASES = (
    select(Tier, Phase)
    .join(Phase, Phase.tier_pk == Tier.id, isouter=True)
    .where(Tier.run_pk == bindparam("run_pk"))
    .order_by(Tier.tier_index, Phase.phase_index)
    .execution_options(populate_existing=True)
)


def _names(run_id: str) -> dict[str, str]:
    return {"lower": run_id.lower(), "name": run_id}


def _with_graph(session: Session, run: Run) -> Run:
    """Load a run's tiers and phases: one statement, where eager loading takes two."""
    phases: dict[Tier, list[Phase]] = {}
    for tier, phase in session.execute(_TIERS_AND_PHASES, {"run_pk": run.id}):
        members = phases.setdefault(tier, [])
        if phase is not None:
            members.append(phase)
    for tier, members in phases.items():
        set_committed_value(tier, "phases", members)
    set_committed_value(run, "tiers", list(phases))
    return run


def _one(rows: ScalarResult[Run], run_id: str) -> Run:
    run = rows.one_or_none()
    if run is None:
        raise NotFoundError(f"there is no run '{run_id}'")
    return run


_RUNS = Base.metadata.tables["runs"]
_EVENTS = Base.metadata.tables["events"]
_MIRRORED = (
    update(_RUNS)
    .where(_RUNS.c.id == bindparam("key"), _RUNS.c.mirrored_revision < bindparam("shown"))
    .values(mirrored_revision=bindparam("shown"))
)
_NOT_COLUMNS = frozenset({"tiers", "phases", "issues"})


def _write(row: object, state: Any, before: Any = None) -> None:
    for field in fields(state):
        if field.name in _NOT_COLUMNS:
            continue
        value = getattr(state, field.name)
        known = getattr(before or row, field.name)
        if value is known or value == known:
            continue
        setattr(row, field.name, list(value) if type(value) is tuple else value)
