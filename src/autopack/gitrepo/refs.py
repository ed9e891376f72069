"""Refs: read without a process, moved by compare-and-swap in one `git update-ref` transaction."""

from __future__ import annotations

import logging
import mmap
import re
import select
import subprocess
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import (
    GitFailedError,
    RefLockedError,
    RefMovedError,
    RefNameTakenError,
    RepositoryUnusableError,
)
from .process import GitRunner

logger = logging.getLogger(__name__)

_OID = re.compile(r"[0-9a-f]{40}\Z")
_OURS = ("refs/heads/autonomous/", "refs/tags/autonomous/", "refs/autopack/")
_COMPONENT = re.compile(r"(?!.*(?:\.\.|\.lock\Z))\w(?:[\w.-]*[\w-])?\Z", re.ASCII)
_STALE_LOCK_SECONDS = 60
_NONE = "0" * 40
_SYMBOLIC_DEPTH = 5


@dataclass(frozen=True, slots=True)
class RefUpdate:
    """Move `ref` to `new` if it is at `old`; with None, if it does not exist.

    With `is_check` the ref may be any branch: it only must be at `new` still, and is not written.
    """

    ref: str
    new: str
    old: str | None
    is_check: bool = False

    @classmethod
    def check(cls, ref: str, at: str) -> RefUpdate:
        """Require that a branch is still where it was read."""
        return cls(ref, at, at, is_check=True)

    @property
    def command(self) -> str:
        """The line for `git update-ref --stdin`."""
        if self.is_check:
            return f"verify {self.ref} {self.new}\n"
        return f"update {self.ref} {self.new} {self.old or _NONE}\n"


class PreparedRefs:
    """Refs that are locked and checked: only a crash can prevent `commit` now."""

    def __init__(self, process: subprocess.Popen[bytes], runner: GitRunner) -> None:
        self._process = process
        self._runner = runner

    def commit(self) -> None:
        """Move the refs."""
        if not _say(self._process, self._runner, "commit\n", awaited=b"commit: ok\n"):
            raise GitFailedError("git update-ref did not commit what it had prepared.")


