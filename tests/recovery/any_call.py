"""Becomes a process that answers beside a service, and may kill itself after any of its calls.

The fork server runs this instead of a command. It prints its address when it answers. KILL_AFTER
says after how many calls of the system, by the threads that carry out requests, it is to die; 0:
never. Each of these calls adds a byte to the file that CALLS names.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from types import FrameType

from tests.dying import is_outside

from autopack.cli.answering import Answering, answer
from autopack.cli.signals import leave_on_signals
from autopack.cli.terminal import say
from autopack.config import load_settings


class Calls:
    """What is seen outside of this process, since it answers."""

    def __init__(self, file: int, last: int) -> None:
        self._file = file
        self._last = last
        self._made = 0
        self.is_counting = False

    def note(self, frame: FrameType, event: str, function: object) -> None:
        if (
            event == "c_return"
            and self.is_counting
            and is_outside(function)
            and "worker" in threading.current_thread().name  # not that of the event loop
        ):
            os.write(self._file, b".")
            self._made += 1
            if self._made == self._last:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    leave_on_signals()
    file = os.open(os.environ["CALLS"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    calls = Calls(file, int(os.environ["KILL_AFTER"]))
    threading.setprofile(calls.note)
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"

    def tell() -> None:
        calls.is_counting = True
        say(f"answers at {url}", is_now=True)

    with ExitStack() as stack:
        given = Answering(load_settings(), url, is_answering_only=True)
        answer(given, stack, listener, tell)


if __name__ == "__main__":
    main()
    sys.exit()
