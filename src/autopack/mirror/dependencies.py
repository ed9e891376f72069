"""New and changed dependencies of phases, for pages and the pull request. (rules §2.6)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..views.dependencies import DependencyAnswer
from ..views.runs import PhaseDetail
from .markdown import NONE, code, inline, table

MAX_ROWS = 100
_NAME = 120


def dependency_section(phases: Sequence[PhaseDetail]) -> Iterable[str]:
    """Yield a heading and a table of what phases add and change, or nothing."""
    rows = [(phase, each) for phase in phases for each in phase.dependencies]
    if not rows:
        return
    yield "## New dependencies"
    yield table(
        ("Dependency", "Before", "After", "Manifest", "Phase"),
        ((*_cells(each), code(phase.phase_id)) for phase, each in rows[:MAX_ROWS]),
    )
    if len(rows) > MAX_ROWS:
        yield f"{len(rows) - MAX_ROWS} more are not listed."


def phase_dependencies(phase: PhaseDetail) -> Iterable[str]:
    """Yield the same for the page of one phase, with those of its pending patch."""
    for heading, changes in (
        ("## New dependencies", phase.dependencies),
        ("## New dependencies of the pending patch", phase.pending_dependencies),
    ):
        if changes:
            yield heading
            yield table(("Dependency", "Before", "After", "Manifest"), map(_cells, changes))


def _cells(change: DependencyAnswer) -> tuple[str, str, str, str]:
    manifest = code(change.manifest, _NAME)
    if change.name is None:
        return inline(change.problem or "", _NAME), NONE, NONE, manifest
    return (
        code(change.name, _NAME),
        code(change.before, _NAME) if change.before is not None else "new",
        code(change.after or "", _NAME),
        manifest,
    )