class Refs:
    """The refs of one repository."""

    def __init__(self, git_dir: Path, runner: GitRunner) -> None:
        self._git_dir = git_dir
        self._runner = runner

    def read(self, ref: str, depth: int = _SYMBOLIC_DEPTH) -> str | None:
        """Return the commit of a ref, through symbolic refs; None when there is no such ref.

        Raises RepositoryUnusableError for a ref without a commit's id.
        """
        value = self.read_raw(ref)
        if value is None or _OID.match(value):
            return value
        if value.startswith("ref: ") and depth:
            return self.read(value.removeprefix("ref: ").strip(), depth - 1)
        raise RepositoryUnusableError(
            f"{ref} is damaged: it contains {value[:60]!r} and not a commit's id."
            f" Delete the file {ref} in the repository's git directory, or restore it."
        )

    def read_raw(self, ref: str) -> str | None:
        """Return the content of a ref's file, or its value in packed-refs."""
        if ".." in ref or not (ref == "HEAD" or ref.startswith("refs/")):
            raise ValueError(f"{ref!r} is not a ref")
        try:
            return (self._git_dir / ref).read_bytes().decode(errors="backslashreplace").strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return self._packed(f" {ref}\n".encode(errors="surrogateescape"))

    def settle(self, ref: str, *, head: str, recorded: Collection[str]) -> None:
        """Roll a ref forward to the recorded head.

        Does nothing when the ref is there. Moves it when it is absent or at an earlier recorded
        head. Raises RefMovedError, and overwrites nothing, when it is at any other commit.
        """
        actual = self.read(ref)
        if actual == head:
            return
        if actual is not None and actual not in recorded:
            raise RefMovedError(ref, head, actual)
        with self.prepare([RefUpdate(ref, head, actual)]) as prepared:
            prepared.commit()

    @contextmanager
    def prepare(self, updates: Sequence[RefUpdate]) -> Iterator[PreparedRefs]:
        """Lock and check all refs in one process; leaving the block without a commit releases them.

        Raises RefMovedError, RefNameTakenError or RefLockedError here, before the database commits:
        after that commit, moving the refs must not fail. Raises ValueError for a ref of another
        name space.
        """
        for update in updates:
            if not (update.is_check or is_ours(update.ref)):
                raise ValueError(f"{update.ref!r} is not a ref of a run")
            if not all(_OID.match(oid) for oid in (update.new, update.old or _NONE)):
                raise ValueError(f"{update.ref} would be moved between values that are not ids")
            if not update.is_check:
                self._refuse_symbolic(update)
        process = self._start(updates)
        try:
            yield PreparedRefs(process, self._runner)
        finally:
            self._runner.finish(process, "update-ref")

    def _refuse_symbolic(self, update: RefUpdate) -> None:
        """Refuse a symbolic ref: it was made by hand, and a write could move any branch."""
        raw = self.read_raw(update.ref)
        if raw is not None and raw.startswith("ref: "):
            raise RefMovedError(update.ref, update.old, raw)

    def _start(self, updates: Sequence[RefUpdate]) -> subprocess.Popen[bytes]:
        commands = "".join(["start\n", *(each.command for each in updates), "prepare\n"])
        while True:
            process = self._runner.start(
                "update-ref",
                "--no-deref",
                "--stdin",
                folder=self._git_dir,
                environment={"GIT_DIR": str(self._git_dir)},
            )
            if _say(process, self._runner, commands, awaited=b"start: ok\nprepare: ok\n"):
                return process
            _, words = self._runner.finish(process, "update-ref")
            self._explain(updates)
            if not self._remove_stale_locks(updates):
                self._runner.require_room(words, "update-ref", self._git_dir)
                raise GitFailedError(f"git update-ref refused: {words.strip()[:2000]}")

    def _explain(self, updates: Sequence[RefUpdate]) -> None:
        """Raise the error that the present refs explain: git's messages differ between versions."""
        for update in updates:
            actual = self.read(update.ref)
            if actual is not None and update.old is None:
                raise RefNameTakenError(update.ref, f"{update.ref} at {actual}")
            if actual != update.old:
                raise RefMovedError(update.ref, update.old, actual)
            taken_by = self._in_the_way(update.ref)
            if taken_by is not None:
                raise RefNameTakenError(update.ref, taken_by)

    def require_free(self, ref: str) -> None:
        """Check that no ref has this name, or a name within it. Raises RefNameTakenError."""
        taken_by = ref if self.read_raw(ref) is not None else self._in_the_way(ref)
        if taken_by is not None:
            raise RefNameTakenError(ref, taken_by)

    def _in_the_way(self, ref: str) -> str | None:
        """Return a ref that is a parent or child of this name: git cannot have both."""
        parent = ref.rpartition("/")[0]
        while parent.count("/") > 1:
            if self.read_raw(parent) is not None:
                return parent
            parent = parent.rpartition("/")[0]
        for path in (self._git_dir / ref).rglob("*"):
            if path.is_file() and path.suffix != ".lock":
                return path.relative_to(self._git_dir).as_posix()
        return f"a branch or tag within {ref}/" if self._packed(f" {ref}/".encode()) else None

    def _remove_stale_locks(self, updates: Sequence[RefUpdate]) -> bool:
        """Remove stale locks of a killed service process; True when another try makes sense."""
        removed = False
        for update in updates:
            lock = self._git_dir / f"{update.ref}.lock"
            try:
                age = time.time() - lock.stat().st_mtime
            except FileNotFoundError:
                continue
            if age < _STALE_LOCK_SECONDS or update.is_check:  # not ours to remove
                raise RefLockedError(f"{update.ref} is being moved by another git process.")
            logger.warning("removed the stale lock of %s, %d seconds old", update.ref, age)
            lock.unlink(missing_ok=True)
            removed = True
        return removed

    def _packed(self, needle: bytes) -> str | None:
        """Return the id before a needle in packed-refs, which may be many megabytes long."""
        try:
            with (
                (self._git_dir / "packed-refs").open("rb") as file,
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as packed,
            ):
                at = packed.find(needle)
                return packed[at - 40 : at].decode() if at >= 0 else None
        except (FileNotFoundError, ValueError):  # the file is missing or empty
            return None


def is_ours(ref: str) -> bool:
    prefix = next((prefix for prefix in _OURS if ref.startswith(prefix)), None)
    return prefix is not None and all(
        _COMPONENT.match(part) for part in ref.removeprefix(prefix).split("/")
    )


def _say(
    process: subprocess.Popen[bytes], runner: GitRunner, commands: str, *, awaited: bytes
) -> bool:
    """Send commands and wait for the answer; False when git ended instead of answering."""
    stdin, stdout = process.stdin, process.stdout
    if stdin is None or stdout is None:
        raise ValueError("the process has no pipes")
    try:
        stdin.write(commands.encode())
        stdin.flush()
    except BrokenPipeError:
        return False
    answer = b""
    deadline = time.monotonic() + runner.timeout_seconds
    poll = select.poll()
    poll.register(stdout, select.POLLIN | select.POLLHUP)
    while len(answer) < len(awaited):
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            process.terminate()
            raise runner.timed_out("update-ref")
        # A pipe's end is a BufferedReader, which its declared type does not say.
        read = stdout.read1(65536)  # type: ignore[attr-defined]
        if not read:
            return False
        answer += read
    return answer == awaited
