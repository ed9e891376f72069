"""Reading runs, and cancelling one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from ..domain.errors import UnavailableError
from ..domain.naming import head_ref
from ..domain.next_step import next_step
from ..domain.operating import Cancel
from ..domain.order import PhasesInRun, first_at_hand, waits_of
from ..domain.run_filter import RunFilter
from ..domain.secret_rules import redact
from ..domain.states import PhaseStatus
from ..gitrepo import GainedCommits
from ..models import EventRow, Run
from ..store import progress, runs
from ..store.progress import PhasesOfRun, PhaseUnderWay
from ..store.session import RowSession
from ..views.results import NextStep
from ..views.runs import CurrentPhase, LeaseState, ListedRun, PhaseWaitAnswer, RunAnswer
from .context import AppContext
from .opening import changing
from .reading import one_moment
from .settling import settle


def get_run(context: AppContext, run_id: str) -> RunAnswer:
    """Return a run with its tiers and phases; a run whose deadline has passed ends first."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        if run.ended_at is not None or context.now() < run.deadline_at:
            return answer_of(session, run, context.now())
    with changing(context, run_id) as change:
        return run_answer(change.run, [], change.now)


def answer_of(session: RowSession, run: Run, now: datetime) -> RunAnswer:
    """Return a run with its tiers and phases, and the leases that its phases name."""
    is_claimed = any(phase.lease_id is not None for phase in run.phases)
    return run_answer(run, progress.list_leases(session, run.id) if is_claimed else [], now)


def list_runs(
    context: AppContext, wanted: RunFilter, *, limit: int, before: runs.Position | None
) -> tuple[list[ListedRun], runs.Position | None]:
    """Return a page of runs, newest first, without their tiers, and where the next one begins.

    Three statements and at most one process of git a base branch, whatever the page contains.
    """
    with one_moment(context) as session:
        page, more = runs.list_runs(session, wanted, limit=limit, before=before)
        keys = [run.id for run in page]
        phases = progress.list_phases(session, keys) if page else {}
        live = [run.id for run in page if run.ended_at is None]
        under_way = progress.list_under_way(session, live) if live else {}
    now = context.now()
    distances = _distances(context, page, {key: each.commits for key, each in phases.items()})
    listed = [_listed(run, phases[run.id], under_way.get(run.id), distances, now) for run in page]
    return listed, more


def _listed(
    run: Run,
    phases: PhasesOfRun,
    current: PhaseUnderWay | None,
    distances: Mapping[int, tuple[int | None, int | None]],
    now: datetime,
) -> ListedRun:
    lease = current.lease if current else None
    ahead, behind = distances.get(run.id, (None, None))
    agent = lease.agent if lease else None
    step = next_step(run, current, now, agent=agent, failed=phases.failed)
    return ListedRun.of(
        run,
        phases_total=phases.total,
        phases_complete=phases.complete,
        builder_attempts_used=phases.builder_attempts_used,
        tiers=phases.tiers,
        current_phase=current and CurrentPhase.of(current),
        next=NextStep.of(step),
        leases=[lease] if lease else [],
        commits_ahead=ahead,
        commits_behind=behind,
    )


def _distances(
    context: AppContext, page: Sequence[Run], commits: Mapping[int, int]
) -> dict[int, tuple[int | None, int | None]]:
    """Return how far each run's branch is ahead of its base branch and behind it, by the run's key.

    All runs of a base branch are counted from the one walk back to the base of the oldest of them.
    """
    found: dict[int, tuple[int | None, int | None]] = {}
    for branch in {run.base_branch for run in page}:
        mine = [run for run in page if run.base_branch == branch]
        gained = _gained(context, branch, mine[-1].base_commit)
        for run in mine:
            is_merged = gained is not None and gained.has(run.head_commit)
            behind = gained.count_since(run.base_commit) if gained else None
            found[run.id] = (0 if is_merged else commits[run.id], behind)
    return found


def _gained(context: AppContext, branch: str, since: str) -> GainedCommits | None:
    try:
        tip = context.repository.read_ref(head_ref(branch))
        return context.repository.gained_since(tip, since) if tip else None
    except UnavailableError:  # a list of runs must not depend on git
        return None


def cancel_run(context: AppContext, run_id: str, reason: str) -> RunAnswer:
    """End a run because the operator says so; a run that is over does not change, 409."""
    with changing(context, run_id) as change:
        change.decide(Cancel(redact(reason)))
        settle(change)
    return run_answer(change.run, [], change.now)


def run_answer(run: Run, leases: Sequence[LeaseState], now: datetime) -> RunAnswer:
    """Return a run with its tiers and phases; `leases` are those of its phases."""
    phases = run.phases
    current = first_at_hand(phases)
    agents = {lease.phase_id: lease.agent for lease in leases}
    step = next_step(
        run,
        current,
        now,
        agent=agents.get(current.phase_id) if current else None,
        failed=[phase.phase_id for phase in phases if phase.state is PhaseStatus.FAILED],
    )
    order = PhasesInRun(run.run_scope, run.is_parallel, phases)
    waits = (
        []
        if run.ended_at
        else [
            PhaseWaitAnswer(phase_id=phase_id, waits_for=wait.phase_id, cause=wait.cause)
            for phase_id, found in waits_of(order).items()
            for wait in found
        ]
    )
    return RunAnswer.of(run, next=NextStep.of(step), leases=list(leases), waits=waits)


def list_events(
    context: AppContext, run_id: str, *, after: int, limit: int
) -> tuple[list[EventRow], int | None]:
    """Return a page of a run's events, and where the next one begins."""
    with context.reading() as session:
        rows = runs.list_events(
            session, runs.get_run_pk(session, run_id), after=after, limit=limit + 1
        )
    more = rows[limit - 1].sequence if len(rows) > limit else None
    return rows[:limit], more
