"""Runs of CI, and what a verdict does to a phase. (rules §6)"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain
from typing import Final, Protocol

from .building import fail_attempt
from .consequences import end_failed
from .decision import Decision, WrongStateError, require_live
from .errors import ConflictError
from .events import (
    SUPERVISOR,
    BaselineMeasured,
    CiRequested,
    CiStarted,
    CiVerdictReceived,
    PhaseCompleted,
    PhaseFailed,
)
from .evidence import MAX_EVIDENCE_CHECKS, Evidence
from .independence import require_judge
from .issue_rules import IssueSeen, resolve_for_ci, see_issues
from .listing import listed
from .order import unjudged_before
from .run import CompletedBy, FailureCode, RunState
from .states import PhaseStatus
from .terms import CiProfile, Sandbox, Verdict

# For the checkout and for reading reports, in addition to the command's own time.
GRACE_SECONDS: Final = 300
# A CI run that did not run is repeated: so many tries, with these waits between them.
ENVIRONMENT_TRIES: Final = 3
MAX_NAMED: Final = 5
_ENVIRONMENT_WAITS: Final = (timedelta(seconds=5), timedelta(seconds=30))


class WrongCommitError(ConflictError):
    code = "wrong_commit"


class WrongProfileError(ConflictError):
    code = "wrong_profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class CiVerdict:
    """A verdict on a commit.

    `issues` are of flaky checks (red, then green on the same commit) and of what evidence found.
    """

    phase_id: str
    ci_run_id: int
    commit: str
    verdict: Verdict
    reason: str
    sandbox: Sandbox | None = None
    failing_checks: tuple[str, ...] = ()
    is_flaky: bool = False
    is_repeated: bool = False
    issues: tuple[IssueSeen, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    mended_checks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRunWanted:
    """The service's own CI will run for a phase."""

    phase_id: str
    ci_run_id: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRunBegun:
    """A worker has started a CI run: its deadline counts from now."""

    phase_id: str
    ci_run_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseMeasured:
    """CI's command ran on the run's base commit, for the phases of a profile."""

    profile: CiProfile
    commit: str
    verdict: Verdict
    reason: str
    failing_checks: tuple[str, ...] = ()


def note_base(decision: Decision, given: BaseMeasured) -> None:
    """Record what CI says of the base commit; it stops nothing. (rules §6.1)"""
    if decision.state.is_over:
        return
    decision.record(
        BaselineMeasured(
            profile=given.profile,
            commit=given.commit,
            verdict=given.verdict,
            reason=given.reason,
            failing_checks=given.failing_checks[:MAX_EVIDENCE_CHECKS],
            checks_count=len(given.failing_checks),
        )
    )


def request_run(decision: Decision, wanted: CiRunWanted) -> None:
    """Record that a CI run waits for a worker; only the run's own deadline limits that wait.

    Only for the service's own CI: an external one reports nothing but its verdict.
    """
    decision.record(
        CiRequested(phase_id=wanted.phase_id, ci_run_id=wanted.ci_run_id, attempt=wanted.attempt)
    )


def begin_run(decision: Decision, begun: CiRunBegun) -> None:
    """Record that a CI run started, and set its deadline."""
    seconds = decision.phase(begun.phase_id).ci_timeout_seconds + GRACE_SECONDS
    decision.record(
        CiStarted(
            phase_id=begun.phase_id,
            ci_run_id=begun.ci_run_id,
            deadline_at=decision.in_seconds(seconds),
        )
    )


class JudgedRun(Protocol):
    """A run of CI with its verdict."""

    @property
    def verdict(self) -> Verdict | None: ...
    @property
    def profile(self) -> CiProfile: ...
    @property
    def failing_checks(self) -> Sequence[str]: ...


def flaky_checks(verdict: Verdict, earlier: Iterable[JudgedRun]) -> tuple[str, ...]:
    """Return what is green now and was red in an earlier run on the same commit. (rules §6)"""
    if verdict is not Verdict.GREEN:
        return ()
    red = [each for each in earlier if each.verdict is Verdict.RED]
    checks = (each.failing_checks or [f"profile_{each.profile}"] for each in red)
    return tuple(dict.fromkeys(chain.from_iterable(checks)))


