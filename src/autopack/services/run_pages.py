"""What the page of a run shows: the answers of several endpoints, at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..domain.continuing import NotContinuableError
from ..domain.errors import AutopackError, NotFoundError
from ..domain.operating import moves_by_hand
from ..domain.order import first_at_hand
from ..domain.states import PhaseStatus, RunStatus
from ..models import Phase, Run
from ..store import runs
from ..store.session import RowSession
from ..views.events import EventAnswer
from ..views.issues import PhaseIssue
from ..views.promotion import PromotionVerdictAnswer
from ..views.results import AttemptAnswer, CiRunAnswer, TimelineAnswer
from ..views.runs import PhaseAnswer, RunAnswer
from .branches import phase_diff
from .context import AppContext
from .phase_reports import report_with_timeline
from .promotion import promotion_verdict
from .reading import reading_run
from .runs import answer_of
from .starting import continuable_state

LATEST_EVENTS = 50


@dataclass(frozen=True, slots=True)
class RunAndPhase:
    """A run, and one of its phases in detail.

    Attempts and CI runs are newest first, as are `latest`, the last events. `moves` are the states
    that an operator may set the phase to; `not_continuable` says why a failed run cannot be
    continued, and is None for one that can.
    """

    run: RunAnswer
    timeline: TimelineAnswer
    phase: PhaseAnswer
    attempts: list[AttemptAnswer]
    ci_command: str | None
    ci_runs: list[CiRunAnswer]
    issues: list[PhaseIssue]
    latest: list[EventAnswer]
    event_count: int
    moves: list[PhaseStatus]
    not_continuable: str | None


def read_run_page(context: AppContext, run_id: str, phase_id: str | None) -> RunAndPhase:
    """Read a run with one phase in detail; without an id the one to look at first.

    That is the latest phase that failed, else the one under way, else the last one. Raises
    NotFoundError.
    """
    with reading_run(context, run_id) as (session, run):
        report, timeline = report_with_timeline(session, run, _chosen(run, phase_id))
        return RunAndPhase(
            run=answer_of(session, run, context.now()),
            timeline=timeline,
            phase=report.phase,
            attempts=report.attempts[::-1],
            ci_command=report.ci_command,
            ci_runs=report.ci_runs[::-1],
            issues=report.issues,
            latest=_latest(session, run),
            event_count=run.event_sequence,
            moves=moves_by_hand(runs.read_state(run), report.phase.phase_id, context.now()),
            not_continuable=_not_continuable(session, run),
        )


def _not_continuable(session: RowSession, run: Run) -> str | None:
    if not run.state.is_final or run.state is RunStatus.DONE_SUCCESS:
        return None
    try:
        continuable_state(session, run)
    except NotContinuableError as error:
        return str(error)
    return None


def read_promotion(context: AppContext, run_id: str) -> PromotionVerdictAnswer:
    """Return whether a run's branch may be merged. Raises NotFoundError."""
    with reading_run(context, run_id) as (_, run):
        return promotion_verdict(context, run)


def read_changes(context: AppContext, run_id: str, phase_id: str) -> bytes:
    """Return what a phase changed; nothing where git cannot say it. Raises NotFoundError."""
    with reading_run(context, run_id) as (_, run):
        phase = runs.get_phase(run, phase_id)
    try:
        return phase_diff(context, phase)
    except AutopackError:
        return b""


def _chosen(run: Run, phase_id: str | None) -> Phase:
    phases: Sequence[Phase] = run.phases
    if phase_id is not None:
        return runs.get_phase(run, phase_id)
    failed = [phase for phase in phases if phase.state is PhaseStatus.FAILED]
    current = first_at_hand(phases)
    begun = [phase for phase in phases if phase.started_at is not None]
    chosen = failed[-1:] or ([current] if current else []) or begun[-1:] or phases[-1:]
    if not chosen:
        raise NotFoundError(f"run '{run.run_id}' has no phase")
    return chosen[0]


def _latest(session: RowSession, run: Run) -> list[EventAnswer]:
    after = max(0, run.event_sequence - LATEST_EVENTS)
    rows = runs.list_events(session, run.id, after=after, limit=LATEST_EVENTS)
    return [EventAnswer.of(row) for row in reversed(rows)]
