"""The order of a run's phases as a graph. (rules §2.7)"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol


class GraphPhase(Protocol):
    @property
    def phase_id(self) -> str: ...
    @property
    def depends_on(self) -> Sequence[str] | None: ...


def edges_of(phases: Iterable[GraphPhase]) -> Mapping[str, tuple[str, ...]]:
    """Return for each phase, in the plan's order, those that it directly waits for.

    A phase without `depends_on` waits for all before it: for the last ones of each line.
    """
    found: dict[str, tuple[str, ...]] = {}
    ends: dict[str, None] = {}  # phases that none so far waits for, in order
    for phase in phases:
        before = tuple(ends) if phase.depends_on is None else tuple(phase.depends_on)
        for name in before:
            ends.pop(name, None)
        found[phase.phase_id] = before
        ends[phase.phase_id] = None
    return found
