"""Where a continued run starts. (rules §2.5)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import pytest

from autopack.domain.continuing import verified_commit
from autopack.domain.states import PhaseStatus

pytestmark = pytest.mark.unit

COMPLETE, FAILED = PhaseStatus.COMPLETE, PhaseStatus.FAILED


@dataclass(frozen=True)
class Ended:
    state: PhaseStatus
    minute: int | None
    phase_index: int
    snapshot_commit: str | None
    tier_index: int = 0

    @property
    def ended_at(self) -> datetime | None:
        return None if self.minute is None else datetime(2026, 1, 1, 0, self.minute, tzinfo=UTC)


@pytest.mark.parametrize(
    ("phases", "commit"),
    [
        ([], None),
        ([Ended(FAILED, 1, 0, None)], None),
        ([Ended(COMPLETE, 1, 0, "a"), Ended(COMPLETE, 2, 1, "b")], "b"),
        # Side by side the first of the plan may complete last.
        ([Ended(COMPLETE, 2, 0, "a"), Ended(COMPLETE, 1, 1, "b")], "a"),
        ([Ended(COMPLETE, 1, 0, "a"), Ended(COMPLETE, 1, 1, "b")], "b"),
        ([Ended(COMPLETE, 1, 1, "a", 0), Ended(COMPLETE, 1, 0, "b", 1)], "b"),
        ([Ended(COMPLETE, 1, 0, "a"), Ended(FAILED, 2, 1, None)], "a"),
    ],
)
def test_it_starts_from_the_commit_of_the_phase_that_completed_last(
    phases: list[Ended], commit: str | None
) -> None:
    assert verified_commit(phases) == commit
