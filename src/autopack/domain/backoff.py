"""Waits between the tries of something that fails."""

from __future__ import annotations

from datetime import timedelta


def doubling(first: timedelta, longest: timedelta, attempts: int) -> timedelta:
    """Return the wait after so many failed tries: twice as long each time, up to the longest."""
    return min(first * (1 << min(attempts - 1, 16)), longest)
