"""Runs with their tiers and phases, and their conversion between tables and rules."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import fields, replace
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    TextClause,
    exists,
    func,
    or_,
    select,
    text,
    true,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.orm import InstrumentedAttribute, Session

from .. import tracing
from ..advisory_locks import CLAIM_KEY, RUN
from ..domain.dependencies import DependencyChange, dependency_document
from ..domain.errors import NotFoundError, UnavailableError
from ..domain.events import (
    TRACEPARENT,
    Event,
    EventError,
    EventRecord,
    from_record,
    seal,
    to_record,
)
from ..domain.evidence import Evidence
from ..domain.promotion import PromotionState
from ..domain.run import FAILURE_STATES, PhaseState, RunState, TierState
from ..domain.run_filter import RunFilter
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Role
from ..models import EventRow, Issue, Phase, Run, Tier
from . import nodes
from .feed import ANNOUNCE
from .rows import Part, Prepared, PreparedParts, PreparedSelect, Rows, derived, read_off
from .session import RowSession

Position = tuple[datetime, int]

RUNS_SEARCHED: Final = 5_000


class RunBusyError(UnavailableError):
    code = "run_busy"


RUNS: Final = Rows(Run)
TIERS: Final = Rows(Tier, kept=300)
PHASES: Final = Rows(Phase, kept=3_000)
EVENTS: Final = Rows(EventRow)

_LOCK: Final = f"SELECT pg_advisory_lock({RUN.number('%s')})"
_TRY_LOCK: Final = f"SELECT pg_try_advisory_lock({RUN.number('%s')})"
_UNLOCK: Final = f"SELECT pg_advisory_unlock({RUN.number('%s')})"
_LOCK_CLAIM_KEY: Final = f"SELECT pg_advisory_lock({CLAIM_KEY.number('%s')})"
_UNLOCK_CLAIM_KEY: Final = f"SELECT pg_advisory_unlock({CLAIM_KEY.number('%s')})"


def _whole(condition: str) -> PreparedParts:
    """Return the SELECT of a run with its tiers and phases."""
    return PreparedParts(
        "select_run",
        Part(RUNS.column_list, "found AS runs"),
        Part(TIERS.column_list, "tiers WHERE run_pk = (SELECT id FROM found)"),
        Part(PHASES.column_list, "phases WHERE run_pk = (SELECT id FROM found)"),
        before=f"WITH found AS ({PreparedSelect(RUNS, f'WHERE {condition}').statement})",
    )


# The index is over lower(run_id); the name itself must match exactly.
_BY_NAME: Final = _whole("lower(run_id) = %s AND run_id = %s")
# Tiers and phases are as they were when the statement began: then the run's lock was held.
_BY_NAME_LOCKED: Final = _whole("lower(run_id) = %s AND run_id = %s FOR UPDATE")
_BY_ANY_CASE: Final = _whole("lower(run_id) = %s")
_MARK_MIRRORED: Final = Prepared(
    "mark_mirrored",
    "UPDATE runs SET mirrored_revision = %s WHERE id = %s AND mirrored_revision < %s"
    " AND mirrored_by = %s",
)


@contextmanager
def run_lock(session: RowSession, run_id: str, *, is_waiting: bool = True) -> Iterator[None]:
    """Hold the run's advisory lock, over any number of transactions of the session's connection.

    It is taken together with the first statement in the body, so that it needs no round trip. Each
    statement has its own snapshot, so the first one reads what was committed before the lock. If
    the caller must not wait, raises RunBusyError when another session holds the lock.

    The session must be bound to a connection. The lock ends with the connection, so a killed
    service leaves none.
    """
    key = (RUN.text_of(run_id.lower()),)
    if is_waiting:
        session.gather(_LOCK, key)
    else:
        with _no_lock_left(session):
            ((is_mine,),) = session.fetch(_TRY_LOCK, key)
        if not is_mine:
            raise RunBusyError(f"run '{run_id}' is busy; try again")
    with unlocking(session, run_id):
        yield


@contextmanager
def claim_key_lock(session: RowSession, scope: str) -> Iterator[None]:
    """Hold the lock of a key of claims over all runs, as `run_lock`; take it before a run's."""
    key = (CLAIM_KEY.text_of(scope),)
    session.gather(_LOCK_CLAIM_KEY, key)
    with _unlocking(session, _UNLOCK_CLAIM_KEY, key):
        yield


