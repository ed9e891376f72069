"""Requests a minute, counted over a window that slides."""

from __future__ import annotations

import pytest

from autopack.domain.limits import Rates, TooManyRequestsError, Window

pytestmark = pytest.mark.unit


def sent(window: Window, limit: int, now: float, tries: int) -> int:
    """Return how many of so many requests at one moment are within the limit."""
    count = 0
    for _ in range(tries):
        try:
            window.take(limit, now)
            count += 1
        except TooManyRequestsError:
            pass
    return count


def test_a_key_sends_its_limit_and_not_one_more() -> None:
    window = Window(began_at=0)
    assert sent(window, 5, 0.5, 5) == 5
    with pytest.raises(TooManyRequestsError, match="5 requests a minute") as refusal:
        window.take(5, 1)
    assert refusal.value.extra == {"retry_after": refusal.value.retry_after}


def test_no_minute_holds_more_than_the_limit_wherever_it_begins() -> None:
    """A burst at the end of one window and at the beginning of the next would be twice as much."""
    window = Window(began_at=0)
    assert sent(window, 60, 59, 100) == 60
    assert sent(window, 60, 60, 100) == 0
    assert sent(window, 60, 90, 100) == 30
    assert sent(window, 60, 119, 100) == 29
    assert sent(window, 60, 600, 100) == 60


@pytest.mark.parametrize("limit", [1, 2, 7, 60])
@pytest.mark.parametrize("at", [0.0, 0.4, 31.0, 59.9])
def test_after_the_seconds_that_a_refusal_names_a_request_is_taken(limit: int, at: float) -> None:
    window = Window(began_at=0)
    for _ in range(4):  # through several windows
        sent(window, limit, at, 2 * limit)
        with pytest.raises(TooManyRequestsError) as refusal:
            window.take(limit, at)
        assert 1 <= refusal.value.retry_after <= 120
        at += refusal.value.retry_after
        window.take(limit, at)


def test_each_key_has_a_window_of_its_own() -> None:
    now = [0.0]
    rates = Rates(clock=lambda: now[0])
    rates.take("a", 1)
    rates.take("b", 1)
    with pytest.raises(TooManyRequestsError):
        rates.take("a", 1)
    now[0] = 121.0
    rates.take("a", 1)
