"""How the branch of a run that succeeded is made again on a newer base: a new run. (rules §8.1)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from .building import gate_work
from .continuing import next_run_id
from .decision import Decision
from .dependencies import DependencyChange
from .errors import ConflictError
from .events import PatchReplayed, PhaseGated, PhaseStarted
from .listing import listed
from .plan import Plan
from .run import RunState
from .states import RunStatus
from .terms import CiProfile, Complexity, RunScope, SafetyProfile
from .values import Closed, Identifier

TIER_ID: Final = "REBASE"
PHASE_ID: Final = "rebase"
MAX_NAMED: Final = 20


class NotRebasableError(ConflictError):
    code = "not_rebasable"


class BaseMovedError(ConflictError):
    code = "base_moved"


class RebaseConflictError(ConflictError):
    code = "rebase_conflict"


class RebaseRefusedError(ConflictError):
    """Today's rules about paths refuse a patch; `violations` as of a refused patch."""

    code = "rebase_refused"


class RebaseWish(Closed):
    """What an operator may choose: the new run's id, and the base commit that must be today's."""

    run_id: Identifier | None = None
    base_commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RebasedPatch:
    """A commit of the rebased run, made again on this run's branch."""

    original: str
    from_phase: str
    commit: str
    tree: str
    parent: str
    builders: tuple[str, ...] = ()
    builder_models: tuple[str, ...] = ()
    dependencies: tuple[DependencyChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebase:
    """All accepted patches of another run are on the branch of this one, in their order."""

    from_run: str
    patches: tuple[RebasedPatch, ...]


def require_rebasable(run: RunState) -> None:
    """Refuse a run that is not over, or that may not be promoted by its own record.

    Raises NotRebasableError.
    """
    name = f"run '{run.run_id}'"
    if not run.is_over:
        raise NotRebasableError(f"{name} is {run.state}; only a run that is over can be rebased")
    if run.state is not RunStatus.DONE_SUCCESS:
        raise NotRebasableError(f"{name} is {run.state}; continue it, or start a new run")
    if run.promotion_reasons:
        reasons = "; ".join(run.promotion_reasons)
        raise NotRebasableError(f"{name} may not be promoted, so it is not rebased: {reasons}")


def rebase_plan(
    run: RunState, safety: SafetyProfile, wanted: RebaseWish, *, onto: str, branch: str
) -> Plan:
    """Return the plan of the new run: one phase, whose CI is strict if any phase's was."""
    is_strict = any(phase.ci_profile is CiProfile.STRICT for phase in run.phases)
    names = listed([phase.phase_id for phase in run.phases], MAX_NAMED)
    return Plan.model_validate(
        {
            "run": {
                "run_id": wanted.run_id or next_run_id(run.run_id),
                "safety_profile": safety,
                "run_scope": RunScope.SINGLE_TIER,
            },
            "tiers": [{"tier_id": TIER_ID, "tier_index": 0, "name": f"Rebase {run.run_id}"}],
            "phases": [
                {
                    "phase_id": PHASE_ID,
                    "phase_index": 0,
                    "tier_id": TIER_ID,
                    "name": f"Rebase {run.run_id} onto {branch} at {onto[:12]}",
                    "description": f"The patches of run {run.run_id} are on the branch already,"
                    f" made again on {branch} at {onto}; its phases are"
                    f" {names}. If CI is red, make the branch work on the new base, and change"
                    " nothing else.",
                    "complexity": Complexity.HIGH if is_strict else Complexity.MEDIUM,
                }
            ],
        }
    )


def accept_rebase(decision: Decision, given: Rebase) -> None:
    """Put the patches on the branch, and let the gate and CI decide. Raises RunOverError."""
    decision.require_live()
    decision.record(
        PhaseStarted(
            phase_id=PHASE_ID,
            reason=f"the patches of run '{given.from_run}' are made again",
            deadline_at=decision.in_minutes(decision.state.attempt_minutes),
        )
    )
    for patch in given.patches:
        decision.record(
            PatchReplayed(
                phase_id=PHASE_ID,
                original=patch.original,
                from_phase=patch.from_phase,
                commit=patch.commit,
                tree=patch.tree,
                parent=patch.parent,
                builders=patch.builders,
                builder_models=patch.builder_models,
                dependencies=patch.dependencies,
            )
        )
    decision.record(
        PhaseGated(
            phase_id=PHASE_ID,
            reason="all patches merge with the new base",
            commit=decision.state.head_commit,
        )
    )
    gate_work(decision, PHASE_ID)


def refused_text(from_phase: str, commit: str, why: str) -> str:
    """Say which patch today's rules about paths refuse, and why."""
    return (
        f"commit {commit[:12]} of phase '{from_phase}' is refused by the rules of today: {why}"
        " Nothing was changed"
    )


def conflict_text(from_phase: str, commit: str, where: str, paths: Sequence[str]) -> str:
    """Say which patch does not merge with the new base, and where."""
    named = listed(paths, MAX_NAMED) or "the whole tree"
    return (
        f"commit {commit[:12]} of phase '{from_phase}' does not merge with {where}: {named};"
        " nothing was changed"
    )
