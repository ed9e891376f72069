"""What happened in a phase, for people."""

from __future__ import annotations

from ..domain.money import short_usd
from ..views.results import AttemptAnswer, SegmentAnswer
from ..views.runs import PhaseReport
from .terminal import print_table, say


def print_phase(report: PhaseReport) -> None:
    """Print the phase; words of agents are indented, so that none looks like the command's own."""
    phase = report.phase
    say(f"{phase.phase_id}  {phase.state}  {phase.name}")
    if phase.failure_reason:
        say(f"  {phase.failure_reason}")
    if report.lease is not None:
        say(f"{report.lease.agent} has it as {report.lease.role}")
    say("", "time")
    print_table(("began", "seconds", "what", "who", "outcome"), map(_segment, report.segments))
    say("", "attempts")
    headings = ("attempt", "agent", "outcome", "tokens", "cost", "seconds", "patches")
    print_table(headings, map(_attempt, report.attempts))
    for attempt in report.attempts:
        words = [*(attempt.reason or "").splitlines(), *(attempt.notes or "").splitlines()]
        if words:
            say("", f"{attempt.role} {attempt.attempt}", *(f"  {line}" for line in words))
    if report.ci_runs:
        say("", f"CI: {report.ci_command or 'elsewhere'}")
        rows = [(run.id, run.commit_sha[:12], run.verdict, run.reason) for run in report.ci_runs]
        print_table(("id", "commit", "verdict", "why"), rows)
        for run in report.ci_runs:
            if run.evidence:
                say("", f"evidence of CI run {run.id}")
                say(*(f"  {each.text}" for each in run.evidence))
    if report.issues:
        say("", "issues")
        found = [
            (issue.issue_key, issue.status, issue.effective_severity, issue.occurrence_count)
            for issue in report.issues
        ]
        print_table(("issue", "status", "counts as", "seen"), found)


def _segment(segment: SegmentAnswer) -> tuple[object, ...]:
    took = segment.ended_at and (segment.ended_at - segment.started_at).total_seconds()
    return (
        f"{segment.started_at:%H:%M:%S}",
        "" if took is None else f"{took:.1f}",
        segment.kind,
        segment.agent or segment.role or "CI",
        segment.outcome or ("" if segment.ended_at else "under way"),
    )


def _attempt(attempt: AttemptAnswer) -> tuple[object, ...]:
    return (
        f"{attempt.role} {attempt.attempt}",
        attempt.agent,
        attempt.outcome,
        f"{attempt.tokens_used:,}" + (" measured" if attempt.is_measured else ""),
        "" if attempt.cost_usd is None else short_usd(attempt.cost_usd),
        f"{attempt.duration_seconds:.1f}",
        ", ".join(f"{patch.id} {patch.status}" for patch in attempt.patches),
    )
