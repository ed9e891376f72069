"""What CI says of the commit that a run starts from, before an agent has worked. (rules §6.1)

A start does not wait for it: a worker measures the base, keeps the outcome for the verdicts of the
phases, and tells the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from ..ci import StoppedError
from ..domain.judging import BaseMeasured
from ..domain.redaction import redacted
from ..domain.ruleset import CiRules
from ..domain.secret_rules import redact
from ..domain.strategy import Strategy
from ..domain.terms import CiProfile, EvidenceKind, Verdict
from ..jobs.queue import TryAgainError, defer
from ..models import Run
from ..store import runs
from ..store.session import RowSession
from .context import AppContext
from .measuring import Bench, NotMeasurableError, Question
from .opening import changing
from .settling import CI_QUEUE, settle
from .upkeep import UPKEEP_QUEUE

logger = structlog.get_logger(__name__)

MEASURE_BASE_TASK: Final = "measure_base"
NOTE_BASE_TASK: Final = "record_base"


def want_base(session: RowSession, run: Run, strategy: Strategy) -> None:
    """Queue a measurement of a new run's base for each profile whose evidence needs it."""
    wanted = {
        phase.ci_profile
        for phase in strategy.phases.values()
        if EvidenceKind.BASELINE in phase.evidence
    }
    for profile in sorted(wanted):
        defer(
            session,
            MEASURE_BASE_TASK,
            queue=CI_QUEUE,
            arguments={"run_id": run.run_id, "profile": profile},
            queueing_lock=f"{MEASURE_BASE_TASK}:{run.run_id}:{profile}",
        )


def measure_base(context: AppContext, *, run_id: str, profile: str) -> None:
    """Measure the base of a run, and queue what was found for a worker with its files.

    What the environment prevents is left to the CI runs of the phases, which repeat it.
    Raises TryAgainError when the process must end: another one repeats the job.
    """
    with context.reading() as session:
        run = runs.find_run_by_any_case(session, run_id)
        if run is None or run.ended_at is not None:
            return
        rules = CiRules.model_validate(runs.get_strategy(session, run)["ci"])
    question = Question(
        run_id=run_id,
        phase_id="base",
        # A run that continues another starts from a commit that the base branch does not have.
        branch=run.base_branch if run.continues is None else run.branch,
        profile=CiProfile(profile),
        rules=rules.command_for(CiProfile(profile)),
    )

    def should_stop() -> bool:
        return context.stopping.is_set() or not _is_live(context, run_id)

    try:
        found = Bench(context, question, should_stop).measure(run.base_commit)
    except StoppedError:
        if context.stopping.is_set():
            raise TryAgainError from None
        return
    except NotMeasurableError as error:
        logger.warning("base_not_measured", run_id=run_id, profile=profile, why=str(error))
        return
    with context.writing() as session:
        defer(
            session,
            NOTE_BASE_TASK,
            queue=UPKEEP_QUEUE,
            arguments={
                "run_id": run_id,
                "profile": profile,
                "commit": run.base_commit,
                "verdict": found.verdict,
                "reason": redact(found.reason),
                "failing_checks": redacted(found.failing),
            },
            lock=f"base:{run_id}",
        )
        session.commit()


def record_base(
    context: AppContext,
    *,
    run_id: str,
    profile: str,
    commit: str,
    verdict: str,
    reason: str,
    failing_checks: Sequence[str],
) -> None:
    """Tell a run what CI says of its base, once a profile."""
    with context.reading() as session:
        run = runs.find_run_by_any_case(session, run_id)
    if run is None or run.ended_at is not None:
        return
    with changing(context, run_id) as change:
        kinds = runs.read_kinds(
            change.session, change.run.id, everywhere=["BaselineMeasured"], phase_id=None
        )
        if any(getattr(each, "profile", None) == profile for each in kinds):
            return
        change.decide(
            BaseMeasured(
                profile=CiProfile(profile),
                commit=commit,
                verdict=Verdict(verdict),
                reason=reason,
                failing_checks=tuple(failing_checks),
            )
        )
        settle(change)


def _is_live(context: AppContext, run_id: str) -> bool:
    with context.reading() as session:
        run = runs.find_run_by_any_case(session, run_id)
    return run is not None and run.ended_at is None
