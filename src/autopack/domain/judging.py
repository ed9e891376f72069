"""What CI's verdict does to a phase. (02 §2, 06)"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from .building import fail_attempt
from .course import Course, WrongStateError
from .errors import ConflictError
from .run import FailureCode, PhaseState, Verdict
from .states import PhaseStatus


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

    A run that could not be made does not count against the tier's cap.
    """
    phase = course.phase(phase_id)
    if judgement.verdict is not Verdict.DID_NOT_RUN:
        tier = course.tier(phase.tier_id)
        course.change_tier(phase.tier_id, ci_runs_count=tier.ci_runs_count + 1)
    course.change_phase(phase_id, verdict=judgement.verdict)
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
