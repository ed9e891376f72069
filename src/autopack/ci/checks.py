"""One run of a CI command: start it, watch it, end all its processes, and return its verdict."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from io import RawIOBase
from pathlib import Path
from typing import Final

from ..config import Settings
from ..domain.errors import AutopackError
from ..domain.evidence_rules import CaseState
from ..domain.listing import listed
from ..domain.results import CheckCounts
from ..domain.secret_rules import redact
from ..domain.terms import CiProfile, Sandbox, Verdict
from . import usage
from .junit import MAX_CASES, Marks, ReportError, TestCounts, count_tests, mark_reports
from .sandbox import OBJECTS, Bubblewrap, ProcessLimits, Start
from .usage import UnmeasurableError

WATCH_SECONDS: Final = 0.25
# A slow measurement is repeated so rarely that it takes at most a sixth of the time.
SLOW_SHARE: Final = 5
END_SECONDS: Final = 10
CHUNK: Final = 65_536
MAX_LINE: Final = 500
PREFLIGHT: Final = "preflight: "  # how the lines of scripts/preflight_gate.sh begin
PREFLIGHT_LINES: Final = 3
# With less than this free, the machine counts as out of disk or memory.
FREE_DISK_BYTES: Final = 128 * 1024 * 1024
FREE_MEMORY_BYTES: Final = 64 * 1024 * 1024
MARKER: Final = "AUTOPACK_CI_RUN"
_CANNOT_START: Final = (126, 127)


class StoppedError(Exception):
    """The CI run was ended from outside, so it has no verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to run: a shell command in a work tree whose history is in `objects`."""

    tree: Path
    objects: Path
    command: str
    timeout_seconds: float
    environment: Mapping[str, str]
    junit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandOutcome:
    """The result of a CI run."""

    verdict: Verdict
    reason: str
    sandbox: Sandbox
    log: bytes = b""
    tests: CheckCounts | None = None
    failing_checks: tuple[str, ...] = ()
    # None: no JUnit report that can be read, or too many tests. (docs/evidence.md)
    cases: Mapping[str, CaseState] | None = None
    # None: the command was stopped, or was not started.
    exit_status: int | None = None
    is_overdue: bool = False
    seconds: float = 0.0

    @classmethod
    def without_checkout(cls, error: Exception, sandbox: Sandbox) -> CommandOutcome:
        """Return that the command did not run, as there is no tree of the commit."""
        why = error.detail if isinstance(error, AutopackError) else str(error)
        reason = f"the commit could not be checked out: {why}"
        return cls(verdict=Verdict.DID_NOT_RUN, reason=reason, sandbox=sandbox)


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a command was ended: it passed its own limit, or the machine ran out of a resource."""

    reason: str
    is_shortage: bool = False


