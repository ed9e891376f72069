"""A verdict of CI, from outside. (06)"""

from __future__ import annotations

from typing import Any

from ..domain import judging
from ..domain.issues import IssueReport
from ..domain.judging import Judgement
from ..domain.results import CiReport
from ..domain.run import Verdict
from ..domain.values import Severity
from ..models import CiRun
from ..store import ci_runs, issues
from .change import changing
from .house import House
from .issues import note_issues, recount_issues
from .replies import Answer, key_scope, once
from .submitting import require_same_names

CI_SOURCE = "ci"


def submit_ci_result(
    house: House, run_id: str, phase_id: str, report: CiReport, idempotency_key: str | None = None
) -> Answer:
    """Take one verdict on the commit that a phase waits to have judged.

    Raises WrongStateError, WrongCommitError, WrongProfileError, RunOverError.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    identity = once(
        "ci_result",
        {"phase_id": phase_id, "report": report.model_dump(mode="json")},
        [key_scope(idempotency_key), f"latest:{phase_id}:{CI_SOURCE}"],
    )
    with changing(house, run_id) as change:
        phase = change.phase(phase_id)
        given = identity.find(change)
        if given is not None:
            return given
        course = change.course
        judging.require_judged_commit(course, phase_id, report.commit_sha, report.profile)
        verdict, reason = report.judged()
        change.touched.add(phase_id)
        run = ci_runs.add_ci_run(
            change.session,
            CiRun(
                run_pk=change.run.id,
                phase_pk=phase.id,
                commit_sha=report.commit_sha,
                profile=phase.ci_profile,
                attempt=ci_runs.next_attempt(change.session, phase.id, report.commit_sha),
                verdict=verdict,
                is_flaky=report.flaky,
                tests=report.tests.model_dump(mode="json") if report.tests else None,
                url=report.url,
                reason=reason,
                requested_at=change.now,
                started_at=None,
                ended_at=change.now,
            ),
        )
        course.note(
            "CiVerdictReceived",
            phase_id=phase_id,
            reason=reason,
            data={
                "ci_run_id": run.id,
                "commit": report.commit_sha,
                "verdict": verdict,
                "failing_checks": list(report.failing_checks),
                "flaky": report.flaky,
            },
        )
        if verdict is Verdict.GREEN:
            for key in issues.resolve_of_source(change.session, phase.id, CI_SOURCE):
                course.note("IssueResolved", phase_id=phase_id, data={"issue_key": key})
                recount_issues(change)
        if report.flaky and verdict is Verdict.GREEN:
            note_issues(change, phase, [_flaky(check) for check in report.failing_checks])
        if not course.is_over:
            judgement = Judgement(
                verdict=verdict, reason=reason, failing_checks=report.failing_checks
            )
            judging.take_verdict(course, phase_id, judgement)
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


def _flaky(check: str) -> IssueReport:
    return IssueReport(
        issue_key=f"ci_flaky__{check}"[:200],
        severity=Severity.MINOR,
        source=CI_SOURCE,
        category="ci_flaky",
        description=f"{check} was red, then green without a change.",
    )
