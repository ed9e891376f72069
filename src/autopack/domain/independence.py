"""Whether who reviews or judges a phase is another than who built it. (rules §2.4)

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from .errors import ConflictError
from .run import PhaseState
from .terms import Independence

# Names of callers that gave none: they are known by what they did, which tells no two apart.
_UNNAMED: Final = frozenset({"viewer", "builder", "auditor", "ci", "operator"})


class NotIndependentError(ConflictError):
    code = "not_independent"


class AlreadyApprovedError(ConflictError):
    code = "already_approved"


def identity_of(actor: str) -> str | None:
    """Return who an actor is, whatever its role; None for the service and for unnamed callers."""
    kind, _, rest = actor.partition(":")
    if kind in ("key", "oidc"):
        return actor.rpartition(":")[0]
    if kind == "local" and rest.partition("@")[0] not in _UNNAMED:
        return actor
    return None


def model_of(name: str | None) -> str | None:
    """Return a model's name as it is compared: without its provider, blanks and case."""
    known = (name or "").rpartition("/")[2].strip().casefold()
    return known or None


def has_approved(phase: PhaseState, actor: str) -> bool:
    """Tell whether an actor is among those who approved what the phase has now.

    Unnamed callers are not told apart, so they count as one Auditor.
    """
    return (identity_of(actor) or actor) in {
        identity_of(each) or each for each in phase.approved_by
    }


def why_not_reviewer(phase: PhaseState, actor: str, model: str | None = None) -> str | None:
    """Return why an actor may not review a phase; None: nothing that is known speaks against it.

    Its Builders are the last one, and those whose patches are on the branch.
    """
    if phase.independence is Independence.MODEL:
        theirs = {model_of(each) for each in (phase.built_with, *phase.builder_models)} - {None}
        return f"the model '{model}' built it" if model_of(model) in theirs else None
    mine = _told_apart(phase, actor)
    if mine is None or mine not in _identities((phase.built_by, *phase.builders)):
        return None
    return f"{mine} built it"


def why_not_judge(phase: PhaseState, actor: str) -> str | None:
    """Return why an actor may not judge a phase as CI: it is a Builder or an Auditor of it."""
    mine = _told_apart(phase, actor)
    others = (phase.built_by, *phase.builders, phase.reviewed_by, *phase.approved_by)
    return f"{mine} built or reviewed it" if mine in _identities(others) else None


def require_reviewer(
    phase: PhaseState, actor: str, model: str | None, *, is_approval: bool
) -> None:
    """Refuse a review of an actor's own work, or a second approval of it.

    Raises NotIndependentError, AlreadyApprovedError.
    """
    why_not = why_not_reviewer(phase, actor, model)
    if why_not is not None:
        raise NotIndependentError(f"phase '{phase.phase_id}' needs another Auditor: {why_not}")
    require_model(phase, actor, model)
    if is_approval and has_approved(phase, actor):
        who = identity_of(actor) or "an Auditor without a name"
        raise AlreadyApprovedError(
            f"{who} has approved phase '{phase.phase_id}' already: it needs the approval of "
            f"{phase.approvals_missing} more, each with a key or an agent name of its own"
        )


def require_model(phase: PhaseState, actor: str, model: str | None) -> None:
    """Refuse a keyed result that names no model, where models must differ.

    A caller without a key is accepted, as is one without a name. Raises NotIndependentError.
    """
    if (
        phase.independence is Independence.MODEL
        and model_of(model) is None
        and not actor.startswith("local:")
        and identity_of(actor) is not None
    ):
        raise NotIndependentError(
            f"phase '{phase.phase_id}' needs an Auditor of another model than its Builder's: "
            "name your `model`, in the claim or in the result"
        )


def require_judge(phase: PhaseState, actor: str) -> None:
    """Refuse a verdict on an actor's own work. Raises NotIndependentError."""
    why_not = why_not_judge(phase, actor)
    if why_not is not None:
        raise NotIndependentError(f"phase '{phase.phase_id}' needs a verdict of another: {why_not}")


def rests_on_names(phase: PhaseState) -> bool:
    """Tell whether independence was asked for, and only names that agents gave show it.

    Of a model no key says anything.
    """
    if phase.reviewed_by is None:
        return False
    if phase.independence is Independence.MODEL:
        return True
    actors = (phase.built_by, *phase.builders, phase.reviewed_by, *phase.approved_by)
    is_asked = phase.independence is not Independence.NONE or phase.approvals_needed > 1
    return is_asked and any(
        actor is None or identity_of(actor) is None or actor.startswith("local:")
        for actor in actors
    )


def _told_apart(phase: PhaseState, actor: str) -> str | None:
    """Return who an actor is, if the phase's rule tells it from others."""
    mine = identity_of(actor)
    if mine is None or phase.independence is Independence.NONE:
        return None
    is_key_asked = phase.independence is Independence.KEY
    return None if is_key_asked and mine.startswith("local:") else mine


def _identities(actors: Iterable[str | None]) -> set[str | None]:
    return {identity_of(actor) for actor in actors if actor is not None} - {None}
