"""How much the holder of one key may ask for. (docs/security.md)"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Final

from pydantic import Field

from .errors import TooManyError
from .values import Closed, PositiveCount

WINDOW_SECONDS: Final = 60.0


class TooManyRequestsError(TooManyError):
    code = "too_many_requests"


class TooManyKeyStreamsError(TooManyError):
    code = "too_many_key_streams"


class TooManyClaimsError(TooManyError):
    code = "too_many_claims"


class KeyLimits(Closed):
    """The limits of one key; null is the service's own (settings)."""

    requests_per_minute: PositiveCount | None = None
    streams: Annotated[PositiveCount | None, Field(description="Open event streams.")] = None
    claims: Annotated[PositiveCount | None, Field(description="Leases held at a time.")] = None


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """The limits that hold for a caller."""

    requests_per_minute: int
    streams: int
    claims: int


@dataclass(slots=True)
class Window:
    """Counts requests over the last minute: those of this minute, and a share of the last one's."""

    began_at: float
    count: int = 0
    earlier: int = 0

    def take(self, limit: int, now: float) -> None:
        """Count one request at a time in seconds. Raises TooManyRequestsError."""
        passed = now - self.began_at
        if passed >= WINDOW_SECONDS:
            windows = int(passed / WINDOW_SECONDS)
            self.earlier = self.count if windows == 1 else 0
            self.began_at, self.count = self.began_at + windows * WINDOW_SECONDS, 0
            passed = now - self.began_at
        if self.count + self.earlier * (1 - passed / WINDOW_SECONDS) + 1 > limit:
            raise TooManyRequestsError(
                f"this key may send {limit} requests a minute",
                retry_after=max(1, math.ceil(self._wait(limit, passed))),
            )
        self.count += 1

    def _wait(self, limit: int, passed: float) -> float:
        """Return after how many seconds the next request is within the limit."""
        room, before = limit - 1 - self.count, self.earlier
        if room >= 0:  # enough of the last minute has to pass
            return WINDOW_SECONDS * (1 - room / before) - passed
        # In the next minute, what was sent in this one counts by its share.
        return WINDOW_SECONDS * (2 - (limit - 1) / self.count) - passed


@dataclass(slots=True)
class Rates:
    """The windows of all keys of this process; one lock-free use, from the event loop."""

    clock: Callable[[], float]
    windows: dict[str, Window] = field(default_factory=dict)

    def take(self, key: str, limit: int) -> None:
        """Count a request of a key. Raises TooManyRequestsError."""
        now = self.clock()
        window = self.windows.get(key)
        if window is None:
            window = self.windows[key] = Window(began_at=now)
        window.take(limit, now)
