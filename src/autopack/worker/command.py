"""An agent's command at work: its prompt, its last output, its end."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from . import guard

GRACE_SECONDS = 10.0
TAIL_BYTES = 1_000_000  # known agents print all that they did as JSON, and what it took
_DRAINING_SECONDS = 2.0
# The agent needs its keys, not the service's; and git is to find the work tree by itself.
_WITHHELD = ("AUTOPACK_", "GIT_", "DATABASE_URL", "AUTONOMOUS_RUNS_DIR")


def agent_environment(inherited: Mapping[str, str], ours: Mapping[str, str]) -> dict[str, str]:
    """Return what an agent's command gets to know: the worker's environment without the service's.

    What a caller sets for the service or the worker may hold credentials, such as DATABASE_URL.
    """
    kept = {name: value for name, value in inherited.items() if not name.startswith(_WITHHELD)}
    return {**kept, **ours}


class AgentCommand:
    """A command that runs under a guard, which ends it when we do. `on_end` is called at its end.

    The guard holds `lock` open too: what it locks is free once nobody is at work there.
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
                    start_new_session=True,  # Ctrl-C is for the worker, which then stops this
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
        """Ask for the end of the command and of all that it started; `on_end` tells when."""
        if self._control >= 0:
            os.close(self._control)
            self._control = -1

    def finish(self) -> int:
        """Stop it if it runs; return its exit code, 128 + n for a signal n."""
        self.stop()
        return self._process.wait()

    @property
    def stdout(self) -> str:
        """The last of what it wrote there."""
        return self._stdout.text

    @property
    def stderr(self) -> str:
        """The last of what it wrote there."""
        return self._stderr.text

    def _await_end(self) -> None:
        self._process.wait()
        for tail in (self._stdout, self._stderr):
            tail.join()
        self._on_end()


class _Tail:
    """Reads a stream as it comes and keeps the last of it."""

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
        # Who slipped away from the guard may hold the stream open for ever.
        self._reader.join(_DRAINING_SECONDS)

    def _read(self) -> None:
        with self._stream:
            while part := os.read(self._stream.fileno(), 65_536):
                self._kept += part
                del self._kept[:-TAIL_BYTES]
