"""The server of a service: the whole of a service with one process, or one of several processes.

`python -P -m autopack.cli.answering LISTENER LINK` is one of several (processes.py). LINK is a
socket to the service's first process, from which the settings come, and whose end means its end.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import uvicorn

from ..config import Settings
from ..gitrepo.errors import RepositoryUnusableError
from ..migrating import DatabaseError
from .command import FINE, NO, WRONG_USE, importing
from .signals import leave_on_signals
from .terminal import print_any_text, say

# Without a limit, open streams would keep a stopping server waiting forever.
GRACEFUL_SECONDS: Final = 5
# Connections that wait until a process takes them.
BACKLOG: Final = 2048
READY: Final = b"ready"


@dataclass(frozen=True)
class Answering:
    """What a process needs to answer requests; `is_answering_only` as in `create_app`."""

    settings: Settings
    url: str
    is_answering_only: bool


def answer(
    given: Answering, stack: ExitStack, listener: socket.socket, on_started: Callable[[], None]
) -> bool:
    """Answer requests until a signal comes; return whether it could start.

    Raises DatabaseError, and UnavailableError for a repository or folders that cannot be used.
    """
    settings = given.settings
    # Here, so that wrong settings are shown without this slow import.
    with importing():
        from ..contexts import as_node, open_context
        from ..main import create_app, wire_protocol

    # The application could do this too; here, so that an error is shown as one line.
    context = stack.enter_context(open_context(settings))
    context = stack.enter_context(as_node(context, address=given.url))
    context.mirror.prepare()
    server = _Server(
        uvicorn.Config(
            create_app(settings, context, is_answering_only=given.is_answering_only),
            http=wire_protocol(settings),
            ws="none",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
            server_header=False,
            # Loopback callers are trusted by their address, so no header may set another one.
            proxy_headers=False,
            # asyncio accepts as many connections at once as this says: the first process that
            # looks would take all that wait, and the others none.
            backlog=1 if given.is_answering_only else BACKLOG,
        ),
        on_started=on_started,
    )
    server.run(sockets=[listener])
    return server.started


class _Server(uvicorn.Server):
    """A uvicorn server that says when it answers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for listener in sockets or ():
                listener.listen(BACKLOG)  # asyncio has set the number that it accepts at once
            self._on_started()


def _main(listener: int, link: int) -> int:
    leave_on_signals()
    print_any_text()
    first = socket.socket(fileno=link)
    try:
        with first.makefile("rb") as sent:
            given = pickle.load(sent)  # noqa: S301 - from the process that started this one
    except (OSError, EOFError, pickle.UnpicklingError):
        return FINE  # that one has ended already
    threading.Thread(target=_leave_with, args=(first,), name="first-process", daemon=True).start()

    def tell_ready() -> None:
        with suppress(OSError):  # it has ended, and so does this one
            first.sendall(READY)

    try:
        with ExitStack() as stack:
            has_started = answer(given, stack, socket.socket(fileno=listener), tell_ready)
    except (DatabaseError, RepositoryUnusableError) as error:
        say(f"autopack: {error}", is_error=True)
        return WRONG_USE
    return FINE if has_started else NO


def _leave_with(first: socket.socket) -> None:
    """Stop when the service's first process has ended, however it did."""
    with suppress(OSError):
        first.recv(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(_main(int(sys.argv[1]), int(sys.argv[2])))
