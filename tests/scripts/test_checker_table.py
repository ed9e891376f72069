"""The checker stands alone, so what it repeats of the rules is compared with them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from autopack.domain.states import PHASE_TRANSITIONS

pytestmark = pytest.mark.unit

CHECKER = Path(__file__).resolve().parents[2] / "scripts" / "check_promotion.py"


def test_the_checker_knows_the_moves_of_a_phase_that_the_rules_allow() -> None:
    moves = runpy.run_path(str(CHECKER))["PHASE_MOVES"]
    allowed = {state: set(after) for state, after in PHASE_TRANSITIONS.items() if after}
    assert moves == allowed