@contextmanager
def _no_lock_left(session: RowSession) -> Iterator[None]:
    """Give up the connection when a statement fails that may have taken a lock before."""
    try:
        yield
    except BaseException:
        session.invalidate()
        raise


def unlocking(session: RowSession, run_id: str) -> AbstractContextManager[None]:
    """Commit and release the run's lock in the end; a failure of the body is rolled back."""
    return _unlocking(session, _UNLOCK, (RUN.text_of(run_id.lower()),))


@contextmanager
def _unlocking(session: RowSession, unlock: str, key: tuple[str]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(DBAPIError, InvalidRequestError):  # the first error is the one to raise
            session.rollback()
        raise
    finally:
        # A lost connection holds no lock; earlier commits stay.
        with suppress(DBAPIError, InvalidRequestError), _no_lock_left(session):
            session.gather(unlock, key)
            session.commit()


def get_run(session: RowSession, run_id: str) -> Run:
    """Return a run with its tiers and phases. Raises NotFoundError."""
    return _one(_find_whole(session, _BY_NAME, _names(run_id)), run_id)


def lock_run(session: RowSession, run_id: str) -> Run:
    """Begin a transaction, and return a run with its tiers and phases, FOR UPDATE.

    The caller holds the run's lock, without which nothing changes tiers or phases. Raises
    NotFoundError.
    """
    session.begin_change()
    return _one(_find_whole(session, _BY_NAME_LOCKED, _names(run_id)), run_id)


def find_run_by_any_case(session: RowSession, run_id: str) -> Run | None:
    """Return the run with this name in any letter case."""
    return _find_whole(session, _BY_ANY_CASE, (run_id.lower(),))


def list_runs(
    session: Session, wanted: RunFilter, *, limit: int, before: Position | None = None
) -> tuple[list[Run], Position | None]:
    """Return runs, newest first, without their phases, and a cursor if there may be more.

    Text is searched in a limited number of runs at a time, so that a rare text costs no more.
    """
    newest_first = (Run.created_at.desc(), Run.id.desc())
    conditions = list(_conditions(wanted))
    if before is not None:
        after = text("(created_at, id) < (:at, :id)").bindparams(at=before[0], id=before[1])
        conditions.append(after)
    query = select(Run).order_by(*newest_first)
    if wanted.containing:
        names = (
            select(Run.id, Run.created_at, Run.run_id).where(*conditions).order_by(*newest_first)
        )
        name = names.limit(RUNS_SEARCHED).subquery("name").c
        found = select(name.id).where(_contains(name.id, name.run_id, wanted.containing))
        found = found.order_by(name.created_at.desc(), name.id.desc()).limit(limit + 1)
        page = list(session.scalars(query.where(Run.id.in_(found))))
    else:
        page = list(session.scalars(query.where(*conditions).limit(limit + 1)))
    if len(page) > limit:
        page.pop()
        return page, (page[-1].created_at, page[-1].id)
    if wanted.containing:
        last = session.execute(names.offset(RUNS_SEARCHED - 1).limit(1)).one_or_none()
        return page, last and (last.created_at, last.id)
    return page, None


def _conditions(wanted: RunFilter) -> Iterator[ColumnElement[bool] | TextClause]:
    if wanted.status is not None:
        yield Run.state == wanted.status
    if wanted.failure_code is not None:
        # The state follows from the code, and has an index.
        yield Run.state == FAILURE_STATES[wanted.failure_code]
        yield Run.failure_code == wanted.failure_code
    if wanted.project_id is not None:
        yield Run.project_id == wanted.project_id
    if wanted.is_live is not None:
        yield Run.ended_at.is_(None) if wanted.is_live else Run.ended_at.is_not(None)
    if wanted.ended_since is not None:
        yield Run.ended_at >= wanted.ended_since
    match wanted.promotion:
        case PromotionState.UNDECIDED:
            yield Run.ended_at.is_(None)
        case PromotionState.ELIGIBLE:
            yield Run.promotion_eligible_to_main == true()
        case PromotionState.BLOCKED:
            yield Run.state == RunStatus.DONE_SUCCESS
            yield Run.promotion_eligible_to_main.is_(False)
        case PromotionState.NEVER:
            yield Run.failure_code.is_not(None)


def _contains(run_pk: ColumnElement[int], name: ColumnElement[str], wanted: str) -> Any:
    def holds(column: ColumnElement[str] | InstrumentedAttribute[str]) -> ColumnElement[bool]:
        return column.icontains(wanted, autoescape=True)

    # OFFSET keeps Postgres from reading both tables as a whole into a hash of all runs.
    phase = select(Phase.id).where(
        Phase.run_pk == run_pk, or_(holds(Phase.phase_id), holds(Phase.name))
    )
    issue = select(Issue.id).where(Issue.run_pk == run_pk, holds(Issue.issue_key))
    found = (exists(each.offset(0)) for each in (phase, issue))
    return or_(holds(name), *found)


def lock_with_work(
    session: RowSession, role: Role, *, account: str | None, now: datetime, passed: Sequence[str]
) -> str | None:
    """Lock the oldest live run in which a phase may wait for an agent of this role.

    Runs that another process has locked are skipped, as are those in `passed`. A run that waits for
    the capacity of the agent's own account has no such phase. Call `unlocking` with it.
    """
    is_builder = role is Role.BUILDER
    values = {
        "waiting": PhaseStatus.QUEUED if is_builder else PhaseStatus.GATE,
        "is_builder": is_builder,
        "busy": list(_BUSY[role]),
        "account": account,
        "now": now,
        "passed": list(passed),
    }
    with _no_lock_left(session):
        found = session.fetch(_LOCK_WITH_WORK, values)
    return str(found[0][0]) if found else None


# A run with a phase in such a state has no work for that role, if its phases run one by one.
_BUSY = {
    Role.BUILDER: (PhaseStatus.EXECUTING, PhaseStatus.GATE, PhaseStatus.CI_RUNNING),
    Role.AUDITOR: (PhaseStatus.EXECUTING, PhaseStatus.CI_RUNNING),
}

# The list is computed before any lock is tried, and read only up to the first free run.
_LOCK_WITH_WORK: Final = f"""
    WITH candidate AS MATERIALIZED (
        SELECT r.run_id FROM runs r
        WHERE r.ended_at IS NULL AND r.run_id <> ALL(%(passed)s)
            AND EXISTS (SELECT FROM phases p WHERE p.run_pk = r.id AND p.state = %(waiting)s
                AND (%(is_builder)s OR p.lease_id IS NULL))
            AND (r.is_parallel OR NOT EXISTS (SELECT FROM phases p WHERE p.run_pk = r.id
                AND (p.state = ANY(%(busy)s) OR p.retry_at > %(now)s AND (%(account)s IS NULL
                    OR p.retry_account IS NULL OR p.retry_account = %(account)s))))
        ORDER BY r.created_at, r.id
    )
    SELECT run_id FROM candidate
    WHERE pg_try_advisory_lock({RUN.number("lower(run_id)")})
    LIMIT 1"""  # noqa: S608 - the number is SQL of advisory_locks, values are parameters


def list_lagging(session: RowSession, node_id: str, limit: int) -> list[str]:
    """Return runs that a node changed last and that it does not show, in any order.

    Some may lag for good.
    """
    found = session.fetch(
        "SELECT run_id FROM runs WHERE mirrored_revision < revision AND mirrored_by = %s"
        " ORDER BY random() LIMIT %s",
        (node_id, limit),
    )
    return [run_id for (run_id,) in found]


def list_mirrored(session: RowSession, node_id: str, limit: int | None) -> list[str]:
    """Return runs whose files a node shows, newest first."""
    found = session.fetch(
        "SELECT r.run_id FROM runs r LEFT JOIN node_runs s ON s.run_pk = r.id AND s.node_id = %s"
        " WHERE CASE WHEN r.mirrored_by = %s THEN r.mirrored_revision ELSE s.revision END"
        " = r.revision ORDER BY r.created_at DESC, r.id DESC LIMIT %s",
        (node_id, node_id, limit),
    )
    return [run_id for (run_id,) in found]


def list_names(session: RowSession) -> list[str]:
    """Return the names of all runs, oldest first."""
    return [name for (name,) in session.fetch("SELECT run_id FROM runs ORDER BY id")]


def last_event(session: RowSession) -> int:
    """Return the id of the newest event of all runs; 0 without any."""
    ((event_id,),) = session.fetch("SELECT coalesce(max(id), 0) FROM events")
    return int(event_id)


def last_event_of(session: RowSession, run_pk: int) -> int:
    """Return the id of a run's newest event."""
    ((event_id,),) = session.fetch(
        "SELECT id FROM events WHERE run_pk = %s ORDER BY sequence DESC LIMIT 1", (run_pk,)
    )
    return int(event_id)


def list_changed_since(session: RowSession, event_id: int) -> list[str]:
    """Return the runs that have an event newer than this one."""
    statement = "SELECT DISTINCT r.run_id FROM events e JOIN runs r ON r.id = e.run_pk"
    return [name for (name,) in session.fetch(f"{statement} WHERE e.id > %s", (event_id,))]


def list_overdue(session: RowSession, now: datetime, limit: int) -> list[str]:
    """Return live runs in which a deadline has passed."""
    found = session.fetch(
        "SELECT run_id FROM runs WHERE ended_at IS NULL AND deadline_at <= %s"
        " UNION SELECT r.run_id FROM runs r JOIN phases p ON p.run_pk = r.id"
        " WHERE r.ended_at IS NULL AND p.deadline_at IS NOT NULL AND p.deadline_at <= %s LIMIT %s",
        (now, now, limit),
    )
    return [run_id for (run_id,) in found]


def touch(session: Session) -> None:
    """Check that the database answers and has the service's tables."""
    session.execute(select(Run.id).limit(1))


def list_live_heads(session: RowSession, node_id: str) -> list[tuple[str, str]]:
    """Return the runs that are not over and that a node shows, with the heads of their branches."""
    found = session.fetch(
        "SELECT r.run_id, r.head_commit FROM runs r"
        " LEFT JOIN node_runs s ON s.run_pk = r.id AND s.node_id = %s"
        " WHERE r.ended_at IS NULL AND (r.mirrored_by = %s OR s.revision = r.revision)",
        (node_id, node_id),
    )
    return [(run_id, head) for run_id, head in found]


def mark_mirrored(session: RowSession, run: Run, node_id: str) -> None:
    """Record that branch and files of a node show the run, together with the release of the lock.

    Readers of the feed are told then: what they do next finds branch and files as the events say.
    The checkpoint of the node that changed it last is on the run's row, others are beside it.
    """
    if run.mirrored_by == node_id:
        # If it is lost, the files are written again.
        values = (run.revision, run.id, run.revision, node_id)
        session.gather_unsynced((_MARK_MIRRORED, values), (ANNOUNCE, ()))
    else:
        nodes.reach_checkpoint(session, run, node_id)


def phases_of(run: Run) -> dict[str, Phase]:
    """Return a loaded run's phases by name."""
    return {phase.phase_id: phase for phase in run.phases}


def get_phase(run: Run, phase_id: str) -> Phase:
    """Return a phase of a loaded run. Raises NotFoundError."""
    phase = phases_of(run).get(phase_id)
    if phase is None:
        raise NotFoundError(f"run '{run.run_id}' has no phase '{phase_id}'")
    return phase


def list_finished(session: Session, project_id: str, *, limit: int) -> list[Run]:
    """Return the newest runs that are over and have their details, without their tiers."""
    query = (
        select(Run)
        .where(
            Run.project_id == project_id,
            Run.ended_at.is_not(None),
            Run.details_removed_at.is_(None),
        )
        .order_by(Run.created_at.desc(), Run.id.desc())
        .limit(limit)
    )
    return list(session.scalars(query))


def get_plan(session: RowSession, run: Run) -> dict[str, Any]:
    """Return the accepted plan, with debt cleanup."""
    return _document(session, run, "plan")


def get_strategy(session: RowSession, run: Run) -> dict[str, Any]:
    """Return the strategy document that was compiled when the run started."""
    return _document(session, run, "strategy")


def _document(session: RowSession, run: Run, column: str) -> dict[str, Any]:
    document: dict[str, Any] | None = run.__dict__.get(column)  # still loaded for a new run
    if document is None:
        query = f"SELECT {column} FROM runs WHERE id = %s"  # noqa: S608 - one of two names
        ((document,),) = session.fetch(query, (run.id,))
    return document


def list_events(
    session: RowSession, run_pk: int, *, after: int, limit: int | None
) -> list[EventRow]:
    """Return a run's events in order, after a sequence number."""
    query = (
        f"SELECT {EVENTS.columns} FROM events"  # noqa: S608 - names of the model
        " WHERE run_pk = %s AND sequence > %s ORDER BY sequence LIMIT %s"
    )
    return [EVENTS.read(each) for each in session.fetch(query, (run_pk, after, limit))]


def get_run_pk(session: Session, run_id: str) -> int:
    """Return a run's key without loading the run. Raises NotFoundError."""
    query = select(Run.id).where(func.lower(Run.run_id) == run_id.lower(), Run.run_id == run_id)
    key = session.scalars(query).one_or_none()
    if key is None:
        raise NotFoundError(f"there is no run '{run_id}'")
    return key


def read_state(run: Run) -> RunState:
    """Return the state of a loaded run."""
    return read_off(
        RunState,
        run,
        tiers=tuple(derived(tier, _tier_state) for tier in run.tiers),
        phases=tuple(derived(phase, _phase_state) for phase in run.phases),
        issues={},
    )


def _tier_state(tier: Tier) -> TierState:
    return read_off(TierState, tier)


def _phase_state(phase: Phase) -> PhaseState:
    return read_off(PhaseState, phase)


def write_state(run: Run, state: RunState, before: RunState | None = None) -> None:
    """Set the rows' columns that differ from `before`; with None set all."""
    _write(run, state, before)
    tiers = {tier.tier_id: tier for tier in run.tiers}
    tiers_before = {tier.tier_id: tier for tier in before.tiers} if before else {}
    for tier in state.tiers:
        _write(tiers[tier.tier_id], tier, tiers_before.get(tier.tier_id))
    phases = phases_of(run)
    phases_before = {phase.phase_id: phase for phase in before.phases} if before else {}
    for phase in state.phases:
        _write(phases[phase.phase_id], phase, phases_before.get(phase.phase_id))


def read_event(row: EventRow) -> EventRecord:
    """Return an event as it was recorded."""
    return read_off(EventRecord, row)


def read_events(session: RowSession, run_pk: int) -> list[tuple[int, Event]]:
    """Return a run's events in order, each with its sequence.

    Raises EventError for an unknown event.
    """
    rows = list_events(session, run_pk, after=0, limit=None)
    return [(row.sequence, from_record(read_event(row))) for row in rows]


def read_kinds(
    session: RowSession, run_pk: int, *, everywhere: Collection[str], phase_id: str | None
) -> list[Event]:
    """Return a run's events of some kinds in order, and all events of one phase if it is named.

    Events that cannot be read are left out.
    """
    of_phase = "" if phase_id is None else " OR phase_id = %s"
    query = (
        "SELECT kind, actor, at, phase_id, tier_id, from_state, to_state, reason, data"  # noqa: S608 - literals
        f" FROM events WHERE run_pk = %s AND (kind = ANY(%s){of_phase}) ORDER BY sequence"
    )
    values = (run_pk, sorted(everywhere), *([] if phase_id is None else [phase_id]))
    names = [field.name for field in fields(EventRecord)]
    events = []
    for row in session.fetch(query, values):
        with suppress(EventError):  # an event of a later version
            events.append(from_record(EventRecord(**dict(zip(names, row, strict=True)))))
    return events


def add_events(session: RowSession, run: Run, events: Sequence[Event]) -> None:
    """Append events to the run's chain; the caller holds the run's lock."""
    records = [to_record(event) for event in events]
    trace = tracing.current()
    if trace is not None:
        records = [replace(each, data={**each.data, TRACEPARENT: trace}) for each in records]
    sealed = seal(records, run.event_sequence, run.event_hash)
    for one in sealed:
        session.put(
            EVENTS,
            EVENTS.new(
                run_pk=run.id,
                sequence=one.sequence,
                at=one.event.at,
                actor=one.event.actor,
                kind=one.event.kind,
                phase_id=one.event.phase_id,
                tier_id=one.event.tier_id,
                from_state=one.event.from_state,
                to_state=one.event.to_state,
                reason=one.event.reason,
                data=dict(one.event.data),
                previous_hash=one.previous_hash,
                hash=one.hash,
            ),
        )
        run.event_sequence, run.event_hash = one.sequence, one.hash


def list_told(session: RowSession, run_pk: int, after: int) -> list[tuple[str, str | None]]:
    """Return the distinct kinds of a run's events after a sequence number, with their phases."""
    query = "SELECT DISTINCT kind, phase_id FROM events WHERE run_pk = %s AND sequence > %s"
    return [(kind, phase_id) for kind, phase_id in session.fetch(query, (run_pk, after))]


def last_trace(session: Session, run_pk: int, phase_id: str | None = None) -> str | None:
    """Return the traceparent of a run's last event that has one, of a phase if it is named."""
    trace = EventRow.data[TRACEPARENT].astext
    query = select(trace).where(EventRow.run_pk == run_pk, trace.is_not(None))
    if phase_id is not None:
        query = query.where(EventRow.phase_id == phase_id)
    return session.scalar(query.order_by(EventRow.sequence.desc()).limit(1))


def _names(run_id: str) -> tuple[str, str]:
    return run_id.lower(), run_id


def _find_whole(session: RowSession, whole: PreparedParts, names: Sequence[str]) -> Run | None:
    found, tiers, phases = session.fetch_parts(whole, names)
    if not found:
        return None
    (run,) = session.read(RUNS, found)
    attach(
        run,
        sorted(session.read(TIERS, tiers), key=attrgetter("tier_index")),
        sorted(session.read(PHASES, phases), key=attrgetter("tier_index", "phase_index")),
    )
    return run


def add_run(session: RowSession, run: Run) -> Run:
    """Store a new run with its tiers and phases; all of them have their ids at once."""
    (run.id,), tier_ids, phase_ids = session.next_ids(
        (RUNS, 1), (TIERS, len(run.tiers)), (PHASES, len(run.phases))
    )
    session.put(RUNS, run)
    for tier, key in zip(run.tiers, tier_ids, strict=True):
        tier.id, tier.run_pk = key, run.id
        session.put(TIERS, tier)
    for phase, key in zip(run.phases, phase_ids, strict=True):
        phase.id, phase.run_pk = key, run.id
        session.put(PHASES, phase)
    for tier in run.tiers:
        for phase in tier.phases:
            phase.tier_pk = tier.id
    return run


def attach(run: Run, tiers: list[Tier], phases: list[Phase]) -> None:
    """Set a run's tiers, and each tier's phases."""
    run.tiers, run.phases = tiers, phases
    for tier in tiers:
        tier.phases = [phase for phase in phases if phase.tier_id == tier.tier_id]


def _one(run: Run | None, run_id: str) -> Run:
    if run is None:
        raise NotFoundError(f"there is no run '{run_id}'")
    return run


_NOT_COLUMNS: Final = frozenset({"tiers", "phases", "issues"})


def _write(row: object, state: Any, before: Any) -> None:
    if state is before:  # values are immutable, so the same object is unchanged
        return
    known = {} if before is None else before.__dict__
    for name, value in state.__dict__.items():
        if name not in _NOT_COLUMNS and (before is None or value != known[name]):
            setattr(row, name, _column(value))


def _column(value: Any) -> Any:
    """Return a field's value as its column has it: a tuple is a JSON list."""
    if type(value) is not tuple:
        return value
    return [_json(each) for each in value]


def _json(value: Any) -> Any:
    if isinstance(value, DependencyChange):
        return dependency_document(value)
    return value.document() if isinstance(value, Evidence) else value