class Log:
    """A command's output: complete, or its beginning and its end."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0

    def add(self, data: bytes) -> None:
        room = self._half - len(self._head)
        self._head += data[:room]
        self._tail += data[room:] if room > 0 else data
        if len(self._tail) > 2 * self._half:
            self._dropped += len(self._tail) - self._half
            del self._tail[: -self._half]

    def content(self) -> bytes:
        dropped = self._dropped + max(0, len(self._tail) - self._half)
        if not dropped:
            return bytes(self._head + self._tail)
        marker = f"\n[… {dropped} bytes left out by AUTOPACK_CI_LOG_BYTES …]\n".encode()
        return bytes(self._head + marker + self._tail[-self._half :])


def environment_for(
    *, profile: CiProfile, run_id: str, phase_id: str, commit: str, attempt: int
) -> dict[str, str]:
    """Return the variables that a command gets beside those of the sandbox. (docs/ci.md)"""
    return {
        "CI": "true",
        "CI_PROFILE": profile,
        "AUTOPACK_RUN_ID": run_id,
        "AUTOPACK_PHASE_ID": phase_id,
        "AUTOPACK_COMMIT": commit,
        "AUTOPACK_CI_ATTEMPT": str(attempt),
    }


class CheckRunner:
    """Runs CI commands on this machine; any number of threads may."""

    def __init__(self, settings: Settings) -> None:
        self._sandbox = Bubblewrap(settings)
        self._is_required = settings.ci_sandbox == "required"
        self._log_bytes = settings.ci_log_bytes
        self._limits = ProcessLimits(
            memory_bytes=settings.ci_memory_bytes,
            disk_bytes=settings.ci_disk_bytes,
            processes=settings.ci_processes,
        )

    @property
    def sandbox(self) -> Sandbox:
        """The kind of sandbox in which commands run here."""
        return Sandbox.BUBBLEWRAP if self.problem is None else Sandbox.NONE

    @property
    def problem(self) -> str | None:
        """Why there is no sandbox here; None if there is one."""
        return self._sandbox.problem

    @property
    def is_refused(self) -> bool:
        """Whether there is no sandbox, and the settings require one."""
        return self._is_required and self._sandbox.problem is not None

    def run(self, job: Job, should_stop: Callable[[], bool]) -> CommandOutcome:
        """Run a command until it ends or passes a limit. Raises StoppedError."""
        if self.is_refused:
            return self._did_not_run(
                f"AUTOPACK_CI_SANDBOX is required, and {self._sandbox.problem}", b""
            )
        try:
            marks = mark_reports(job.tree, job.junit) if job.junit else {}
        except ReportError as error:
            return self._red(str(error), b"", None)
        began = time.monotonic()
        reading, writing = os.pipe()
        try:
            start = self._start(job, writing)
            process = subprocess.Popen(
                start.words,
                cwd=start.folder,
                env=dict(start.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,) if start.is_contained else (),
                start_new_session=True,
            )
        except OSError as error:
            os.close(reading)
            return self._did_not_run(f"the command could not be started: {error}", b"")
        finally:
            os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as report:
            # The first line names the sandbox's first process; without it the sandbox did not
            # start.
            first = _document(_line(report)).get("child-pid") if start.is_contained else None
            watched = _Watched(process, first, start, job, self._limits, Log(self._log_bytes))
            try:
                stopped = watched.run(should_stop)
                shortage = watched.shortage_at_end()  # before its files are removed
            finally:
                watched.end()
            status = _status(report.read(), process, is_contained=start.is_contained)
        if stopped is not None and stopped.is_shortage:
            return self._did_not_run(stopped.reason, watched.log.content())
        outcome = replace(
            self._judge(
                job, marks, stopped.reason if stopped else None, status, watched.log.content()
            ),
            exit_status=None if stopped else status,
            is_overdue=watched.is_overdue,
            seconds=time.monotonic() - began,
        )
        is_own_limit = stopped is not None and not watched.is_overdue
        if outcome.verdict is Verdict.RED and shortage is not None and not is_own_limit:
            # A failure while the machine is out of resources is not a verdict on the commit.
            return self._did_not_run(f"{shortage}: {outcome.reason}", outcome.log)
        return outcome

    def _start(self, job: Job, status: int) -> Start:
        alternates = job.tree / ".git" / "objects" / "info" / "alternates"
        if self._sandbox.problem is not None:
            environment = {**job.environment, MARKER: str(job.tree)}
            return self._sandbox.outside(job.command, job.tree, environment, self._limits)
        if alternates.exists():
            alternates.write_text(f"{OBJECTS}\n")
        return self._sandbox.inside(
            job.command, job.tree, job.objects, job.environment, self._limits, status
        )

    def _judge(
        self, job: Job, marks: Marks, stopped: str | None, status: int | None, log: bytes
    ) -> CommandOutcome:
        counts: TestCounts | None = None
        unread: str | None = None
        if job.junit:
            try:
                counts = count_tests(job.tree, job.junit, marks)
            except ReportError as error:
                unread = str(error)
        if stopped is not None:
            return self._red(stopped, log, counts)
        if status is None:
            return self._did_not_run(f"the sandbox failed: {last_line(log)}", log)
        has_run = counts is not None and counts.passed + counts.failed > 0
        if status in _CANNOT_START and not has_run:
            why = last_line(log) or "the command was not found or is not executable"
            return self._did_not_run(f"{why} (exit {status})", log)
        if status:
            names = _names(counts) or (f": {words}" if (words := last_words(log)) else "")
            return self._red(f"exit {status}{names}", log, counts)
        if unread is not None:
            return self._red(unread, log, counts)
        if counts is not None and (problem := counts.counts().problem):
            which = _names(counts) or f": the reports {job.junit!r} count none"
            return self._red(f"exit 0, but {problem}{which}", log, counts)
        return CommandOutcome(
            verdict=Verdict.GREEN,
            reason="exit 0",
            sandbox=self.sandbox,
            log=log,
            tests=counts.counts() if counts else None,
            cases=_cases(counts),
        )

    def _red(self, reason: str, log: bytes, counts: TestCounts | None) -> CommandOutcome:
        return CommandOutcome(
            verdict=Verdict.RED,
            reason=reason,
            sandbox=self.sandbox,
            log=log,
            tests=counts.counts() if counts else None,
            failing_checks=tuple(counts.failing) if counts else (),
            cases=_cases(counts),
        )

    def _did_not_run(self, reason: str, log: bytes) -> CommandOutcome:
        return CommandOutcome(
            verdict=Verdict.DID_NOT_RUN, reason=reason, sandbox=self.sandbox, log=log
        )


class _Watched:
    """A running command, and every process that it started."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        first: int | None,
        start: Start,
        job: Job,
        limits: ProcessLimits,
        log: Log,
    ) -> None:
        self.log = log
        self._process = process
        self._first_pid = first
        self._first = None
        if first is not None:
            with suppress(OSError):  # it has ended already
                self._first = os.pidfd_open(first)
        self._start = start
        self._job = job
        self._limits = limits
        self._slow_due = 0.0
        self._held_memory = 0
        self._killed_before = usage.killed_for_memory()
        self.is_overdue = False

    def run(self, should_stop: Callable[[], bool]) -> Stop | None:
        """Wait for the end; return why the command was stopped, None if it ended by itself."""
        output = self._process.stdout
        assert output is not None  # noqa: S101 - for the type checker: it is a pipe
        deadline = time.monotonic() + self._job.timeout_seconds
        due = 0.0
        is_open = True
        while is_open or self._process.poll() is None:
            if is_open and _is_ready(output.fileno(), WATCH_SECONDS):
                data = os.read(output.fileno(), CHUNK)
                self.log.add(data)
                is_open = bool(data)
            elif not is_open:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(WATCH_SECONDS)
            now = time.monotonic()
            if self._process.poll() is not None and is_open:
                self._drain(output.fileno())
                return None
            if now < due:
                continue
            due = now + WATCH_SECONDS
            if should_stop():
                raise StoppedError
            if now > deadline:
                self.is_overdue = True
                return Stop(f"it was not done after {self._job.timeout_seconds:g} seconds")
            problem = self._problem(now)
            if problem is not None:
                return problem
        return None

    def end(self) -> None:
        """Kill all remaining processes, and wait until they have ended."""
        if self._first is not None:  # first process of a PID namespace: its end ends all others
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._first, signal.SIGKILL)
            _is_ready(self._first, END_SECONDS)
            os.close(self._first)
        deadline = time.monotonic() + END_SECONDS
        while left := self._processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if self._process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(WATCH_SECONDS)
            if time.monotonic() > deadline:
                break
        self._process.wait(END_SECONDS)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _drain(self, descriptor: int) -> None:
        """Read what is in the pipe now, without waiting for processes that are left over."""
        while _is_ready(descriptor, 0):
            data = os.read(descriptor, CHUNK)
            self.log.add(data)
            if len(data) < CHUNK:
                return

    def _shortage(self) -> str | None:
        """Return the resource that this machine has run out of; None if there is enough."""
        if usage.free_disk_bytes(self._job.tree) < FREE_DISK_BYTES:
            return "this machine's disk is full"
        free = usage.free_memory_bytes()
        if free is not None and free < FREE_MEMORY_BYTES:
            return "this machine is out of memory"
        return None

    def shortage_at_end(self) -> str | None:
        """Return the resource that the machine ran out of meanwhile, as far as it is visible."""
        killed = usage.killed_for_memory() - self._killed_before
        if killed > 0:
            return f"this machine ran out of memory, and the kernel killed {killed} processes"
        return self._shortage()

    def _problem(self, now: float) -> Stop | None:
        """Check the command's own limits first: passing them is red on a full machine too."""
        try:
            shortage = self._shortage()
            passed = self._passed_limit(now, is_thorough=shortage is not None)
        except UnmeasurableError as error:
            return Stop(str(error))
        if passed is not None:
            return Stop(passed)
        return Stop(shortage, is_shortage=True) if shortage is not None else None

    def _passed_limit(self, now: float, *, is_thorough: bool) -> str | None:
        limits = self._limits
        processes = self._processes()
        if len(processes) >= limits.processes:
            return f"it started {len(processes)} processes (AUTOPACK_CI_PROCESSES)"
        used = 0
        is_slow = now >= self._slow_due or is_thorough
        if is_slow:
            held = usage.held(processes, self._job.tree)
            segments = usage.shared_segments(self._first_pid)
            used = held.disk + usage.tree_bytes(self._job.tree, limits.disk_bytes)
            self._held_memory = held.memory + segments
            took = time.monotonic() - now
            self._slow_due = now + max(WATCH_SECONDS, SLOW_SHARE * took)
        own, shared = usage.resident(processes)
        spaces = 0
        if self._start.is_contained:
            spaces = usage.tmpfs_bytes(processes, self._first_pid)
        # Shared pages are mostly pages of files in memory, which are counted elsewhere.
        memory = own + max(shared, spaces + self._held_memory)
        if memory > limits.memory_bytes:
            return f"it used {memory} bytes of memory (AUTOPACK_CI_MEMORY_BYTES)"
        if used > limits.disk_bytes:
            return f"it wrote {used} bytes (AUTOPACK_CI_DISK_BYTES)"
        return None

    def _processes(self) -> set[int]:
        """Return the command's descendants and, without a sandbox, processes with its mark.

        In a PID namespace, a process that loses its parent becomes a child of the first process.
        """
        parents = dict(usage.parents())
        found = {self._process.pid}
        grown = True
        while grown:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grown = bool(more)
        if not self._start.is_contained:
            mark = f"{MARKER}={self._job.tree}\0".encode()
            found |= {pid for pid in parents if pid not in found and mark in usage.environ(pid)}
        return found & parents.keys()


