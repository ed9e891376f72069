"""How signals stop a command that runs until it is stopped."""

from __future__ import annotations

import signal
import sys


def leave_on_signals() -> None:
    """Exit through every `finally`, so that the embedded Postgres stops too.

    The default action would end the process at once. uvicorn raises the signal again when it is
    done.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    # A closed terminal, unless nohup is used to run without one.
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))


def _exit(number: int, _frame: object) -> None:
    raise SystemExit(0 if number == signal.SIGTERM else 128 + number)
