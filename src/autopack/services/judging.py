"""CI's verdicts. (rules §6)"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..domain import judging
from ..domain.errors import ConflictError
from ..domain.issues import IssueReport
from ..domain.judging import Judgement
from ..domain.redaction import redacted
from ..domain.results import CiReport
from ..domain.run import Sandbox, Verdict
from ..domain.sightings import CI_SOURCE, Cause, resolved_by_green
from ..domain.values import CiMode, Severity
from ..models import CiRun, Phase
from ..store import ci_runs, runs
from .change import RunChange, changing
from .house import House
from .issues import note_issues, resolve_issues
from .replies import Answer, key_scope, once
from .submitting import require_same_names


class CiIsOursError(ConflictError):
    code = "ci_is_local"


def submit_ci_result(
    house: House, run_id: str, phase_id: str, report: CiReport, idempotency_key: str | None = None
) -> Answer:
    """Take one verdict on the commit that a phase waits to have judged.

    Raises WrongStateError, WrongCommitError, WrongProfileError, RunOverError, CiIsOursError.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    identity = once(
        "ci_result",
        {"phase_id": phase_id, "report": report.model_dump(mode="json")},
        [key_scope(idempotency_key), f"latest:{phase_id}:{CI_SOURCE}"],
    )
    report = redacted(report)
    with changing(house, run_id) as change, identity.keeping_refusals(change):
        phase = change.phase(phase_id)
        given = identity.find(change)
        if given is not None:
            return given
        course = change.course
        judging.require_judged_commit(course, phase_id, report.commit_sha, report.profile)
        if runs.get_strategy(change.session, change.run)["ci"]["mode"] == CiMode.LOCAL:
            raise CiIsOursError(
                f"phase '{phase_id}' is judged by this service's own CI (ci.mode 'local'); no "
                "verdict is taken from outside"
            )
        verdict, reason = report.judged()
        run = ci_runs.add_ci_run(
            change.session,
            CiRun(
                run_pk=change.run.id,
                phase_pk=phase.id,
                commit_sha=report.commit_sha,
                profile=phase.ci_profile,
                attempt=ci_runs.next_attempt(change.session, phase.id, report.commit_sha),
                verdict=verdict,
                sandbox=Sandbox.EXTERNAL,
                is_flaky=report.flaky,
                tests=report.tests.model_dump(mode="json") if report.tests else None,
                failing_checks=list(report.failing_checks),
                url=report.url,
                reason=reason,
                requested_at=change.now,
                ended_at=change.now,
            ),
        )
        give_verdict(change, phase, run, flaky_checks=report.failing_checks if report.flaky else ())
        change.conclude()
        body: dict[str, Any] = {
            "message": f"CI of phase '{phase_id}' is {verdict}; the phase is {phase.state}",
            "ci_run_id": run.id,
            "verdict": verdict,
            "phase_state": phase.state,
            "run_state": change.run.state,
        }
        identity.keep(change, body)
    return Answer(body)


def give_verdict(
    change: RunChange,
    phase: Phase,
    run: CiRun,
    *,
    flaky_checks: Sequence[str] = (),
    is_repeated: bool = False,
) -> None:
    """Let the verdict of a run of CI do what it does; one that is repeated is only recorded."""
    course, verdict = change.course, run.verdict
    assert verdict is not None  # noqa: S101 - for the type checker: it has just been given
    change.touched.add(phase.phase_id)
    course.note(
        "CiVerdictReceived",
        phase_id=phase.phase_id,
        reason=run.reason,
        data={
            "ci_run_id": run.id,
            "commit": run.commit_sha,
            "verdict": verdict,
            "sandbox": run.sandbox,
            "failing_checks": run.failing_checks,
            "flaky": run.is_flaky,
        }
        | ({"is_repeated": True} if is_repeated else {}),
    )
    if is_repeated:
        return
    if verdict is Verdict.GREEN:
        resolve_issues(
            change,
            lambda issues: resolved_by_green(issues, phase.phase_id),
            Cause.GREEN_VERDICT,
            "CI raised it, and is green",
        )
        if flaky_checks:
            note_issues(change, phase, [_flaky(check) for check in flaky_checks])
    if not course.is_over:
        judgement = Judgement(
            verdict=verdict,
            reason=run.reason or "",
            failing_checks=run.failing_checks,
            sandbox=run.sandbox,
        )
        judging.take_verdict(course, phase.phase_id, judgement)


def _flaky(check: str) -> IssueReport:
    return IssueReport(
        issue_key=f"ci_flaky__{check}"[:200],
        severity=Severity.MINOR,
        source=CI_SOURCE,
        category="ci_flaky",
        description=f"{check} was red, then green without a change.",
    )
