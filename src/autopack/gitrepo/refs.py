"""Refs: read and moved by compare-and-swap without a process, under git's own locks.

No reflog is written, as Postgres stores every head.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .errors import GitFailedError, RefMovedError, RefNameTakenError, RepositoryUnusableError
from .objects import Objects
from .packed_refs import PackedRefs
from .ref_lock import RefLock, remove_stale

_OID = re.compile(r"[0-9a-f]{40}\Z")
_BRANCHES = "refs/heads/"
_RUN_REFS = ("refs/heads/autonomous/", "refs/tags/autonomous/", "refs/autopack/")
_COMPONENT = re.compile(r"(?!.*(?:\.\.|\.lock\Z))\w(?:[\w.-]*[\w-])?\Z", re.ASCII)
# As `git check-ref-format --branch`: no part is empty, begins with a dot or ends in `.lock`.
_BRANCH = re.compile(
    r"(?!-|.*(?:\.\.|//|@\{|[/.]\Z|\.lock(?:/|\Z)|/\.))(?![/.])[^\0-\x20\x7f~^:?*\[\\]+\Z"
)
_LONGEST_PART = 250  # of a file's name of 255 bytes, with `.lock`
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


@dataclass(frozen=True, slots=True)
class RecordedRef:
    """Where a ref of a run must be, and the earlier heads from which it may be moved there."""

    ref: str
    head: str
    recorded: Collection[str] = ()


class PreparedRefs:
    """Refs that are locked and checked: only a crash can prevent `commit` now."""

    def __init__(self, locks: Sequence[RefLock]) -> None:
        self._locks = locks

    def commit(self) -> None:
        """Move the refs. Raises StorageError."""
        for lock in self._locks:
            lock.move()


class Refs:
    """The refs of one repository."""

    def __init__(self, git_dir: Path, objects: Objects) -> None:
        self._git_dir = git_dir
        self._objects = objects
        self._packed = PackedRefs(git_dir)

    def read(self, ref: str, depth: int = _SYMBOLIC_DEPTH) -> str | None:
        """Return the commit of a ref, through symbolic refs; None when there is no such ref.

        Raises RepositoryUnusableError for a ref without a commit's id.
        """
        return self._resolved(ref, self.read_raw(ref), depth)

    def _resolved(self, ref: str, value: str | None, depth: int = _SYMBOLIC_DEPTH) -> str | None:
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
            with open(f"{self._git_dir}/{ref}", "rb") as file:
                return file.read().decode(errors="backslashreplace").strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return self._packed.find(ref)

    def roll_forward(self, wanted: Sequence[RecordedRef]) -> None:
        """Roll refs forward to their recorded heads, together.

        One that is absent or at an earlier recorded head is moved. Raises RefMovedError, and moves
        none, when one is at any other commit.
        """
        updates = []
        for each in wanted:
            actual = self.read(each.ref)
            if actual == each.head:
                continue
            if actual is not None and actual not in each.recorded:
                raise RefMovedError(each.ref, each.head, actual)
            updates.append(RefUpdate(each.ref, each.head, actual))
        if updates:
            with self.prepare(updates) as prepared:
                prepared.commit()

    @contextmanager
    def prepare(self, updates: Sequence[RefUpdate]) -> Iterator[PreparedRefs]:
        """Lock and check all refs; leaving the block without a commit releases them.

        Raises RefMovedError, RefNameTakenError, RefLockedError or StorageError here, before the
        database commits: after that commit, moving the refs must not fail. Raises ValueError for a
        ref of another name space.
        """
        for update in updates:
            if not (update.is_check or is_run_ref(update.ref)):
                raise ValueError(f"{update.ref!r} is not a ref of a run")
            if not all(_OID.match(oid) for oid in (update.new, update.old or _NONE)):
                raise ValueError(f"{update.ref} would be moved between values that are not ids")
        with ExitStack() as held:
            locks = []
            for update in updates:
                if update.is_check:
                    continue
                self._require_object(update)
                lock = held.enter_context(RefLock(self._git_dir, update.ref))
                locks.append(lock)
                self._require_old(update)
                lock.write(update.new)
            # Without a lock: a branch that moves from here on has moved after this change.
            for update in updates:
                if update.is_check:
                    self._require_old(update)
            yield PreparedRefs(locks)

    def _require_old(self, update: RefUpdate) -> None:
        """Check that a ref is where it was left, and that git can have it beside the others.

        A symbolic ref of a run was made by hand: a write could move any branch.
        """
        value = self.read_raw(update.ref)
        is_symbolic = value is not None and value.startswith("ref: ")
        if is_symbolic and not update.is_check:
            raise RefMovedError(update.ref, update.old, value)
        actual = self._resolved(update.ref, value)
        if actual is not None and update.old is None:
            raise RefNameTakenError(update.ref, f"{update.ref} at {actual}")
        if actual != update.old:
            raise RefMovedError(update.ref, update.old, actual)
        taken_by = self._in_the_way(update.ref) if actual is None else None
        if taken_by is not None:
            raise RefNameTakenError(update.ref, taken_by)

    def _require_object(self, update: RefUpdate) -> None:
        """Check that a ref would name an object that is there, and a branch a commit."""
        kind, _ = self._objects.read(update.new)
        if kind != "commit" and update.ref.startswith(_BRANCHES):
            raise GitFailedError(f"{update.ref} cannot be at {update.new}, which is a {kind}")

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
        for folder, _, names in os.walk(self._git_dir / ref):
            for name in names:
                if not name.endswith(".lock"):
                    return Path(folder, name).relative_to(self._git_dir).as_posix()
        return self._packed.first_within(ref)

    def remove_left_locks(self) -> None:
        """Remove the locks of processes of Autopack that were killed."""
        for prefix in _RUN_REFS:
            for folder, _, names in os.walk(self._git_dir / prefix):
                for name in names:
                    if name.endswith(".lock"):
                        remove_stale(f"{folder}/{name}")


def is_branch_name(name: str) -> bool:
    """Say whether git can have a branch of this name."""
    parts = name.encode(errors="replace").split(b"/")
    return _BRANCH.match(name) is not None and max(map(len, parts)) <= _LONGEST_PART


def is_run_ref(ref: str) -> bool:
    prefix = next((prefix for prefix in _RUN_REFS if ref.startswith(prefix)), None)
    return prefix is not None and all(
        _COMPONENT.match(part) for part in ref.removeprefix(prefix).split("/")
    )
