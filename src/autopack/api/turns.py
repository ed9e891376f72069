"""Changes of one run wait for each other in the event loop, not in threads.

The lock in Postgres makes work on one run serial. A request that waits for that lock in a thread
blocks the thread: 40 such requests would block all other requests, reads too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from ..domain.errors import UnavailableError
from ..domain.plan import Plan

# Of the 40 threads that answer requests; the others are for reads. More of them answer later, not
# sooner: Python runs one at a time, while each holds a run's lock and a transaction.
CHANGING_THREADS: Final = 8
# A request with its turn waits at most 15 seconds for Postgres, so the queue moves.
WAIT_SECONDS: Final = 60.0


class NoTurnError(UnavailableError):
    code = "run_busy"


class Turns:
    """One change of a run at a time, first come, first served; `CHANGING_THREADS` of all runs."""

    def __init__(self) -> None:
        self._seconds = WAIT_SECONDS
        self._threads = asyncio.Semaphore(CHANGING_THREADS)
        self._runs: dict[str, _Queue] = {}

    @asynccontextmanager
    async def take(self, run_id: str | None) -> AsyncIterator[None]:
        """Wait for the turn of a run and for a thread; without a run, only for a thread.

        Raises NoTurnError.
        """
        if run_id is None:
            async with self._waited_for(self._threads, "requests are busy"):
                yield
            return
        key = run_id.lower()
        queue = self._runs.setdefault(key, _Queue())
        queue.users += 1
        try:
            async with (
                self._waited_for(queue.lock, f"run '{run_id[:100]}' is busy"),
                self._waited_for(self._threads, "all runs are busy"),
            ):
                yield
        finally:
            queue.users -= 1
            if not queue.users:
                del self._runs[key]

    @asynccontextmanager
    async def _waited_for(
        self, lock: asyncio.Lock | asyncio.Semaphore, why: str
    ) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._seconds):
                await lock.acquire()
        except TimeoutError:
            raise NoTurnError(f"{why}: no turn within {self._seconds:g} s; try again") from None
        try:
            yield
        finally:
            lock.release()


class _Queue:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


def run_of(path: Mapping[str, Any], body: object) -> str | None:
    """Return the id of a request's run, from its path or from the plan that starts it."""
    if isinstance(body, Plan):
        return body.run.run_id
    run_id = path.get("run_id")
    return None if run_id is None else str(run_id)
