"""One thread that calls a function every few seconds until it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

logger = structlog.get_logger(__name__)

PATIENCE_SECONDS = 60.0


class Pulse:
    """Tells whether background work still gets done."""

    def __init__(self) -> None:
        self._allowed_seconds = PATIENCE_SECONDS
        self._beaten_at = time.monotonic()

    def expect_every(self, seconds: float) -> None:
        self._allowed_seconds = PATIENCE_SECONDS + 2 * seconds
        self.beat()

    def beat(self) -> None:
        self._beaten_at = time.monotonic()

    def problem(self) -> str | None:
        """Say since when nothing got done, None when all is well."""
        silent = time.monotonic() - self._beaten_at
        if silent <= self._allowed_seconds:
            return None
        return f"background work has not come to an end for {silent:.0f} seconds; see the log"


class Periodic:
    """Run `work` every `seconds`, in a thread of its own; a failure is logged and tried again."""

    def __init__(self, work: Callable[[], None], seconds: float, pulse: Pulse) -> None:
        self._work = work
        self._seconds = seconds
        self._pulse = pulse
        pulse.expect_every(seconds)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for what is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(self._seconds):
            try:
                self._work()
                self._pulse.beat()
            except Exception:
                logger.exception("periodic_work_failed")
