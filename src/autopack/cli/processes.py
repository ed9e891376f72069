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
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
from prometheus_client import multiprocess

from ..gitrepo.repository import Repository
from .answering import GRACEFUL_SECONDS, READY, Answering

logger = structlog.get_logger(__name__)

#: The folder where the processes count requests together. prometheus_client reads it.
COUNTS: Final = "PROMETHEUS_MULTIPROC_DIR"
# The least time from one start to the next one in its place, as a process may end at its start.
PAUSE_SECONDS: Final = 1.0
# Beyond the time that the server gives to open requests.
ENDING_SECONDS: Final = GRACEFUL_SECONDS + 10


class ProcessEndedError(Exception):
    """A process ended before it could answer."""


class _Process:
    """A process that answers, and the link to it."""

    def __init__(self, given: Answering, listener: socket.socket, counts: Path) -> None:
        """Start it. Raises OSError."""
        self.began_at = time.monotonic()
        self._counts = counts
        self.link, theirs = socket.socketpair()
        with theirs:
            numbers = (listener.fileno(), theirs.fileno())
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "autopack.cli.answering", *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                env={**os.environ, COUNTS: str(counts)},
                start_new_session=True,  # so that Ctrl-C reaches the first process alone
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

    def kill(self) -> None:
        self._process.kill()

    def end(self, seconds: float) -> int:
        """Wait for its end, kill it when the time is over, and return its exit code."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()
        self.link.close()
        # Its open requests count no more; what it has answered does.
        multiprocess.mark_process_dead(  # type: ignore[no-untyped-call]  # it has no types
            self._process.pid, str(self._counts)
        )
        return self._process.returncode


@contextmanager
def answering_processes(
    given: Answering, count: int, listener: socket.socket, repository: Repository
) -> Iterator[_Processes]:
    """Start so many processes, of which each answers when the `with` block begins.

    Raises ProcessEndedError, StorageError.
    """
    with repository.scratch_folder("counts-") as folder:
        processes = _Processes(given, listener, folder)
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
        """Start so many, and wait until all answer. Raises ProcessEndedError."""
        try:
            for _ in range(count):
                self._begin()
        except OSError as error:
            raise ProcessEndedError(f"a process of the service could not start: {error}") from error
        if not all([process.is_ready() for process in self._running]):
            raise ProcessEndedError("a process of the service could not start: see above")

    def keep_running(self) -> None:
        """Replace each process that ends, until a signal interrupts this."""
        while True:
            for ended in self._wait():
                code = ended.end(ENDING_SECONDS)
                self._running.remove(ended)
                logger.warning("process_ended", exit_code=code)
                time.sleep(max(0.0, ended.began_at + PAUSE_SECONDS - time.monotonic()))
                self._replace()

    def end(self) -> None:
        """End all together, so that the longest wait is that of one."""
        for process in self._running:
            process.ask_to_end()
        deadline = time.monotonic() + ENDING_SECONDS
        try:
            for process in self._running:
                process.end(max(0.0, deadline - time.monotonic()))
        except BaseException:  # a second signal
            for process in self._running:
                process.kill()
            for process in self._running:
                process.end(0)
            raise

    def _replace(self) -> None:
        """Start another process, as soon as the machine has what that needs."""
        while True:
            try:
                self._begin()
            except OSError as error:
                logger.error("process_not_started", why=str(error))
                time.sleep(PAUSE_SECONDS)
            else:
                return

    def _begin(self) -> None:
        self._running.append(_Process(self._given, self._listener, self._counts))

    def _wait(self) -> list[_Process]:
        """Wait until the link of a process says that it has ended."""
        with selectors.PollSelector() as selector:  # needs no descriptor, which may be short
            for process in self._running:
                selector.register(process.link, selectors.EVENT_READ, process)
            found = [key.data for key, _ in selector.select()]
        return [process for process in found if not process.is_ready()]
