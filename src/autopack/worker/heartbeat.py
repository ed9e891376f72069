"""Keeps a lease while its work is done, and stops the work when the service says so. (rules §4)"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from types import TracebackType
from typing import Self

from ..client import ApiError, Autopack, UnreachableError
from ..domain.claiming import Directive
from ..views.work import HeartbeatAnswer, WorkItemAnswer
from .mailbox import Mail, Mailbox

BEATS_A_LEASE = 3
_AGAIN_SECONDS = 5.0  # after a heartbeat without an answer


class Heartbeat:
    """Sends heartbeats in a thread while the `with` block runs."""

    def __init__(
        self,
        service: Autopack,
        item: WorkItemAnswer,
        lease_seconds: int,
        mailbox: Mailbox,
        spent: Callable[[], tuple[int, Decimal | None]],
    ) -> None:
        assert item.lease is not None  # noqa: S101 - for the type checker: it was claimed
        self.about = item.lease.token
        self.reason = ""  # why the service said stop
        self.tokens_used = 0  # the highest so far: the file may be half written
        self._service = service
        self._item = item
        self._pause = lease_seconds / BEATS_A_LEASE
        # A lease that a claim got again may end soon. A clock that is wrong costs one heartbeat, or
        # leaves the usual pause.
        left = (item.lease.expires_at - datetime.now(UTC)).total_seconds()
        self._first_pause = min(self._pause, max(0.0, left) / BEATS_A_LEASE)
        self._mailbox = mailbox
        self._spent = spent
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_over.set()  # a heartbeat under way may take long: it does no harm

    def _beat(self) -> None:
        pause = self._first_pause
        while not self._is_over.wait(pause):
            pause = self._pause
            try:
                answer = self._send()
            except UnreachableError:
                pause = min(self._pause, _AGAIN_SECONDS)
                continue
            except ApiError as error:
                if error.status >= 500:
                    pause = min(self._pause, _AGAIN_SECONDS)
                    continue
                self._stop(Mail.LOST, error.detail)
                return
            if answer.directive is Directive.STOP:
                # While the lease lasts, the result may still be submitted.
                has_lease = answer.expires_at is not None
                self._stop(Mail.OUT_OF_BUDGET if has_lease else Mail.LOST, answer.reason)
                return

    def report_spent(self) -> None:
        """Report the last figures of work that ends without a result, so that they count."""
        with suppress(ApiError, UnreachableError):  # they are as of the last heartbeat then
            self._send()

    def _send(self) -> HeartbeatAnswer:
        tokens, cost = self._spent()
        self.tokens_used = max(self.tokens_used, tokens)
        return self._service.heartbeat(
            self._item.run_id, self._item.phase_id, self.about, self.tokens_used, cost
        )

    def _stop(self, mail: Mail, reason: str) -> None:
        self.reason = reason
        self._mailbox.post(mail, self.about)
