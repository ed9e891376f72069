"""The answers of git and the path policy about a patch."""

from __future__ import annotations

from dataclasses import dataclass

from .decision import Decision
from .dependencies import DependencyChange
from .events import PatchApplied


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedPatch:
    """A patch that became a commit."""

    submission_id: int
    patch_sha256: str
    commit: str
    tree: str
    parent: str
    dependencies: tuple[DependencyChange, ...] = ()


@dataclass(frozen=True, slots=True)
class PendingPatch:
    """A patch that applies, and is pending until the Auditor approves it."""

    dependencies: tuple[DependencyChange, ...] = ()


@dataclass(frozen=True, slots=True)
class RefusedPatch:
    """Git or the path policy refuses a patch because of its content."""

    detail: str
    is_conflict: bool = False


def record_applied(
    decision: Decision, phase_id: str, applied: AppliedPatch, *, is_again: bool = False
) -> None:
    """Record that a patch is on the branch."""
    decision.record(
        PatchApplied(
            phase_id=phase_id,
            submission_id=applied.submission_id,
            patch_sha256=applied.patch_sha256,
            commit=applied.commit,
            tree=applied.tree,
            parent=applied.parent,
            dependencies=applied.dependencies,
            is_again=is_again,
        )
    )