def wait_before_repeat(
    verdict: Verdict, attempts: Sequence[Verdict], retries: int
) -> timedelta | None:
    """Return how long to wait before CI runs again on the same commit; None: its verdict is final.

    `attempts` are the verdicts of the earlier runs. A red run is repeated as often as the profile
    says, since a check may be flaky; a run that did not run, since the environment may recover.
    """
    earlier = [each for each in attempts if each is verdict]
    if verdict is Verdict.RED and len(earlier) < retries:
        return timedelta()
    if verdict is Verdict.DID_NOT_RUN and len(earlier) < ENVIRONMENT_TRIES - 1:
        return _ENVIRONMENT_WAITS[len(earlier)]
    return None


def require_judged_commit(run: RunState, phase_id: str, commit: str, profile: str | None) -> None:
    """Refuse a verdict that is not on the commit and profile that the phase waits for.

    Raises RunOverError, WrongStateError, WrongCommitError, WrongProfileError.
    """
    require_live(run)
    phase = run.phase(phase_id)
    if phase.state is not PhaseStatus.CI_RUNNING:
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; a verdict is taken only while it is "
            f"{PhaseStatus.CI_RUNNING}",
            allowed=[PhaseStatus.CI_RUNNING],
        )
    expected = phase.commit or run.head_commit
    if commit != expected:
        raise WrongCommitError(
            f"the verdict is for commit {commit}, but phase '{phase_id}' waits for {expected}"
        )
    if profile is not None and profile != phase.ci_profile:
        raise WrongProfileError(
            f"the verdict is of profile '{profile}', but phase '{phase_id}' is {phase.ci_profile}"
        )


def reason_of(run: RunState, phase_id: str, verdict: Verdict, reason: str) -> str:
    """Return a verdict's reason, with the phases whose faults a red one may be. (rules §6)

    Those were completed by hand, and no CI has judged their commits.
    """
    if verdict is not Verdict.RED:
        return reason
    names = [f"'{each.phase_id}'" for each in unjudged_before(run, run.phase(phase_id))]
    if not names:
        return reason
    return (
        f"{reason}; the fault may also be in phases before it that were completed by hand and that"
        f" no CI has judged: {listed(names, MAX_NAMED)}"
    )


def accept_verdict(decision: Decision, given: CiVerdict) -> None:
    """Complete the phase by a green verdict; red uses a try, and did-not-run ends the run.

    A verdict counts once against the tier's cap of CI runs, with all its retries: those are the
    profile's choice. One that did not run does not count. One with `is_repeated` is only recorded:
    another CI run follows. (rules §6)
    """
    phase_id = given.phase_id
    require_judge(decision.phase(phase_id), decision.actor)
    decision.record(
        CiVerdictReceived(
            phase_id=phase_id,
            reason=given.reason,
            ci_run_id=given.ci_run_id,
            commit=given.commit,
            verdict=given.verdict,
            sandbox=given.sandbox,
            failing_checks=given.failing_checks,
            flaky=given.is_flaky,
            is_repeated=given.is_repeated,
            evidence=given.evidence,
            mended_checks=given.mended_checks,
        )
    )
    if given.is_repeated:
        return
    if given.verdict is Verdict.GREEN:
        resolve_for_ci(decision, phase_id)
    see_issues(decision, phase_id, given.issues)
    if decision.state.is_over:
        return
    match given.verdict:
        case Verdict.GREEN:
            decision.record(
                PhaseCompleted(
                    phase_id=phase_id, reason="CI is green", completed_by=CompletedBy.RULES
                )
            )
        case Verdict.RED:
            fail_attempt(
                decision,
                phase_id,
                f"CI is red: {given.reason}",
                signature=_signature(given.failing_checks),
            )
        case Verdict.DID_NOT_RUN:
            fail_unjudged(decision, phase_id, given.reason)


def fail_unjudged(decision: Decision, phase_id: str, why: str) -> None:
    """Fail a phase and its run, since CI could not judge the commit."""
    reason = f"CI did not run: {why}"
    # The service found it, not a client: evolve.py distinguishes it from a failure by hand.
    decision.record(PhaseFailed(phase_id=phase_id, reason=reason, actor=SUPERVISOR))
    end_failed(decision, FailureCode.CI_DID_NOT_RUN, reason)


def _signature(failing_checks: Sequence[str]) -> str | None:
    if not failing_checks:
        return None
    names = "\n".join(sorted(set(failing_checks)))
    return f"checks:{hashlib.sha256(names.encode()).hexdigest()}"
