"""Past runs decided again under another ruleset. (rules §9)"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..domain.backtest import decide_again
from ..domain.errors import InvalidError
from ..domain.plan import InvalidPlanError, Plan, check_plan
from ..domain.ruleset import Ruleset
from ..domain.starting import starting_state
from ..domain.strategy import compile_strategy
from ..models import Run
from ..store import runs
from ..store.session import RowSession
from ..views.project import (
    BacktestAnswer,
    ChangeKind,
    ComparisonAnswer,
    EndingAnswer,
    PartingAnswer,
)
from .context import AppContext
from .rulesets import parse_ruleset


def backtest(
    context: AppContext,
    document: dict[str, Any],
    run_ids: Sequence[str] | None,
    limit: int,
    *,
    is_changed_only: bool = False,
) -> BacktestAnswer:
    """Decide finished runs again under a ruleset: the named ones, else the newest. (rules §9)

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
        compared = [_compare(session, ruleset, run, context) for run in chosen]
    changed = [each for each in compared if each.changes]
    kinds = Counter(kind for each in changed for kind in each.change_kinds)
    return BacktestAnswer(
        compared_count=len(compared),
        changed_count=len(changed),
        changed_by_kind={kind: kinds[kind] for kind in ChangeKind},
        runs=changed if is_changed_only else compared,
    )


def _compare(
    session: RowSession, ruleset: Ruleset, run: Run, context: AppContext
) -> ComparisonAnswer:
    recorded = EndingAnswer.of(run)
    plan = _plan_of(runs.get_plan(session, run))
    try:
        check_plan(plan, ruleset, is_recorded=True)
    except InvalidPlanError as error:
        return ComparisonAnswer(
            run_id=run.run_id,
            recorded=recorded,
            replayed=None,
            changes=[f"the plan would be refused: {error.detail}"],
            change_kinds=[ChangeKind.REFUSED],
            parted_at=PartingAnswer(sequence=1, at=run.created_at, detail="at its start"),
            skipped_inputs=0,
            assumed_patches=0,
        )
    strategy = compile_strategy(ruleset, plan)
    outcome = decide_again(
        starting_state(plan, strategy, run.created_at, run.base_commit),
        runs.read_events(session, run.id),
        strategy.major_categories,
    )
    again = EndingAnswer.of(outcome.run)
    changes = _changes(recorded, again)
    return ComparisonAnswer(
        run_id=run.run_id,
        recorded=recorded,
        replayed=again,
        changes=list(changes.values()),
        change_kinds=list(changes),
        parted_at=PartingAnswer.of(outcome.parting) if outcome.parting else None,
        skipped_inputs=outcome.skipped_inputs,
        assumed_patches=outcome.assumed_patches,
    )


def _plan_of(document: dict[str, Any]) -> Plan:
    """Read a stored plan; the service itself added the phases that clean up debt."""
    phases = [
        {name: value for name, value in phase.items() if name != "issue_key"}
        for phase in document["phases"]
    ]
    return Plan.model_validate({**document, "phases": phases})


def _changes(recorded: EndingAnswer, again: EndingAnswer) -> dict[ChangeKind, str]:
    changes = {}
    if recorded.state is not again.state or recorded.failure_code is not again.failure_code:
        changes[ChangeKind.OUTCOME] = f"outcome: {recorded.words}, would be {again.words}"
    if recorded.tokens_used != again.tokens_used:
        used = f"{recorded.tokens_used} tokens, would be {again.tokens_used}"
        changes[ChangeKind.COST] = f"cost: {used}"
    if recorded.promotion_eligible_to_main != again.promotion_eligible_to_main:
        was = "eligible" if recorded.promotion_eligible_to_main else "not eligible"
        would = "eligible" if again.promotion_eligible_to_main else "not eligible"
        changes[ChangeKind.PROMOTION] = f"promotion: {was}, would be {would}"
    return changes
