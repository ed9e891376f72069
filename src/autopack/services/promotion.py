"""Whether a run's branch may go to its base branch, and the pull request for it. (rules §8)"""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.errors import UnavailableError
from ..domain.promotion import PASSED, PromotionCheck, PromotionVerdict, judge_promotion
from ..mirror import pull_request
from ..models import Run
from ..store import runs
from ..views.promotion import PromotionAnswer, PromotionCheckAnswer, PromotionVerdictAnswer
from .context import AppContext
from .projection import open_issues, run_detail
from .reading import reading_run
from .records import recorded_verdict
from .rehearsal import rehearse


def ask_promotion(context: AppContext, run_id: str) -> PromotionAnswer:
    """Return whether a run's branch may be merged, and its pull request. (rules §8)

    Raises NotFoundError.
    """
    with reading_run(context, run_id, needs_branch=True) as (session, run):
        found = open_issues(session, run)
        report = run_detail(session, run, detailed=())
    verdict = promotion_verdict(context, run)
    return PromotionAnswer.of(
        verdict,
        run_id=run.run_id,
        pull_request=pull_request(
            report, reasons=verdict.reasons, warnings=verdict.warnings, open_issues=found
        ),
    )


def promotion_verdict(context: AppContext, run: Run) -> PromotionVerdictAnswer:
    """Return the eligibility by a run's record, or by the rules for a run without one. (rules §8)

    A rehearsal with today's base branch is added, and may only be stricter.
    """
    if run.ended_at is None:
        verdict = judge_promotion(runs.read_state(run))
    elif not run.has_record:  # the rehearsal says so
        verdict = PromotionVerdict(tuple(run.promotion_reasons), tuple(run.promotion_warnings))
    else:
        verdict = recorded_verdict(context.repository, run)
    rehearsal, today = rehearse(context, run)
    if run.imported_at is not None:
        today = (*run.promotion_reasons, *today)
    # Three judges, and each may only refuse: the rules at the run's end, the record as it stands on
    # the branch, and today's merge. Who signed is for the offline check: it reads the base branch.
    return PromotionVerdictAnswer(
        eligible=run.promotion_eligible_to_main and verdict.is_eligible and not today,
        reasons=[*verdict.reasons, *today],
        warnings=list(verdict.warnings),
        rehearsal=rehearsal,
        checks=_checks(run, verdict, today),
        is_signed=_is_signed(context, run) if run.has_record else None,
    )


def _checks(
    run: Run, verdict: PromotionVerdict, today: Sequence[str]
) -> list[PromotionCheckAnswer]:
    """Return what was checked: the rules' conditions, the record, and today's merge.

    Before the run's end only the merge is decided: a tier may become clean again.
    """
    rules = judge_promotion(runs.read_state(run))
    against: dict[PromotionCheck, list[str]] = {
        PromotionCheck.RECORD: [
            reason for reason in verdict.reasons if run.has_record and reason not in rules.reasons
        ],
        PromotionCheck.MERGE: [*today],
    }
    for check, reason in rules.checked:
        if check is PromotionCheck.SUCCESS and run.ended_at is None:
            continue  # its state is no reason yet
        against.setdefault(check, []).append(reason)
    is_over = run.ended_at is not None
    found = []
    for check, passed in PASSED.items():
        reasons = against.get(check, [])
        is_decided = check is PromotionCheck.MERGE or (
            run.has_record if check is PromotionCheck.RECORD else is_over
        )
        found.append(
            PromotionCheckAnswer(
                name=check,
                passed=not reasons if is_decided else None,
                detail="; ".join(reasons) or (passed if is_decided else "decided at the run's end"),
            )
        )
    return found


def _is_signed(context: AppContext, run: Run) -> bool | None:
    try:
        return context.repository.is_signed(run.head_commit)
    except UnavailableError:  # the record cannot be read, which is among the reasons
        return None
