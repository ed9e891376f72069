"""Changes of a phase by an operator. (rules §2.1)"""

from __future__ import annotations

from ..domain.operating import StatusByHand
from ..domain.states import PhaseStatus
from ..domain.values import Closed, Count
from ..views.runs import PhaseAnswer
from .context import AppContext
from .opening import changing
from .settling import settle


class StatusChange(Closed):
    """What the operator sets; reported counts have no effect, as the service counts itself."""

    state: PhaseStatus
    tokens_used: Count = 0
    builder_attempts: Count | None = None
    minor_issues_count: Count | None = None
    major_issues_count: Count | None = None


def update_status(
    context: AppContext, run_id: str, phase_id: str, wanted: StatusChange
) -> PhaseAnswer:
    """Move a phase by hand and count its tokens. (rules §2.1)

    Raises NotFoundError, IllegalTransitionError, PhaseNotNextError, RunOverError.
    """
    with changing(context, run_id) as change:
        row = change.phase(phase_id)
        change.decide(
            StatusByHand(phase_id=phase_id, wanted=wanted.state, tokens=wanted.tokens_used)
        )
        settle(change)
    return PhaseAnswer.of(row)
