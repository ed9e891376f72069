"""How a command that runs until it is told to stop is told so."""

from __future__ import annotations

import signal
import sys


def leave_on_signals() -> None:
    """Leave through every `finally`, so that the embedded Postgres stops too.

    The default would end the process on the spot; uvicorn raises the signal again when it is done.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    # A closed terminal, unless nohup said to go on without one.
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(0 if number == signal.SIGTERM else 128 + number)
