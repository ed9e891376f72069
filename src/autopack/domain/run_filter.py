"""Which runs a list contains."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from .promotion import PromotionState
from .run import FailureCode
from .states import RunStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list contains; a filter that is not set excludes none.

    `containing` is a text in a run's id, in the id or name of one of its phases, or in the key of
    an issue that it reported.
    """

    status: RunStatus | None = None
    failure_code: FailureCode | None = None
    promotion: PromotionState | None = None
    project_id: str | None = None
    is_live: bool | None = None
    ended_since: datetime | None = None
    containing: str | None = None
