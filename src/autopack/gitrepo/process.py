"""Starts every git process: with an explicit folder, a clean environment, limits, typed errors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import GitFailedError, GitTimeoutError, PatchTooLargeError, StorageError

if sys.platform != "win32":
    import resource

# The only configuration of a git process in the service's own git directory. In the user's git
# directory (to push, and to restore refs) it overrides the configuration there.
_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.logAllRefUpdates": "false",  # Postgres stores every head; a reflog would need an identity
    "core.fsync": "reference",
    "core.filesRefLockTimeout": "500",
    "gc.auto": "0",
    "maintenance.auto": "false",  # else each fetch starts a process that finds nothing to do
    "protocol.allow": "never",
    # Packs are mapped in pieces, so that one larger than the memory limit can be read.
    "core.packedGitWindowSize": "32m",
}
_OPTIONS = [word for name, value in _CONFIG.items() for word in ("-c", f"{name}={value}")]
_ENVIRONMENT = {
    "PATH": os.defpath,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_AUTHOR_NAME": "Autopack",
    "GIT_AUTHOR_EMAIL": "autopack@localhost",
    "GIT_COMMITTER_NAME": "Autopack",
    "GIT_COMMITTER_EMAIL": "autopack@localhost",
    "HOME": os.devnull,  # no ~/.config/git/attributes either
    "XDG_CONFIG_HOME": os.devnull,
    "LC_ALL": "C",
}
_GRACE_SECONDS = 5
# git's messages for a full disk. Its exit status is then that of an unreadable patch.
_NO_ROOM = re.compile(
    r"(^|: )(No space left on device|Disk quota exceeded|File too large|Read-only file system"
    r"|Input/output error)$|^(fatal|error): [Uu]nable to write new index file"
    r"|: couldn't write '[^']*\.lock'$",
    re.MULTILINE,
)
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class GitResult:
    status: int
    stdout: bytes
    stderr: str  # cleaned of credentials


class GitProcess(subprocess.Popen[bytes]):
    """A process of git with pipes on all three streams."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end without a limit: with a timeout, Popen polls and sleeps milliseconds.

        `communicate` calls this after the pipes are closed, when git is about to end.
        """
        return super().wait()


@dataclass(frozen=True, slots=True)
class GitRunner:
    """Starts git processes. Has no state, so any number of threads may share it."""

    executable: str
    timeout_seconds: float
    memory_bytes: int
    timeout_setting: str = "AUTOPACK_GIT_TIMEOUT_SECONDS"
    # For commands that start other processes (ssh, git-remote-https): these are stopped too, since
    # they would keep the pipes open.
    has_own_group: bool = False

    def run(
        self,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        allowed: Collection[int] = (0,),
    ) -> GitResult:
        """Run git to its end.

        Raises GitTimeoutError, PatchTooLargeError when it passed its memory limit, and
        GitFailedError when it ends with a status that is not `allowed`.
        """
        process = self.start(*arguments, folder=folder, environment=environment)
        stdout, stderr = self.finish(process, arguments[0], stdin)
        status = process.returncode
        if status and "ut of memory" in stderr:
            raise PatchTooLargeError(
                f"git {arguments[0]} would need more than {self.memory_bytes} bytes of memory"
                " (AUTOPACK_GIT_MEMORY_BYTES)."
            )
        if status:
            self.require_room(stderr, arguments[0], folder)
        if status not in allowed:
            raise GitFailedError(
                f"git {arguments[0]} ended with status {status}: {stderr.strip()[:2000]}"
            )
        return GitResult(status, stdout, stderr)

    def require_room(self, stderr: str, command: str, folder: Path) -> None:
        """Raise StorageError if a full disk ended the process."""
        if _NO_ROOM.search(stderr.strip()):
            raise StorageError(
                f"git {command} cannot write in {folder}: {stderr.strip()[-500:]}."
                " Free some space, then try again."
            )

    def finish(
        self, process: subprocess.Popen[bytes], command: str, stdin: bytes = b""
    ) -> tuple[bytes, str]:
        """Wait for a process's end; return its output and its messages. Raises GitTimeoutError."""
        try:
            stdout, stderr = process.communicate(stdin, self.timeout_seconds)
        except subprocess.TimeoutExpired:
            self.stop(process)
            try:
                process.communicate(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                self.stop(process, signal.SIGKILL)  # without this, the caller would wait forever
                process.communicate()
            raise self.timed_out(command) from None
        finally:
            process.kill()  # it only runs still if an exception was raised here
        if process.returncode == -signal.SIGXCPU:
            raise self.timed_out(command)
        return stdout, redact(stderr)

    def start(self, *arguments: str, folder: Path, environment: Mapping[str, str]) -> GitProcess:
        """Start git; `finish` ends it."""
        # Not through GitPython: it passes the service's whole environment on and can only add to
        # it, so GIT_* could not be removed, and it cannot set limits.
        process = GitProcess(
            [self.executable, *_OPTIONS, *arguments],
            cwd=folder,
            env={**_ENVIRONMENT, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0 if self.has_own_group else None,
        )
        self._limit(process.pid)
        return process

    def stop(
        self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM
    ) -> None:
        """Send a signal to a process that still runs; after SIGTERM git removes its locks."""
        if self.has_own_group:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
        else:
            process.send_signal(number)

    def _limit(self, pid: int) -> None:
        """Limit the process's resources, so that the limit holds also if the service dies first.

        Set from outside, right after the start: `preexec_fn` is unsafe with threads, and a shell
        with `ulimit` costs half a millisecond. It limits data, not address space: git maps packs
        that may be larger than the limit, and a mapped file needs no memory.
        """
        if sys.platform == "linux":
            seconds = int(self.timeout_seconds) + 1
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_DATA, (self.memory_bytes,) * 2)
                resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + 1))

    def timed_out(self, command: str) -> GitTimeoutError:
        return GitTimeoutError(
            f"git {command} did not end within {self.timeout_seconds:g} seconds and was stopped"
            f" ({self.timeout_setting})."
        )


def redact(output: bytes) -> str:
    """Return git's messages as text without credentials, for logs and answers."""
    return _CREDENTIALS.sub("***", output.decode(errors="backslashreplace"))
