"""Processes of another command, which end with it, also if it is killed.

Run as a script, it becomes the program: `child.py PARENT PROGRAM…` asks the kernel to send SIGTERM
to it at the parent's end, and then executes the program in its place. Only Linux can do that; on
other systems a program outlives a parent that was ended by SIGKILL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, Final

_SET_PDEATHSIG: Final = 1


class Child:
    """A command of Autopack in its own session, so that Ctrl-C does not reach it."""

    def __init__(self, words: Sequence[str], *, stdout: int | IO[bytes], stderr: IO[bytes]) -> None:
        program = [sys.executable, "-P", "-m", "autopack", *words]
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(os.getpid()), *program],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def stop(self, seconds: float) -> None:
        """Ask it to end, and wait; kill it when the time is over."""
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            self.process.wait()

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


def _main(parent: int, program: list[str]) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() == parent:  # else it has ended before
        os.execv(program[0], program)  # noqa: S606 - no shell: the program is this Python


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2:])
