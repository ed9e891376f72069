"""Plans of lanes: phases that depend on the one before them in their lane alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from autopack.domain.evolve import change_phase
from autopack.domain.run import RunState
from autopack.domain.states import PhaseStatus

LANES = ("a", "b", "c")
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def lanes(depth: int, *, is_parallel: bool = True) -> dict[str, Any]:
    """Return a plan of three lanes, each so many phases deep and with a folder of its own."""
    phases: list[dict[str, Any]] = [
        {
            "phase_id": f"{lane}{step}",
            "phase_index": step * len(LANES) + at,
            "tier_id": "T0",
            "name": f"Step {step} of lane {lane}",
            "allowed_paths": [f"src/{lane}/**"],
            **({"depends_on": [f"{lane}{step - 1}"] if step else []} if is_parallel else {}),
        }
        for step in range(depth)
        for at, lane in enumerate(LANES)
    ]
    tiers = [{"tier_id": "T0", "tier_index": 0, "name": "All lanes"}]
    return {"run": {"run_id": "run-001"}, "tiers": tiers, "phases": phases}


def executing(run: RunState, phase_id: str) -> RunState:
    state = PhaseStatus.EXECUTING
    return change_phase(run, phase_id, state=state, started_at=NOON)


def ended(run: RunState, phase_id: str) -> RunState:
    return change_phase(run, phase_id, state=PhaseStatus.COMPLETE, ended_at=NOON)
