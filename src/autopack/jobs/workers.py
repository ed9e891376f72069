"""Threads that take up work as it comes, and a bell that calls them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

import structlog

logger = structlog.get_logger(__name__)

# Work of other processes rings no bell here.
LONGEST_REST_SECONDS: Final = 5.0


class Bell:
    """Wakes everybody who waits; a ring since `rings` was read is not missed."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._rings = 0

    @property
    def rings(self) -> int:
        return self._rings

    def ring(self) -> None:
        with self._condition:
            self._rings += 1
            self._condition.notify_all()

    def wait(self, heard: int, seconds: float) -> None:
        """Wait until it rang more often than `heard`, or so many seconds."""
        deadline = time.monotonic() + seconds
        with self._condition:
            while self._rings == heard and (left := deadline - time.monotonic()) > 0:
                self._condition.wait(left)


class Workers:
    """Some threads that call `work` until they are stopped; it returns how long they may rest."""

    def __init__(self, name: str, work: Callable[[], float], bell: Bell, count: int) -> None:
        self._work = work
        self._bell = bell
        self._is_stopping = False
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{number}", daemon=True)
            for number in range(count)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop, and wait for what is under way."""
        self._is_stopping = True
        self._bell.ring()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._is_stopping:
            heard = self._bell.rings
            try:
                seconds = self._work()
            except Exception:
                logger.exception("background_work_failed")
                seconds = LONGEST_REST_SECONDS
            if not self._is_stopping:
                self._bell.wait(heard, min(seconds, LONGEST_REST_SECONDS))
