"""When the details of a run that is over may be removed. (rules §10)"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from .errors import GoneError

_DAYS: Final = re.compile(r"([0-9]{1,5})([dw])", re.ASCII)
_UNITS: Final = {"d": 1, "w": 7}


class Details(StrEnum):
    """Whether patches, logs and events of a run are still here."""

    KEPT = "kept"
    REMOVED = "removed"


class DetailsRemovedError(GoneError):
    """The run keeps its record and its summary; what is asked for was removed."""

    code = "details_removed"

    @classmethod
    def of(cls, run_id: str, removed_at: datetime) -> DetailsRemovedError:
        return cls(
            f"the details of run '{run_id}' were removed at {removed_at:%Y-%m-%d %H:%M} UTC, as"
            " AUTOPACK_RETENTION says: its record is the last commit of its branch",
            run_id=run_id,
            details_removed_at=removed_at.isoformat(),
        )


def read_retention(text: str) -> timedelta:
    """Return how long details are kept: `90d` or `12w`, at least a day. Raises ValueError."""
    match = _DAYS.fullmatch(text.strip())
    days = int(match[1]) * _UNITS[match[2]] if match else 0
    if days < 1:
        raise ValueError(f"{text[:80]!r} is no number of days or weeks: 90d and 12w are")
    return timedelta(days=days)
