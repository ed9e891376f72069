"""Past runs judged again under another ruleset. (rules §9)"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from ..domain.errors import InvalidError
from ..domain.plan import InvalidPlanError, Plan, check_plan
from ..domain.replay import Parting, Replay, replay
from ..domain.ruleset import Ruleset
from ..domain.run import FailureCode
from ..domain.starting import starting_state
from ..domain.states import RunStatus
from ..domain.strategy import compile_strategy
from ..models import Run
from ..store import runs
from .context import AppContext
from .rulesets import parse_ruleset


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended, or would have."""

    state: RunStatus
    failure_code: FailureCode | None
    failure_reason: str | None
    tokens_used: int
    promotion_eligible_to_main: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A run as it was and as it would be. `changes` names what differs; none: nothing does."""

    run_id: str
    recorded: Ending
    replayed: Ending | None
    changes: tuple[str, ...]
    parted_at: Parting | None
    skipped_inputs: int
    assumed_patches: int


def backtest(
    context: AppContext, document: dict[str, Any], run_ids: Sequence[str] | None, limit: int
) -> list[Comparison]:
    """Replay finished runs under a ruleset: those named, else the newest.

    Raises InvalidRulesetError, NotFoundError, InvalidError for a run that is not over.
    """
    ruleset = parse_ruleset(json.dumps(document).encode(), context.settings.project_id)
    with context.reading() as session:
        if run_ids:
            chosen = [runs.get_run(session, run_id) for run_id in run_ids]
        else:
            chosen = runs.list_finished(session, context.settings.project_id, limit=limit)
        for run in chosen:
            if run.ended_at is None:
                raise InvalidError(f"run_ids: run '{run.run_id}' is {run.state}, not over yet")
        return [_compare(session, ruleset, run, context) for run in chosen]


def _compare(session: Session, ruleset: Ruleset, run: Run, context: AppContext) -> Comparison:
    recorded = Ending(
        state=run.state,
        failure_code=run.failure_code,
        failure_reason=run.failure_reason,
        tokens_used=run.tokens_used,
        promotion_eligible_to_main=run.promotion_eligible_to_main,
    )
    plan = _plan_of(runs.get_plan(session, run))
    try:
        check_plan(
            plan,
            ruleset,
            max_tiers=context.settings.max_plan_tiers,
            max_phases=context.settings.max_plan_phases,
            is_recorded=True,
        )
    except InvalidPlanError as error:
        return Comparison(
            run_id=run.run_id,
            recorded=recorded,
            replayed=None,
            changes=(f"the plan would be refused: {error.detail}",),
            parted_at=Parting(sequence=1, at=run.created_at, detail="at its start"),
            skipped_inputs=0,
            assumed_patches=0,
        )
    strategy = compile_strategy(ruleset, plan)
    outcome = replay(
        starting_state(plan, strategy, run.created_at, run.base_commit),
        runs.read_events(session, run.id),
        strategy.major_categories,
    )
    replayed = _ending(outcome)
    return Comparison(
        run_id=run.run_id,
        recorded=recorded,
        replayed=replayed,
        changes=_changes(recorded, replayed),
        parted_at=outcome.parting,
        skipped_inputs=outcome.skipped_inputs,
        assumed_patches=outcome.assumed_patches,
    )


def _plan_of(document: dict[str, Any]) -> Plan:
    """Read a stored plan; the phases that clean up debt were added by us, not posted."""
    phases = [
        {name: value for name, value in phase.items() if name != "issue_key"}
        for phase in document["phases"]
    ]
    return Plan.model_validate({**document, "phases": phases})


def _ending(outcome: Replay) -> Ending:
    run = outcome.run
    return Ending(
        state=run.state,
        failure_code=run.failure_code,
        failure_reason=run.failure_reason,
        tokens_used=run.tokens_used,
        promotion_eligible_to_main=run.promotion_eligible_to_main,
    )


def _changes(recorded: Ending, replayed: Ending) -> tuple[str, ...]:
    changes = []
    if recorded.state is not replayed.state or recorded.failure_code is not replayed.failure_code:
        changes.append(f"outcome: {_named(recorded)}, would be {_named(replayed)}")
    if recorded.tokens_used != replayed.tokens_used:
        changes.append(f"spend: {recorded.tokens_used} tokens, would be {replayed.tokens_used}")
    if recorded.promotion_eligible_to_main != replayed.promotion_eligible_to_main:
        was = "eligible" if recorded.promotion_eligible_to_main else "not eligible"
        would = "eligible" if replayed.promotion_eligible_to_main else "not eligible"
        changes.append(f"promotion: {was}, would be {would}")
    return tuple(changes)


def _named(ending: Ending) -> str:
    return f"{ending.state} ({ending.failure_code})" if ending.failure_code else ending.state
