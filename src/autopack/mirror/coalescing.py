"""Many who ask for the same work, and few who do it."""

from __future__ import annotations

from collections.abc import Callable
from threading import Condition


class Coalescer:
    """Serve each caller by a piece of work that began after the call, and share that work.

    Who finds nobody at work does it; who comes meanwhile waits for the next, which one of those who
    wait does for all of them. A failure is told to whoever did the work; the others try again.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._is_working = False
        self._begun = 0
        self._done = 0

    def run(self, work: Callable[[], None]) -> None:
        """Return when `work`, ours or another caller's, began after this call and succeeded."""
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
