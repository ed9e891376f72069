"""Reading what happened in a phase: attempts and their patches, CI runs, issues, and the time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from ..domain import events as kinds
from ..domain.events import Event
from ..domain.segments import FRAME_KINDS, SEGMENT_KINDS, Segment, segments_of
from ..models import Phase, Run
from ..store import ci_runs, progress, runs
from ..store.patches import get_patch, list_patch_facts
from ..store.session import RowSession
from ..views.issues import PhaseIssue
from ..views.results import (
    AttemptAnswer,
    AttemptDetail,
    AttemptIssue,
    AttemptPatch,
    AttemptsAnswer,
    PhaseTimeline,
    SegmentAnswer,
    TimelineAnswer,
)
from ..views.runs import PhaseAnswer, PhaseReport
from .ci import ci_commands, ci_run_answer
from .context import AppContext
from .projection import happened_in
from .reading import reading_run


def phase_report(context: AppContext, run_id: str, phase_id: str) -> PhaseReport:
    """Return a phase with all that happened in it. Raises NotFoundError."""
    with reading_run(context, run_id) as (session, run):
        phase = runs.get_phase(run, phase_id)
        return report_of(session, run, phase, _events(session, run, phase))


def report_with_timeline(
    session: RowSession, run: Run, phase: Phase
) -> tuple[PhaseReport, TimelineAnswer]:
    """Return a phase of a loaded run, and the times of all phases, from one reading of events."""
    events = runs.read_kinds(session, run.id, everywhere=SEGMENT_KINDS, phase_id=phase.phase_id)
    return report_of(session, run, phase, events), timeline_of(run, events)


def report_of(session: RowSession, run: Run, phase: Phase, events: Sequence[Event]) -> PhaseReport:
    """Return a phase of a loaded run with all that happened in it."""
    segments = _segments(run, events)[phase.phase_id]
    happened = happened_in(session, [phase])[phase.id]
    attempts = _attempts(session, run, phase, happened.attempts, events, segments)
    judged = ci_runs.list_of_phase(session, phase.id)
    commands = ci_commands(session, run)
    leases = progress.list_leases(session, run.id) if phase.lease_id is not None else []
    return PhaseReport(
        run_id=run.run_id,
        run_state=run.state,
        phase=PhaseAnswer.of(phase),
        lease=next((lease for lease in leases if lease.phase_id == phase.phase_id), None),
        segments=[SegmentAnswer.of(segment) for segment in segments],
        attempts=attempts,
        ci_command=commands.get(phase.ci_profile) if phase.has_ci else None,
        ci_runs=[
            ci_run_answer(run.run_id, each, phase.phase_id, commands) for each in reversed(judged)
        ],
        issues=[PhaseIssue.of(issue) for issue in happened.issues],
    )


def list_attempts(context: AppContext, run_id: str, phase_id: str) -> AttemptsAnswer:
    """Return the submissions of Builders and Auditors to a phase, and their outcomes."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        phase = runs.get_phase(run, phase_id)
        events = _events(session, run, phase)
        details = happened_in(session, [phase])[phase.id].attempts
        segments = _segments(run, events)[phase_id]
        attempts = _attempts(session, run, phase, details, events, segments)
    return AttemptsAnswer(run_id=run_id, phase_id=phase_id, attempts=attempts)


def timeline(context: AppContext, run_id: str) -> TimelineAnswer:
    """Return how the time of each phase was spent. Raises NotFoundError."""
    with reading_run(context, run_id) as (session, run):
        events = runs.read_kinds(session, run.id, everywhere=SEGMENT_KINDS, phase_id=None)
    return timeline_of(run, events)


def timeline_of(run: Run, events: Iterable[Event]) -> TimelineAnswer:
    """Return how the time of each phase was spent, from the events of SEGMENT_KINDS."""
    tiers = {phase.phase_id: phase.tier_id for phase in runs.phases_of(run).values()}
    return TimelineAnswer(
        run_id=run.run_id,
        phases=[
            PhaseTimeline(
                phase_id=phase_id,
                tier_id=tiers[phase_id],
                segments=[SegmentAnswer.of(segment) for segment in segments],
            )
            for phase_id, segments in _segments(run, events).items()
        ],
    )


def read_patch(context: AppContext, run_id: str, patch_id: int) -> bytes:
    """Return the bytes of a patch as they are stored. Raises NotFoundError.

    Secrets in a refused patch were redacted before it was stored.
    """
    with context.reading() as session:
        return get_patch(session, runs.get_run_pk(session, run_id), patch_id)


def _events(session: RowSession, run: Run, phase: Phase) -> list[Event]:
    """Return the events of a phase, and those of the run that frame them."""
    return runs.read_kinds(session, run.id, everywhere=FRAME_KINDS, phase_id=phase.phase_id)


def _segments(run: Run, events: Iterable[Event]) -> dict[str, list[Segment]]:
    return segments_of([*runs.phases_of(run)], events)


def _attempts(
    session: RowSession,
    run: Run,
    phase: Phase,
    details: Sequence[AttemptDetail],
    events: Sequence[Event],
    segments: Sequence[Segment],
) -> list[AttemptAnswer]:
    if not details:
        return []
    patches = list_patch_facts(session, phase.id)
    begun = {each.submission_id: each.started_at for each in segments}
    # A result of an agent that could not work is no attempt for the rules: its event names none.
    begun_by_end = {each.ended_at: each.started_at for each in segments if each.outcome}
    found, resolved = _issues_by_time(events)
    attempts = []
    for detail in details:
        at = detail.created_at
        started_at = begun.get(detail.id) or begun_by_end.get(at) or at
        attempts.append(
            AttemptAnswer.of(
                detail,
                started_at=started_at,
                duration_seconds=round((at - started_at).total_seconds(), 3),
                issues_found=found.get(at, []),
                issues_resolved=resolved.get(at, []),
                patches=[
                    AttemptPatch.of(patch, content=f"/runs/{run.run_id}/patches/{patch.id}")
                    for patch in patches.get(detail.id, ())
                ],
            )
        )
    return attempts


def _issues_by_time(
    events: Iterable[Event],
) -> tuple[dict[datetime, list[AttemptIssue]], dict[datetime, list[str]]]:
    """Return which issues a result reported and resolved: all events of a change have one time."""
    found: dict[datetime, list[AttemptIssue]] = {}
    resolved: dict[datetime, list[str]] = {}
    for event in events:
        match event:
            case kinds.IssueRecorded():
                issue = AttemptIssue(
                    issue_key=event.issue_key,
                    category=event.category,
                    severity=event.effective_severity,
                )
                found.setdefault(event.at, []).append(issue)
            case kinds.IssueResolved():
                resolved.setdefault(event.at, []).append(event.issue_key)
            case _:
                pass
    return found, resolved
