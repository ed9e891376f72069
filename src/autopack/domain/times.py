"""How long a run took, for its budget of minutes."""

from __future__ import annotations

from datetime import datetime, timedelta


def minutes_used(created_at: datetime, until: datetime) -> float:
    """Return the minutes that a run used until a moment; 0 if the clock was set back since."""
    return max(0.0, (until - created_at) / timedelta(minutes=1))


def whole_minutes_used(created_at: datetime, until: datetime) -> int:
    """Return the full minutes that a run used: a budget is not shown as spent before it is."""
    return int(minutes_used(created_at, until))
