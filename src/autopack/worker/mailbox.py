"""Messages to a waiting worker: an interruption, its command's end, news from the service."""

from __future__ import annotations

import queue
import time
from enum import StrEnum


class Mail(StrEnum):
    INTERRUPTED = "interrupted"  # permanent: every later wait returns it too
    ENDED = "ended"
    OUT_OF_BUDGET = "out_of_budget"
    LOST = "lost"


class Mailbox:
    """Any thread and any signal handler may post: SimpleQueue.put is reentrant."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[Mail, object]] = queue.SimpleQueue()
        self._is_interrupted = False

    def post(self, mail: Mail, about: object = None) -> None:
        self._queue.put((mail, about))

    def wait(self, seconds: float, about: object = None) -> Mail | None:
        """Return the next message about one work item, or None after so many seconds."""
        until = time.monotonic() + seconds
        while not self._is_interrupted:
            try:
                mail, subject = self._queue.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                return None
            if mail is Mail.INTERRUPTED:
                self._is_interrupted = True
            elif subject == about:
                return mail
        return Mail.INTERRUPTED
