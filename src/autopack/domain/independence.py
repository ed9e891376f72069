"""Whether who reviews or judges a phase is another than who built it. (rules §2.4)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from typing import Final

from .errors import ConflictError
from .run import PhaseState
from .terms import Independence

# Names of callers that gave none: they are known by what they did, which tells no two apart.
_UNNAMED: Final = frozenset({"viewer", "builder", "auditor", "ci", "operator"})


class NotIndependentError(ConflictError):
    code = "not_independent"


def identity_of(actor: str) -> str | None:
    """Return who an actor is, whatever its role; None for the service and for unnamed callers."""
    kind, _, rest = actor.partition(":")
    if kind in ("key", "oidc"):
        return actor.rpartition(":")[0]
    if kind == "local" and rest.partition("@")[0] not in _UNNAMED:
        return actor
    return None


def is_independent(phase: PhaseState, actor: str, *, is_judge: bool = False) -> bool:
    """Tell whether an actor may review a phase, or as CI judge it.

    A reviewer must not be its last Builder, CI neither that nor its last Auditor.
    """
    mine = identity_of(actor)
    if mine is None or phase.independence is Independence.NONE:
        return True
    if phase.independence is Independence.KEY and mine.startswith("local:"):
        return True
    others = {phase.built_by, phase.reviewed_by} if is_judge else {phase.built_by}
    return mine not in {identity_of(other) for other in others if other is not None}


def require_independent(phase: PhaseState, actor: str, *, is_judge: bool = False) -> None:
    """Refuse a review or a verdict on an actor's own work. Raises NotIndependentError."""
    if not is_independent(phase, actor, is_judge=is_judge):
        own = "built or reviewed" if is_judge else "built"
        raise NotIndependentError(
            f"phase '{phase.phase_id}' needs another than {identity_of(actor)}, which {own} it"
        )


def rests_on_names(phase: PhaseState) -> bool:
    """Tell whether independence was asked for, and only names that agents gave show it."""
    actors = (phase.built_by, phase.reviewed_by)
    return (
        phase.independence is not Independence.NONE
        and phase.reviewed_by is not None
        and any(actor is None or actor.startswith("local:") for actor in actors)
    )
