"""docs/parallel.md: its plan is accepted, its drawing is printed, and its lanes save rounds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.lanes import NOON, ended, executing, lanes

from autopack.domain.order import may_start
from autopack.domain.plan import Plan, check_plan
from autopack.domain.ruleset import Ruleset
from autopack.domain.starting import starting_state
from autopack.domain.states import PhaseStatus
from autopack.domain.strategy import compile_strategy

if TYPE_CHECKING:
    from autopack.domain.run import RunState

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/parallel.md").read_text()
RULES = Ruleset(project_id="Shop")


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    return found[1]


def begin(document: object) -> RunState:
    plan = Plan.model_validate(document)
    check_plan(plan, RULES)
    return starting_state(plan, compile_strategy(RULES, plan), NOON, "0" * 40)


def rounds(run: RunState, agents: int) -> int:
    """Count how often each of some agents builds a phase, all at the same time, to the end."""
    count = 0
    while not all(phase.state.is_final for phase in run.phases):
        count += 1
        for _ in range(agents):
            ready = may_start(run)
            if ready:
                run = executing(run, ready[0].phase_id)
        for phase in run.phases:
            if phase.state is PhaseStatus.EXECUTING:
                run = ended(run, phase.phase_id)
    return count


@pytest.mark.unit
def test_twelve_phases_in_three_lanes_need_less_than_half_of_the_rounds() -> None:
    assert rounds(begin(lanes(4, is_parallel=True)), agents=4) == 4
    assert rounds(begin(lanes(4, is_parallel=False)), agents=4) == 12


@pytest.mark.unit
def test_the_plan_of_the_page_needs_three_rounds() -> None:
    assert rounds(begin(json.loads(block("json"))), agents=4) == 3
