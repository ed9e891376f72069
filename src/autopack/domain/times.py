"""How long a run took, for its budget of minutes; and time spans in words."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

_MINUTE, _HOUR, _DAY = 60, 3_600, 86_400
_SHORT: Final = 10 * _MINUTE  # below it, seconds are told beside minutes
_LONG: Final = 2 * _DAY  # from it on, days are told alone


def minutes_used(created_at: datetime, until: datetime) -> float:
    """Return the minutes that a run used until a moment; 0 if the clock was set back since."""
    return max(0.0, (until - created_at) / timedelta(minutes=1))


def whole_minutes_used(created_at: datetime, until: datetime) -> int:
    """Return the full minutes that a run used: a budget is not shown as spent before it is."""
    return int(minutes_used(created_at, until))


def duration(seconds: float) -> str:
    """Return a time span in words of at most two units; a negative one is none."""
    seconds = max(0, round(seconds))
    if seconds < _MINUTE:
        return f"{seconds} s"
    if seconds < _SHORT:
        return _two(seconds, _MINUTE, "min", 1, "s")
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} min"
    if seconds < _LONG:
        return _two(seconds, _HOUR, "h", _MINUTE, "min")
    return f"{round(seconds / _DAY)} d"


def _two(seconds: int, size: int, unit: str, smaller: int, smaller_unit: str) -> str:
    rest = seconds % size // smaller
    whole = f"{seconds // size} {unit}"
    return f"{whole} {rest} {smaller_unit}" if rest else whole
