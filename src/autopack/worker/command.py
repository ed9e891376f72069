"""A running command of an agent: its prompt, its last output, its end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from . import guard

GRACE_SECONDS = 10.0
TAIL_BYTES = 1_000_000  # known agents print all their steps as JSON, and the usage last
_DRAINING_SECONDS = 2.0
_SET_DUMPABLE = 4  # PR_SET_DUMPABLE of prctl(2)
# The agent needs its own keys, not the service's; and git must find the work tree by itself.
_WITHHELD = ("AUTOPACK_", "GIT_", "DATABASE_URL", "AUTONOMOUS_RUNS_DIR")


def agent_environment(inherited: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of an agent's command: the worker's, without the service's variables.

    Variables for the service or the worker may contain credentials, such as DATABASE_URL.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(_WITHHELD)}
    return {**kept, **ours}


def hide_from_other_processes() -> None:
    """Keep the environment and the memory of this process from others of the same user.

    The kernel then lets only root read /proc/PID/environ and /proc/PID/mem, and writes no core
    dump. A process that this one starts is not hidden. Linux alone has this.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_DUMPABLE, 0, 0, 0, 0)


class AgentCommand:
    """A command under a guard, which ends it when the worker ends. `on_end` is called at its end.

    The guard keeps `lock` open too, so the folder stays locked until the last process in it ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        prompt: Path,
        lock: int,
        on_end: Callable[[], None],
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self._on_end = on_end
        reading, self._control = os.pipe()
        try:
            with prompt.open("rb") as stdin:
                self._process = subprocess.Popen(
                    [
                        sys.executable,
                        "-P",
                        guard.__file__,
                        str(reading),
                        str(grace_seconds),
                        *command,
                    ],
                    cwd=folder,
                    env=dict(environment),
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=(reading, lock),
                    start_new_session=True,  # Ctrl-C goes to the worker, which then stops the guard
                )
        except BaseException:
            os.close(self._control)
            raise
        finally:
            os.close(reading)
        self._stdout = _Tail(self._process.stdout)
        self._stderr = _Tail(self._process.stderr)
        threading.Thread(target=self._await_end, daemon=True).start()

    def stop(self) -> None:
        """Request the end of the command and all its processes; `on_end` is called after that."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def finish(self) -> int:
        """Stop the command if it runs; return its exit code, 128 + n for a signal n."""
        self.stop()
        return self._process.wait()

    @property
    def stdout(self) -> str:
        """The end of what the command wrote there."""
        return self._stdout.text

    @property
    def stderr(self) -> str:
        """The end of what the command wrote there."""
        return self._stderr.text

    def _await_end(self) -> None:
        self._process.wait()
        for tail in (self._stdout, self._stderr):
            tail.join()
        self._on_end()


class _Tail:
    """Reads a stream while it is written, and keeps its end."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        assert stream is not None  # noqa: S101 - for the type checker
        self._stream = stream
        self._kept = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def text(self) -> str:
        return bytes(self._kept).decode(errors="replace")

    def join(self) -> None:
        # A process that escaped the guard may keep the stream open forever.
        self._reader.join(_DRAINING_SECONDS)

    def _read(self) -> None:
        with self._stream:
            while part := os.read(self._stream.fileno(), 65_536):
                self._kept += part
                del self._kept[:-TAIL_BYTES]
