"""How a run that failed goes on as a new one. (rules §2.5)"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Protocol

from pydantic import Field

from .errors import ConflictError, InvalidError
from .plan import DEBT_TIER_ID, Plan
from .promotion import judge_continued
from .run import RunState
from .states import PhaseStatus, RunStatus
from .values import Closed, Identifier, PositiveCount, PositiveUsd

_NUMBER: Final = re.compile(r"(?P<name>.+)\.(?P<number>[1-9][0-9]{0,3})\Z")
_LONGEST_ID: Final = 64


class NotContinuableError(ConflictError):
    code = "not_continuable"


class UnknownPhasesError(InvalidError):
    code = "unknown_phase"


class Continuation(Closed):
    """What an operator may choose; by default all phases that are left, with the plan's caps."""

    run_id: Identifier | None = None
    phases: Annotated[tuple[Identifier, ...], Field(min_length=1)] | None = None
    token_cap: PositiveCount | None = None
    cost_cap_usd: PositiveUsd | None = None
    max_duration_minutes: Annotated[int, Field(strict=True, ge=1, le=10_080)] | None = None


def require_continuable(run: RunState) -> None:
    """Refuse a run that is not over or succeeded, or whose verified part may not be promoted.

    `run` has its issues. Raises NotContinuableError.
    """
    name = f"run '{run.run_id}'"
    if not run.is_over:
        raise NotContinuableError(
            f"{name} is {run.state}; only a run that is over can be continued"
        )
    if run.state is RunStatus.DONE_SUCCESS:
        raise NotContinuableError(f"{name} succeeded: start a new run for further phases")
    reasons = judge_continued(run).reasons
    if reasons:
        raise NotContinuableError(f"{name} cannot be continued: {'; '.join(reasons)}")


class Snapshotted(Protocol):
    """A phase, and the commit of its snapshot."""

    @property
    def state(self) -> PhaseStatus: ...
    @property
    def ended_at(self) -> datetime | None: ...
    @property
    def tier_index(self) -> int: ...
    @property
    def phase_index(self) -> int: ...
    @property
    def snapshot_commit(self) -> str | None: ...


def verified_commit(phases: Iterable[Snapshotted]) -> str | None:
    """Return the commit of the phase that completed last; None if no phase is complete.

    What completed before it is on the branch before it. (rules §2.5)
    """
    complete = [
        (phase.ended_at, phase.tier_index, phase.phase_index, phase.snapshot_commit)
        for phase in phases
        if phase.state is PhaseStatus.COMPLETE and phase.ended_at is not None
    ]
    return max(complete)[-1] if complete else None


def continued_plan(document: Mapping[str, Any], run: RunState, wanted: Continuation) -> Plan:
    """Return the plan of the new run: the phases that are left, in their tiers.

    Phases for debt cleanup are left out: the new run gets its own. Raises NotContinuableError,
    UnknownPhasesError.
    """
    planned = [each for each in document["phases"] if each["tier_id"] != DEBT_TIER_ID]
    done = {each.phase_id for each in run.phases if each.state is PhaseStatus.COMPLETE}
    left = [each for each in planned if each["phase_id"] not in done]
    if wanted.phases is not None:
        _require_left(wanted.phases, {each["phase_id"] for each in left}, run.run_id)
        left = [each for each in left if each["phase_id"] in wanted.phases]
    if not left:
        raise NotContinuableError(f"run '{run.run_id}' has no phase left: all are complete")
    names = {each["phase_id"] for each in left}
    left = [_waiting_for(each, names) for each in left]
    tiers = {each["tier_id"] for each in left}
    given = wanted.model_dump(exclude_none=True, exclude={"phases"})
    return Plan.model_validate(
        {
            "run": {**document["run"], "run_id": next_run_id(run.run_id), **given},
            "tiers": [each for each in document["tiers"] if each["tier_id"] in tiers],
            "phases": left,
        }
    )


def _waiting_for(phase: Mapping[str, Any], left: Collection[str]) -> Mapping[str, Any]:
    """Return a phase of the plan that depends on none but those that are left."""
    if phase.get("depends_on") is None:
        return phase
    return {**phase, "depends_on": [each for each in phase["depends_on"] if each in left]}


def _require_left(wanted: Collection[str], left: Collection[str], run_id: str) -> None:
    for index, phase_id in enumerate(wanted):
        if phase_id not in left:
            names = ", ".join(sorted(left)) or "none"
            raise UnknownPhasesError(
                f"phases[{index}]: '{phase_id}' is no phase of run '{run_id}' that is left"
                f" (there are: {names})"
            )


def next_run_id(run_id: str) -> str:
    """Return the default name of the new run: `run-001` is continued by `run-001.2`, then `.3`."""
    found = _NUMBER.match(run_id)
    name, number = (found["name"], int(found["number"]) + 1) if found else (run_id, 2)
    suffix = f".{number}"
    return name[: _LONGEST_ID - len(suffix)].rstrip(".") + suffix
