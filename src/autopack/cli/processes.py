"""Several processes that answer the requests of one service. (docs/operations.md)

Python runs one thread at a time, so that one process uses little more than one processor. They
share the listener, and are processes of one node (docs/replicas.md). The first one answers nothing:
it does the background work, and replaces a process that ended.
"""

from __future__ import annotations

import os
import pickle
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from prometheus_client import multiprocess

from .answering import GRACEFUL_SECONDS, READY, Answering
from .terminal import say

#: The folder where the processes count requests together.
COUNTS: Final = "PROMETHEUS_MULTIPROC_DIR"
# One that ends at once is not started anew in a loop without a pause.
PAUSE_SECONDS: Final = 1.0
# Beyond the time that the server gives to open requests.
ENDING_SECONDS: Final = GRACEFUL_SECONDS + 10


class ProcessEndedError(Exception):
    """A process ended before it could answer."""


class _Process:
    """A process that answers, and the link to it."""

    def __init__(self, given: Answering, listener: socket.socket, counts: Path) -> None:
        self._counts = counts
        self.link, theirs = socket.socketpair()
        with theirs:
            numbers = (listener.fileno(), theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autopack.cli.answering", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                env={**os.environ, COUNTS: str(counts)},
            )
        with suppress(OSError):  # it has ended, which its link tells next
            self.link.sendall(pickle.dumps(given))

    def is_ready(self) -> bool:
        """Wait until it answers; return False if it ended instead."""
        with suppress(OSError):
            return self.link.recv(len(READY)) == READY
        return False

    def ask_to_end(self) -> None:
        with suppress(ProcessLookupError):
            self._process.terminate()

    def end(self, seconds: float) -> int:
        """Wait for its end, kill it when the time is over, and return its exit code."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.link.close()
        # Its open requests count no more; what it has answered does.
        multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]
            self._process.pid, str(self._counts)
        )
        return self._process.returncode


@contextmanager
def answering_processes(
    given: Answering, count: int, listener: socket.socket
) -> Iterator[_Processes]:
    """Start so many processes, of which each answers when the `with` block begins.

    Raises ProcessEndedError.
    """
    with tempfile.TemporaryDirectory(prefix="autopack-counts-") as folder:
        processes = _Processes(given, listener, Path(folder))
        try:
            processes.start(count)
            yield processes
        finally:
            processes.end()


class _Processes:
    def __init__(self, given: Answering, listener: socket.socket, counts: Path) -> None:
        self._given = given
        self._listener = listener
        self._counts = counts
        self._running: list[_Process] = []

    def start(self, count: int) -> None:
        for _ in range(count):
            self._begin()
        if not all([process.is_ready() for process in self._running]):
            raise ProcessEndedError("a process of the service could not start: see above")

    def keep_running(self) -> None:
        """Replace each process that ends, until a signal interrupts this."""
        while True:
            for ended in self._wait():
                self._running.remove(ended)
                code = ended.end(ENDING_SECONDS)
                say(
                    f"autopack: a process of the service ended ({code}); another one is started",
                    is_error=True,
                    is_now=True,
                )
                time.sleep(PAUSE_SECONDS)
                self._begin()

    def end(self) -> None:
        """End all together, so that the longest wait is that of one."""
        for process in self._running:
            process.ask_to_end()
        deadline = time.monotonic() + ENDING_SECONDS
        for process in self._running:
            process.end(max(0.0, deadline - time.monotonic()))

    def _begin(self) -> None:
        self._running.append(_Process(self._given, self._listener, self._counts))

    def _wait(self) -> list[_Process]:
        """Wait until the link of a process says that it has ended."""
        with selectors.DefaultSelector() as selector:
            for process in self._running:
                selector.register(process.link, selectors.EVENT_READ, process)
            found = [key.data for key, _ in selector.select()]
        return [process for process in found if not process.is_ready()]
