"""Every git process passes here: an explicit folder, a clean environment, limits, typed errors."""

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
from typing import TYPE_CHECKING

from .errors import GitFailedError, GitTimeoutError, PatchTooLargeError

if TYPE_CHECKING:
    from git import Git
if sys.platform != "win32":
    import resource

# No configuration but this reaches a git process that works in our own git dir. In the user's git
# dir (moving refs) it overrides what stands there.
_CONFIG = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.protectHFS": "true",
    "core.protectNTFS": "true",
    "core.logAllRefUpdates": "false",  # Postgres keeps every head; a reflog wants an identity
    "core.fsync": "reference",
    "core.filesRefLockTimeout": "500",
    "gc.auto": "0",
    "protocol.allow": "never",
    # Packs are mapped in pieces, so that one larger than the memory limit can be read.
    "core.packedGitWindowSize": "32m",
}
_OPTIONS = [word for name, value in _CONFIG.items() for word in ("-c", f"{name}={value}")]
_ENVIRONMENT = {
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
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+(?=@)")


@dataclass(frozen=True, slots=True)
class GitResult:
    status: int
    stdout: bytes
    stderr: str  # cleaned of credentials


@dataclass(frozen=True, slots=True)
class GitRunner:
    """Starts git and nothing else. Holds no state, so any number of threads may share it."""

    executable: str
    timeout_seconds: float
    memory_bytes: int

    def run(
        self,
        *arguments: str,
        folder: Path,
        environment: Mapping[str, str],
        stdin: bytes = b"",
        allowed: Collection[int] = (0,),
    ) -> GitResult:
        """Run git to its end.

        Raises GitTimeoutError, PatchTooLargeError when it passed its memory, and GitFailedError
        when it ends with a status that is not `allowed`.
        """
        process = self.start(*arguments, folder=folder, environment=environment)
        try:
            stdout, stderr_bytes = process.communicate(stdin, self.timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise self.timed_out(arguments[0]) from None
        except BaseException:
            process.kill()
            process.wait()
            raise
        stderr = redact(stderr_bytes)
        status = process.returncode
        if status == -getattr(signal, "SIGXCPU", 0):
            raise self.timed_out(arguments[0])
        if status not in allowed:
            if "ut of memory" in stderr:
                raise PatchTooLargeError(
                    f"git {arguments[0]} would need more than {self.memory_bytes} bytes of memory"
                    " (AUTOPACK_GIT_MEMORY_BYTES)."
                )
            raise GitFailedError(
                f"git {arguments[0]} ended with status {status}: {stderr.strip()[:2000]}"
            )
        return GitResult(status, stdout, stderr)

    def start(
        self, *arguments: str, folder: Path, environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Start git with pipes on all three streams; the caller ends it.

        GitPython's `Git` does the spawning, and only that: its own `kill_after_timeout` would
        start `ps` beside every process, and its check of options is no protection.
        """
        # GitPython copies os.environ and can only add to it; what must go (a service started from
        # within a git hook has GIT_DIR and more) is taken out by `env`, which others never need.
        ours = {**_ENVIRONMENT, **environment}
        foreign = [name for name in os.environ if name.startswith("GIT_") and name not in ours]
        unset = ["env", *(word for name in foreign for word in ("-u", name))] if foreign else []
        handle = _git(folder).execute(
            [*unset, self.executable, *_OPTIONS, *arguments],
            env=ours,
            istream=subprocess.PIPE,
            as_process=True,
        )
        process: subprocess.Popen[bytes] = handle.proc  # type: ignore[assignment]
        handle.proc = None  # else the handle would end the process when it is freed
        self._limit(process.pid)
        return process

    def _limit(self, pid: int) -> None:
        """Bound what the process may take, also should this service die before it.

        From outside and right after the start: `preexec_fn` is unsafe beside threads, and a shell
        with `ulimit` in between costs half a millisecond. Data, not address space: git maps packs
        that may be larger than the limit, and mapping a file costs no memory.
        """
        if sys.platform == "linux":
            seconds = int(self.timeout_seconds) + 1
            with suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_DATA, (self.memory_bytes,) * 2)
                resource.prlimit(pid, resource.RLIMIT_CPU, (seconds, seconds + 1))

    def timed_out(self, command: str) -> GitTimeoutError:
        return GitTimeoutError(
            f"git {command} did not end within {self.timeout_seconds:g} seconds and was stopped"
            " (AUTOPACK_GIT_TIMEOUT_SECONDS)."
        )


def redact(output: bytes) -> str:
    """git's own words as text that may go into logs and answers."""
    return _CREDENTIALS.sub("***", output.decode(errors="backslashreplace"))


def _git(folder: Path) -> Git:
    # Imported when first used: GitPython runs git while it is imported, and fails when there is
    # none, whereas `Repository.open` can say what to do about it.
    from git import Git

    return Git(folder)
