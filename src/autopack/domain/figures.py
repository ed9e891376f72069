"""Figures over many runs: what is counted, and what follows from the counts.

Times are counted in steps of ten percent, so that a median over any number of runs can be computed
from sums by day; it is off by at most five percent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Final

from .errors import InvalidError

DEFAULT_DAYS: Final = 30
MAX_DAYS: Final = 1_000
STEP: Final = 1.1


class Grouping(StrEnum):
    """What costs can be grouped by."""

    MODEL = "model"
    AGENT = "agent"
    CATEGORY = "category"
    PROJECT = "project"
    DAY = "day"


class Subject(StrEnum):
    """What a figure counts."""

    RUN = "run"
    PHASE = "phase"
    BUILDER = "builder"
    AUDITOR = "auditor"
    HAND = "hand"  # tokens that an operator counted, without a result
    CI = "ci"
    FLAKY_CHECK = "flaky_check"
    WAIT = "wait"


class InvalidPeriodError(InvalidError):
    code = "invalid_period"


def period(start: date | None, end: date | None, today: date) -> tuple[date, date]:
    """Return the first and the last day; by default the last thirty. Raises InvalidPeriodError."""
    end = end or today
    try:
        start = start or end - timedelta(days=DEFAULT_DAYS - 1)
        _ = start - timedelta(days=MAX_DAYS)  # the period before must exist, too
    except OverflowError:
        raise InvalidPeriodError(f"from: there are no days before {start or end}") from None
    if start > end:
        raise InvalidPeriodError(f"from: is {start}, which is after to, {end}")
    if (end - start).days >= MAX_DAYS:
        raise InvalidPeriodError(f"from: is {start}; to {end} it is more than {MAX_DAYS} days")
    return start, end


def share(part: int | Decimal, whole: int | Decimal) -> float | None:
    """Return a share of 0 to 1 with four digits; None: there is nothing to have a share of."""
    return round(float(part / whole), 4) if whole else None


def per_phase(tries: int, phases: int) -> float | None:
    """Return how many tries a phase needed, with two digits; None: no phase was tried."""
    return round(tries / phases, 2) if phases else None


def seconds_of(step: int) -> float:
    """Return the time that a step stands for, in seconds."""
    return round(STEP**step, 1)


def percentile(counts: Mapping[int, int], part: float) -> float | None:
    """Return the seconds within which this part of all times was over; None: there are no times."""
    rank = math.ceil(sum(counts.values()) * part)
    for step in sorted(counts):
        rank -= counts[step]
        if rank <= 0:
            return seconds_of(step)
    return None
