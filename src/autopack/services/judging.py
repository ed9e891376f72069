"""CI's verdicts. (rules §6)"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from ..domain.debt import mended_checks
from ..domain.errors import ConflictError
from ..domain.evidence import Evidence
from ..domain.issues import IssueReport, is_expected_key, weakened_test_key
from ..domain.judging import CiVerdict, reason_of, require_judged_commit
from ..domain.redaction import redacted
from ..domain.results import CiReport
from ..domain.sightings import CI_SOURCE
from ..domain.terms import CiMode, EvidenceKind, EvidenceResult, Sandbox, Severity, Verdict
from ..models import CiRun, Phase
from ..store import ci_runs, issues, runs
from ..views.results import CiResultAnswer
from .change import RunChange
from .context import AppContext
from .replies import Answer, changing_once, key_scope, once
from .settling import settle
from .sightings import seen_issues
from .submitting import require_same_names


class CiIsLocalError(ConflictError):
    code = "ci_is_local"


def submit_ci_result(
    context: AppContext,
    run_id: str,
    phase_id: str,
    report: CiReport,
    idempotency_key: str | None = None,
) -> Answer:
    """Accept one verdict on the commit that a phase waits for. (rules §6)

    Raises WrongStateError, WrongCommitError, WrongProfileError, RunOverError, CiIsLocalError.
    """
    require_same_names(run_id, phase_id, report.run_id, report.phase_id)
    identity = once(
        "ci_result",
        {"phase_id": phase_id, "report": report.model_dump(mode="json")},
        [key_scope(idempotency_key), f"latest:{phase_id}:{CI_SOURCE}"],
    )
    report = redacted(report)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(phase_id)
            require_judged_commit(change.state, phase_id, report.commit_sha, report.profile)
            _require_outside_ci(change, phase_id)
            verdict, reason = report.judged()
            run = ci_runs.add_ci_run(
                change.session,
                ci_runs.CI_RUNS.new(
                    run_pk=change.run.id,
                    phase_pk=phase.id,
                    commit_sha=report.commit_sha,
                    profile=phase.ci_profile,
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
            flaky_checks = report.failing_checks if report.flaky else ()
            change.decide(
                weigh_verdict(
                    change, phase, run, flaky_checks=flaky_checks, passed=report.passed_checks
                )
            )
            settle(change)
            turn.answer(
                CiResultAnswer(
                    message=f"CI of phase '{phase_id}' is {verdict}; the phase is {phase.state}",
                    ci_run_id=run.id,
                    verdict=verdict,
                    phase_state=phase.state,
                    run_state=change.run.state,
                )
            )
    return turn.result()


def weigh_verdict(
    change: RunChange,
    phase: Phase,
    run: CiRun,
    *,
    flaky_checks: Sequence[str] = (),
    is_repeated: bool = False,
    passed: Sequence[str] = (),
) -> CiVerdict:
    """Return the verdict of a CI run for the rules, with an issue for each flaky check.

    The CI run gets the reason that names whose fault it may be. `passed` are names of checks that
    ran and passed, as far as CI tells them.
    """
    assert run.verdict is not None  # noqa: S101 - for the type checker: it was just set
    run.reason = reason_of(change.state, phase.phase_id, run.verdict, run.reason or "")
    is_green = run.verdict is Verdict.GREEN and not is_repeated
    evidence = tuple(map(Evidence.read, run.evidence))
    reports = [_flaky(check) for check in flaky_checks] if is_green else []
    mended: tuple[str, ...] = ()
    if is_green and passed and phase.issue_key is not None:
        red = issues.list_red_checks(change.session, change.run.project_id, phase.issue_key)
        mended = mended_checks(red, set(passed))
    if not is_repeated:
        reports += _weakened(evidence, phase.expected_issues)
    return CiVerdict(
        phase_id=phase.phase_id,
        ci_run_id=run.id,
        commit=run.commit_sha,
        verdict=run.verdict,
        reason=run.reason,
        sandbox=run.sandbox,
        failing_checks=tuple(run.failing_checks),
        is_flaky=run.is_flaky,
        is_repeated=is_repeated,
        issues=seen_issues(change, phase, reports),
        evidence=evidence,
        mended_checks=mended,
    )


def _require_outside_ci(change: RunChange, phase_id: str) -> None:
    if runs.get_strategy(change.session, change.run)["ci"]["mode"] == CiMode.LOCAL:
        raise CiIsLocalError(
            f"phase '{phase_id}' is judged by this service's own CI (ci.mode 'local'); no "
            "verdict from outside is accepted"
        )


def _weakened(evidence: Iterable[Evidence], expected: Collection[str]) -> list[IssueReport]:
    """Return an issue for each weakened test that an entry names; expected ones do not count."""
    names = {
        name: each.result is EvidenceResult.WARNED
        for each in evidence
        if each.kind is EvidenceKind.BASE_TESTS
        and each.result in (EvidenceResult.FAILED, EvidenceResult.WARNED)
        for name in each.checks
    }
    keys = {weakened_test_key(name): is_expected for name, is_expected in names.items()}
    return [
        IssueReport(
            issue_key=key,
            severity=Severity.MAJOR,
            source=CI_SOURCE,
            category="weakened_test",
            expected_fail=is_expected,
            description="It was green on the run's base, and is not any more. (docs/evidence.md)",
        )
        for key, is_expected in keys.items()
        # What an earlier phase was expected to change is not this phase's issue.
        if not is_expected or is_expected_key(key, expected)
    ]


def _flaky(check: str) -> IssueReport:
    return IssueReport(
        issue_key=f"ci_flaky__{check}"[:200],
        severity=Severity.MINOR,
        source=CI_SOURCE,
        category="ci_flaky",
        description=f"{check} was red, then green without a change.",
    )
