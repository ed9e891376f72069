"""What came of a patch that git and policy were asked about."""

from __future__ import annotations

from dataclasses import dataclass

from .decision import Decision
from .events import PatchApplied


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPatch:
    """A patch that became a commit."""

    submission_id: int
    patch_sha256: str
    commit: str
    tree: str
    parent: str


@dataclass(frozen=True, slots=True)
class HeldPatch:
    """A patch that applies, and waits for its approval."""


@dataclass(frozen=True, slots=True)
class RefusedPatch:
    """Git or policy does not take a patch, and it is the patch's fault."""

    detail: str


def record_applied(decision: Decision, phase_id: str, applied: AppliedPatch) -> None:
    """Record that a patch is on the branch for good."""
    decision.record(
        PatchApplied(
            phase_id=phase_id,
            submission_id=applied.submission_id,
            patch_sha256=applied.patch_sha256,
            commit=applied.commit,
            tree=applied.tree,
            parent=applied.parent,
        )
    )
