"""How long a run took."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from autopack.domain.times import minutes_used, whole_minutes_used

CREATED = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "minutes", "whole"),
    [(0, 0, 0), (90, 1.5, 1), (119, 119 / 60, 1), (120, 2, 2), (7_200, 120, 120), (-30, 0, 0)],
)
def test_minutes_of_a_run_are_never_rounded_up_and_never_negative(
    seconds: int, minutes: float, whole: int
) -> None:
    until = CREATED + timedelta(seconds=seconds)
    assert minutes_used(CREATED, until) == pytest.approx(minutes)
    assert whole_minutes_used(CREATED, until) == whole
