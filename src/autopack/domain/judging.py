"""Runs of CI, and what a verdict does to a phase. (02 §2, 06)"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from .building import fail_attempt
from .course import Course, WrongStateError
from .errors import ConflictError
from .run import FailureCode, PhaseState, Sandbox, Verdict
from .states import PhaseStatus

# Checking out and reading reports, beside the time that the command has.
GRACE_SECONDS: Final = 300
# A run that could not be made is made again so often, and then so much later.
ENVIRONMENT_TRIES: Final = 3
_ENVIRONMENT_WAITS: Final = (timedelta(seconds=5), timedelta(seconds=30))


class WrongCommitError(ConflictError):
    code = "wrong_commit"


class WrongProfileError(ConflictError):
    code = "wrong_profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the rules have to know of a run of CI."""

    verdict: Verdict
    reason: str
    failing_checks: Sequence[str] = ()
    sandbox: Sandbox | None = None


def request_run(course: Course, phase_id: str, ci_run_id: int, attempt: int) -> None:
    """Note that a run of CI waits for a worker, until when the phase does; the run's end ends it.

    Only of our own CI: one elsewhere tells nothing but its verdict.
    """
    course.change_phase(phase_id, deadline_at=None)
    course.note("CiRequested", phase_id=phase_id, data={"ci_run_id": ci_run_id, "attempt": attempt})


def begin_run(course: Course, phase_id: str, ci_run_id: int) -> None:
    """Let a run of CI begin: from now on its time runs."""
    phase = course.phase(phase_id)
    course.change_phase(
        phase_id, deadline_at=course.in_seconds(phase.ci_timeout_seconds + GRACE_SECONDS)
    )
    course.note("CiStarted", phase_id=phase_id, data={"ci_run_id": ci_run_id})


def retry_wait(verdict: Verdict, attempts: Sequence[Verdict], retries: int) -> timedelta | None:
    """Say when a run of CI is made again on the same commit, None: its verdict stands.

    `attempts` are the verdicts of the earlier runs. Red is tried again as often as the profile
    says, for it may be flaky; what did not run at all, for the environment's sake.
    """
    earlier = [each for each in attempts if each is verdict]
    if verdict is Verdict.RED and len(earlier) < retries:
        return timedelta()
    if verdict is Verdict.DID_NOT_RUN and len(earlier) < ENVIRONMENT_TRIES - 1:
        return _ENVIRONMENT_WAITS[len(earlier)]
    return None


def require_judged_commit(
    course: Course, phase_id: str, commit: str, profile: str | None
) -> PhaseState:
    """Make sure that a verdict is for what the phase waits to have judged."""
    course.require_live()
    phase = course.phase(phase_id)
    if phase.state is not PhaseStatus.CI_RUNNING:
        raise WrongStateError(
            f"phase '{phase_id}' is {phase.state}; a verdict is taken only while it is "
            f"{PhaseStatus.CI_RUNNING}",
            allowed=[PhaseStatus.CI_RUNNING],
        )
    expected = phase.commit or course.head_commit
    if commit != expected:
        raise WrongCommitError(
            f"the verdict is for commit {commit}, but phase '{phase_id}' waits for {expected}"
        )
    if profile is not None and profile != phase.ci_profile:
        raise WrongProfileError(
            f"the verdict is of profile '{profile}', but phase '{phase_id}' is {phase.ci_profile}"
        )
    return phase


def take_verdict(course: Course, phase_id: str, judgement: Judgement) -> None:
    """Let a verdict complete the phase, cost it a try, or end the run. Nothing but green is green.

    It counts against the tier's cap, however often the run was made for it: retries are the
    profile's own choice. One that could not be made does not.
    """
    phase = course.phase(phase_id)
    if judgement.verdict is not Verdict.DID_NOT_RUN:
        tier = course.tier(phase.tier_id)
        course.change_tier(phase.tier_id, ci_runs_count=tier.ci_runs_count + 1)
    course.change_phase(phase_id, verdict=judgement.verdict, sandbox=judgement.sandbox)
    match judgement.verdict:
        case Verdict.GREEN:
            course.move_phase(phase_id, PhaseStatus.COMPLETE, "CI is green", failure_reason=None)
        case Verdict.RED:
            fail_attempt(
                course,
                phase_id,
                f"CI is red: {judgement.reason}",
                signature=_signature(judgement.failing_checks),
            )
        case Verdict.DID_NOT_RUN:
            reason = f"CI did not run: {judgement.reason}"
            course.move_phase(phase_id, PhaseStatus.FAILED, reason, failure_reason=reason)
            course.end_failed(FailureCode.CI_DID_NOT_RUN, reason)


def _signature(failing_checks: Sequence[str]) -> str | None:
    if not failing_checks:
        return None
    names = "\n".join(sorted(set(failing_checks)))
    return f"checks:{hashlib.sha256(names.encode()).hexdigest()}"
