"""What agents are answered when they post results."""

from __future__ import annotations

from typing import Literal

from ...domain.states import PhaseStatus, RunStatus
from . import Shape


class NextStep(Shape):
    """What the run waits for now."""

    action: Literal["build", "audit", "ci", "none"]
    phase_id: str | None
    detail: str


class BuilderResultAnswer(Shape):
    message: str
    submission_id: int
    commit_sha: str | None
    phase_state: PhaseStatus
    run_state: RunStatus
    next: NextStep
