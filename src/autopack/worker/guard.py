"""Runs one command and ends all its processes: a separate script beside the worker.

`guard.py CONTROL GRACE COMMAND…`: CONTROL is a pipe's file descriptor. When its other end closes,
because the worker stops the command or dies, the command is ended, with GRACE seconds between
SIGTERM and SIGKILL. On Linux this process becomes the parent of processes that the command leaves
behind or puts into another session, so that none escapes. Its exit code is the command's, as a
shell reports it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil

_NOT_FOUND, _NOT_RUNNABLE, _BY_SIGNAL = 127, 126, 128
_KILLING_SECONDS = 10.0
_POLL_SECONDS = 0.02
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def main(control: int, grace_seconds: float, command: list[str]) -> int:
    """Run the command until it ends or the control pipe closes."""
    _process_control(_SET_CHILD_SUBREAPER, 1)
    woken = _wake_on_signals()
    try:
        # This process has no threads, so code between fork and exec is safe.
        process = subprocess.Popen(command, process_group=0, preexec_fn=_die_with_the_guard)
    except OSError as error:
        sys.stderr.write(f"autopack: {command[0]}: {error.strerror}\n")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_RUNNABLE
    status = None
    while status is None:
        readable, _, _ = select.select([control, woken], [], [])
        if control in readable:
            break
        os.read(woken, 4096)
        status = process.poll()
    _end_all(process, grace_seconds)
    status = process.wait()
    return status if status >= 0 else _BY_SIGNAL - status


def _end_all(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """End the command and all its processes: SIGTERM first, then SIGKILL."""
    deadline = time.monotonic() + grace_seconds
    asked: set[psutil.Process] = set()
    while (left := _family(process)) and time.monotonic() < deadline:
        for other in left:  # each process once, as new ones may start meanwhile
            if other not in asked:
                asked.add(other)
                with suppress(psutil.Error):
                    other.terminate()
        time.sleep(_POLL_SECONDS)
    deadline = time.monotonic() + _KILLING_SECONDS
    while (left := _family(process)) and time.monotonic() < deadline:
        for other in left:  # repeatedly, as each may have started another
            with suppress(psutil.Error):
                other.kill()
        time.sleep(_POLL_SECONDS)


def _family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Return the command's processes that still run; reap those that ended."""
    process.poll()
    found = []
    for other in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, ChildProcessError):
            if other.status() != psutil.STATUS_ZOMBIE:
                found.append(other)
            elif other.pid != process.pid and other.ppid() == os.getpid():
                os.waitpid(other.pid, os.WNOHANG)
    return found


def _wake_on_signals() -> int:
    """Return a pipe that becomes readable when a child ends or a stop signal arrives."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reading


def _die_with_the_guard() -> None:
    _process_control(_SET_PDEATHSIG, signal.SIGKILL)


def _process_control(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
