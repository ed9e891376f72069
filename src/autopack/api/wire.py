"""The HTTP protocol of a connection, with the limits that need the raw bytes.

An application gets a request after its head is complete. Only the protocol can limit the size and
the time of a head and the number of idle connections, and uvicorn's own does not. `autopack serve`
uses this protocol; plain uvicorn does with `--http src.autopack.api.wire:WireProtocol`.
"""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar, Final, cast

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from .errors import SECURITY_HEADERS, problem_response
from .head import HeadLimits

# Files besides connections: 80 to Postgres, and pipes to git for each of 40 threads.
RESERVED_FILES: Final = 500
WANTED_FILES: Final = 16_384
STEP_BYTES: Final = 65_536
# After a refusal, incoming bytes are read and dropped for so long: closing at once would reset the
# connection, and the client would not see the answer.
LINGER_SECONDS: Final = 1.0
# How long an idle connection stays: longer than clients and proxies keep theirs (httpx 5 seconds,
# nginx 60, Go 90). Else one of them could send a request just as it is closed, and would not know
# whether it was done.
IDLE_SECONDS: Final = 300


def raise_file_limit() -> int:
    """Raise the limit of open files as far as the system allows, up to a maximum; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(hard, WANTED_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def connections_within(files: int) -> int:
    """Return how many connections fit a limit of open files."""
    return max(files - RESERVED_FILES, files // 4)


class WireProtocol(HttpToolsProtocol):
    """Refuses heads that are too large, closes stalled connections, and limits their number."""

    head_limits: ClassVar[HeadLimits] = HeadLimits()
    stalled_seconds: ClassVar[float] = 30
    idle_seconds: ClassVar[float] = IDLE_SECONDS
    max_connections: ClassVar[int | None] = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.timeout_keep_alive = IDLE_SECONDS  # uvicorn's own timer, beside `_timer`
        # All connections that wait for their client, the longest wait first.
        self._waiting: dict[WireProtocol, None] = _waiting_of(server_state)
        self._timer: asyncio.TimerHandle | None = None
        self._overhead = 0  # bytes of a head, of trailers, or between chunks of a body
        self._has_advanced = False  # a message or a part of a body began or ended in this step
        self._field_count = 0
        self._is_in_message = False
        self._is_head_whole = False
        self._is_refused = False

    # uvicorn declares this type too: a TCP server has no other transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()
        most = self.max_connections or connections_within(
            resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        )
        if len(self.connections) <= most:
            return
        longest = next(iter(self._waiting))
        if longest is not self:
            longest._leave()
        else:
            self._refuse(503, "too_many_connections", f"{most} connections are open; try again")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass the data to the parser in steps, with a check of the limits after each."""
        for start in range(0, len(data), STEP_BYTES):
            if self._is_refused or self.transport.is_closing():
                return
            step = data[start : start + STEP_BYTES]
            self._has_advanced = False
            super().data_received(step)
            # Exact to one step: where a message begins within a step is not known.
            self._overhead = 0 if self._has_advanced else self._overhead + len(step)
            size = self._overhead if self._is_in_message else 0
            problem = self.head_limits.problem(size=size, fields=self._field_count)
            if problem:
                self._refuse(431, "headers_too_large", problem)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_message = self._has_advanced = True
        self._is_head_whole = False
        self._field_count = 0
        self._wait()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._field_count += 1
        # uvicorn would add the trailers of a body to the headers, behind a proxy's back: a proxy
        # that checks or removes a header does not look for it there.
        if self._field_count <= self.head_limits.max_fields and not self._is_head_whole:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_head_whole = True
        if self._field_count <= self.head_limits.max_fields:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._has_advanced = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._is_in_message = False
        self._has_advanced = True
        self._stop_waiting()
        if self._field_count <= self.head_limits.max_fields:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._is_in_message:
            self._wait()
        elif self.cycle.response_complete:
            self._wait(self.idle_seconds)

    def _should_upgrade(self) -> bool:
        """Speak HTTP/1.1 alone: a wish for another protocol is ignored, as its standard allows."""
        return False

    def _unsupported_upgrade_warning(self) -> None:
        """Log nothing: any client could fill the log with such wishes."""

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "malformed_request", "this is not an HTTP request")

    def _wait(self, seconds: float | None = None) -> None:
        """Start the time limit for the client's next bytes; None: that of a request under way."""
        self._stop_waiting()
        self._waiting[self] = None
        seconds = self.stalled_seconds if seconds is None else seconds
        self._timer = self.loop.call_later(seconds, self._tell_stalled)

    def _stop_waiting(self) -> None:
        self._waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell_stalled(self) -> None:
        """Close a connection with an incomplete head; the application checks its own bodies."""
        self._timer = None
        is_in_body = self._is_in_message and "method" in self.scope
        if not self._is_in_message:
            self._leave()
        elif not is_in_body:
            why = f"the head was not complete after {self.stalled_seconds:g} seconds"
            self._refuse(408, "request_timeout", f"{why} (AUTOPACK_STALLED_SECONDS)")
        elif self._is_answering:
            self._wait()
        else:
            self._leave()

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer without the application, and close the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        self._stop_waiting()
        if self._is_answering:
            self.transport.close()  # another answer is under way
            return
        headers = {"Connection": "close", **SECURITY_HEADERS}
        answer = problem_response(status, code, detail, headers=headers)
        lines = b"".join(b"%b: %b\r\n" % field for field in answer.raw_headers)
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], lines, bytes(answer.body)))
        if status == 503:  # too many are open: this idle one is closed
            self.transport.close()
        else:
            self.loop.call_later(LINGER_SECONDS, self.transport.close)

    @property
    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return cycle is not None and not cycle.response_complete

    def _leave(self) -> None:
        self._stop_waiting()
        self.transport.close()


def _waiting_of(state: ServerState) -> dict[WireProtocol, None]:
    """Return the waiting connections of a server, shared by all its connections."""
    waiting: dict[WireProtocol, None] = state.__dict__.setdefault("autopack_waiting", {})
    return waiting


def protocol_with(
    *,
    head_limits: HeadLimits,
    stalled_seconds: float,
    max_connections: int | None,
    idle_seconds: float = IDLE_SECONDS,
) -> type[WireProtocol]:
    """Return the protocol class with these limits."""

    class Configured(WireProtocol):
        pass

    Configured.head_limits = head_limits
    Configured.stalled_seconds = stalled_seconds
    Configured.max_connections = max_connections
    Configured.idle_seconds = idle_seconds
    return Configured
