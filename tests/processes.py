"""Processes of the command line that start in a moment, by `fork_server.py`."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil
from tests.waiting import PATIENCE_SECONDS

TESTS = Path(__file__).resolve().parent


class ForkedProcess:
    """A process as `subprocess.Popen` has it. Its parent is the server that forked it."""

    def __init__(self, connection: socket.socket, output: IO[str], errors: IO[str]) -> None:
        self._connection = connection
        self._answers = connection.makefile("r")
        self._outputs = (output, errors)
        self.returncode: int | None = None
        self.pid = int(self._answers.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("autopack", timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end, and return what it has printed."""
        self.wait(timeout)
        texts = []
        for file in self._outputs:
            if not file.closed and file.readable():
                file.seek(0)
                texts.append(file.read())
                file.close()
            else:
                texts.append("")
        return texts[0], texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended, and the server has not told yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@dataclass(frozen=True)
class ForkServer:
    """Starts `autopack` commands without the seconds that a fresh process needs to import them."""

    address: str

    def start(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str],
        output: IO[str] | None = None,
        first: Path | None = None,
    ) -> ForkedProcess:
        """Start a command in a folder with no other environment than this.

        It prints into the given file, or else into two of its own (`communicate`). `first` is a
        program that its process runs before the command.
        """
        files = (output, output) if output else (_file(), _file())
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        request = {
            "words": words,
            "folder": str(folder),
            "environment": dict(environment),
            "first": str(first or ""),
        }
        with open(os.devnull) as nothing:
            descriptors = [nothing.fileno(), *(file.fileno() for file in files)]
            line = json.dumps(request).encode() + b"\n"
            sent = socket.send_fds(connection, [line], descriptors)
            connection.sendall(line[sent:])
            return ForkedProcess(connection, *files)

    def run(
        self,
        *words: str,
        folder: Path,
        environment: Mapping[str, str],
        first: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        process = self.start(*words, folder=folder, environment=environment, first=first)
        output, errors = process.communicate(PATIENCE_SECONDS)
        return subprocess.CompletedProcess(words, process.wait(), output, errors)


def answering(first: int) -> list[psutil.Process]:
    """Return the processes that answer for a service, beside the first one."""
    found = []
    for child in psutil.Process(first).children():
        with suppress(psutil.Error):  # it has ended
            if "autopack.cli.answering" in child.cmdline():
                found.append(child)
    return found


def _file() -> IO[str]:
    return tempfile.TemporaryFile("w+")


@contextmanager
def running_fork_server() -> Iterator[ForkServer]:
    """Start a fork server. It listens at once: what is asked for while it imports has to wait."""
    # Not below pytest's folder: the path of a Unix socket has at most 107 bytes.
    with (
        tempfile.TemporaryDirectory(prefix="autopack-fork-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        address = f"{folder}/socket"
        listener.bind(address)
        listener.listen()
        root = TESTS.parent
        process = subprocess.Popen(
            [sys.executable, TESTS / "fork_server.py", str(listener.fileno())],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{root / 'src'}:{root}"},
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
        )
        listener.close()  # so that a client of a server that has died gets an error
        try:
            yield ForkServer(address)
        finally:
            process.communicate()
