"""One piece of work for many concurrent callers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition


class Coalescer:
    """Serve each caller by a piece of work that began after the call, and share that work.

    A caller that finds no work in progress does the work. Callers that arrive meanwhile wait for
    the next piece of work, which one of them does for all. A failure is raised to the caller that
    did the work; the others try again.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_working = False
        self._begun = 0
        self._done = 0

    def run(self, work: Callable[[], None]) -> None:
        """Return after a `work` of any caller that began after this call has succeeded."""
        with self._changed:
            wanted = self._begun + 1
            while self._is_working:
                self._changed.wait()
                if self._done >= wanted:
                    return
            self._is_working = True
            self._begun += 1
            mine = self._begun
        try:
            work()
        except BaseException:
            mine = 0
            raise
        finally:
            with self._changed:
                self._is_working = False
                self._done = max(self._done, mine)
                self._changed.notify_all()