def _is_ready(descriptor: int, seconds: float) -> bool:
    """Wait for input. Unlike `select`, it works for descriptors above 1024."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1_000))


def last_line(log: bytes) -> str:
    """Return the last line with text of an output, as one printable line."""
    return _as_reason(_last_lines(log)[-1:])


def last_words(log: bytes) -> str:
    """Return what an output ends with, as one printable line: its last line with text.

    scripts/preflight_gate.sh ends its output with lines of its own, which only say that the checks
    failed. Then it is the last lines of the checks, if they printed any: `last_line` alone is often
    a count.
    """
    lines = _last_lines(log)
    if not lines or not lines[-1].startswith(PREFLIGHT):
        return _as_reason(lines[-1:])
    own = [line for line in lines if not line.startswith(PREFLIGHT)]
    return _as_reason(own[-PREFLIGHT_LINES:] or lines[-1:])


def _last_lines(log: bytes) -> list[str]:
    lines = log[-8 * MAX_LINE :].decode(errors="replace").splitlines()
    if len(log) > 8 * MAX_LINE and len(lines) > 1:
        del lines[0]  # only the end of a line
    return [line.strip() for line in lines if line.strip()]


def _as_reason(lines: Sequence[str]) -> str:
    # A reason is committed with the record, so credentials are redacted.
    line = " | ".join(redact(line) for line in lines)[-MAX_LINE:]
    return "".join(sign if sign.isprintable() else "?" for sign in line)


def _status(report: bytes, process: subprocess.Popen[bytes], *, is_contained: bool) -> int | None:
    """Return the command's exit status; None when the sandbox failed before."""
    if not is_contained:
        status = process.wait(END_SECONDS)
        return status if status >= 0 else 128 - status
    for line in report.splitlines():
        code = _document(line).get("exit-code")
        if code is not None:
            return code
    return None


def _line(report: RawIOBase) -> bytes:
    """Read a line byte by byte, so that the text after it stays in the pipe."""
    line = b""
    while (sign := report.read(1)) and sign != b"\n":
        line += sign
    return line


def _document(line: bytes) -> dict[str, int]:
    """Read a line of bubblewrap's report, whose values are numbers."""
    try:
        document = json.loads(line)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _cases(counts: TestCounts | None) -> Mapping[str, CaseState] | None:
    if counts is None or len(counts.cases) > MAX_CASES:
        return None
    return counts.cases


def _names(counts: TestCounts | None) -> str:
    if counts is None or not counts.failing:
        return ""
    return f": {listed(counts.failing, 5, count=counts.failed)}"
