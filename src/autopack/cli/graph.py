"""What `autopack run graph` prints: the order of a run's phases, and what waits for what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import StrEnum

from ..domain.graph import edges_of
from ..domain.states import PhaseStatus
from ..views.runs import PhaseAnswer, RunAnswer


class GraphFormat(StrEnum):
    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


def draw(run: RunAnswer, wanted: GraphFormat) -> Iterator[str]:
    """Return the lines of a run's graph in a format: one a phase or an edge."""
    return {
        GraphFormat.TEXT: _text,
        GraphFormat.MERMAID: _mermaid,
        GraphFormat.DOT: _dot,
    }[
        wanted
    ](run, run.phases)


def document(run: RunAnswer) -> dict[str, object]:
    """Return the graph for programs: phases with what they directly depend on and wait for."""
    phases = run.phases
    edges = edges_of(phases)
    return {
        "run_id": run.run_id,
        "state": run.state,
        "phases": [
            {
                "phase_id": phase.phase_id,
                "tier_id": phase.tier_id,
                "state": phase.state,
                "after": list(edges[phase.phase_id]),
                "waits_for": [
                    {"phase_id": wait.waits_for, "cause": wait.cause}
                    for wait in run.waits
                    if wait.phase_id == phase.phase_id
                ],
            }
            for phase in phases
        ],
    }


def _text(run: RunAnswer, phases: Sequence[PhaseAnswer]) -> Iterator[str]:
    edges = edges_of(phases)
    waits: dict[str, list[str]] = {}
    for wait in run.waits:
        why = "" if wait.cause == "order" else " (paths)"
        waits.setdefault(wait.phase_id, []).append(f"{wait.waits_for}{why}")
    width = max((len(phase.phase_id) for phase in phases), default=0)
    yield f"{run.run_id}  {run.state}"
    tier = None
    for phase in phases:
        if phase.tier_id != tier:
            tier = phase.tier_id
            yield f"{tier}"
        after = ", ".join(edges[phase.phase_id])
        line = f"  {phase.phase_id:{width}}  {phase.state:10}"
        line += f"  after {after}" if after else ""
        if phase.phase_id in waits:
            line += f"  waits for {', '.join(waits[phase.phase_id])}"
        elif phase.state is PhaseStatus.QUEUED:
            line += "  may start now"
        yield line


def _mermaid(_: RunAnswer, phases: Sequence[PhaseAnswer]) -> Iterator[str]:
    names = {phase.phase_id: f"p{at}" for at, phase in enumerate(phases)}
    yield "graph LR"
    for phase in phases:
        yield f'  {names[phase.phase_id]}["{phase.phase_id}<br/>{phase.state}"]'
    for name, before in edges_of(phases).items():
        for each in before:
            yield f"  {names[each]} --> {names[name]}"


def _dot(_: RunAnswer, phases: Sequence[PhaseAnswer]) -> Iterator[str]:
    yield "digraph run {"
    yield "  rankdir=LR;"
    for phase in phases:
        yield f'  "{phase.phase_id}" [shape=box, label="{phase.phase_id}\\n{phase.state}"];'
    for name, before in edges_of(phases).items():
        for each in before:
            yield f'  "{each}" -> "{name}";'
    yield "}"
