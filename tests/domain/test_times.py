"""How long a run took, and time spans in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from autopack.domain.times import duration, minutes_used, whole_minutes_used

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


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (90, "1 min 30 s"),
        (599, "9 min 59 s"),
        (3_599, "59 min"),
        (7_200, "2 h"),
        (7_260, "2 h 1 min"),
        (90_000, "25 h"),
        (400_000, "5 d"),
    ],
)
def test_a_time_span_is_told_in_at_most_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
