"""A temporary object folder where git works on a submission, apart from the repository."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from .errors import StorageError
from .index import read_index, write_index
from .objects import Entry, Loose, Objects, TreeDraft, encode_loose
from .process import GitResult, GitRunner

# Longest time between creating and locking a folder; its mtime changes with each file in it.
_YOUNG_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Quarantine:
    """An object folder with the repository's objects as alternates, and an index.

    git runs in a bare git directory of the service without configuration: of the user's repository
    it only reads the objects.
    """

    folder: Path
    repository: Objects
    runner: GitRunner
    environment: dict[str, str]
    _trees: dict[str, bytes] = field(default_factory=dict)

    @property
    def index(self) -> Path:
        return self.folder / "index"

    def git(
        self, *arguments: str, stdin: bytes = b"", allowed: Collection[int] = (0,)
    ) -> GitResult:
        """Run git here; new objects stay in quarantine. Raises the errors of `GitRunner.run`."""
        return self.runner.run(
            *arguments,
            folder=self.folder,
            environment=self.environment,
            stdin=stdin,
            allowed=allowed,
        )

    def write_index(self, entries: dict[bytes, Entry]) -> None:
        self.index.write_bytes(write_index(entries))

    def read_index(self) -> dict[bytes, Entry]:
        return read_index(self.index.read_bytes())

    def loose(self, oid: str) -> bytes | None:
        """Return the file of an object that is new here; None if the repository has it."""
        try:
            with open(f"{self.folder}/objects/{oid[:2]}/{oid[2:]}", "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def read(self, oid: str) -> tuple[str, bytes]:
        """Return an object's kind and content. Raises KeyError when there is none."""
        loose = self.loose(oid)
        if loose is None:
            return self.repository.read(oid)
        head, _, data = zlib.decompress(loose).partition(b"\0")
        return head.split(b" ")[0].decode(), data

    def draft(self, tree: str) -> TreeDraft:
        """Return a tree that can be read, and changed in memory."""
        return TreeDraft(tree, self._tree)

    def _tree(self, oid: str) -> bytes:
        """Return a tree, read once: several drafts of a patch begin at the same one."""
        data = self._trees.get(oid)
        if data is None:
            data = self._trees[oid] = self.read(oid)[1]
        return data

    def write(self, kind: str, data: bytes) -> str:
        """Write an object into quarantine and return its id."""
        oid, loose = encode_loose(kind, data)
        self.store({oid: loose})
        return oid

    def store(self, objects: Loose) -> None:
        """Write objects into quarantine whose files are encoded already."""
        for oid, loose in objects.items():
            path = self.folder / "objects" / oid[:2] / oid[2:]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(loose)

    def take(self, oids: Collection[str]) -> Loose:
        """Return the files of those objects that are new here, for `Objects.install`."""
        found = ((oid, self.loose(oid)) for oid in oids)
        return {oid: loose for oid, loose in found if loose is not None}


@contextmanager
def open_quarantine(
    parent: Path, repository: Objects, runner: GitRunner, environment: dict[str, str]
) -> Iterator[Quarantine]:
    """Create a new quarantine each time: a lock left in a reused one would block forever."""
    with scratch_folder(parent, "patch-", "objects") as folder:
        yield Quarantine(
            folder=folder,
            repository=repository,
            runner=runner,
            environment={
                **environment,
                "GIT_INDEX_FILE": str(folder / "index"),
                "GIT_OBJECT_DIRECTORY": str(folder / "objects"),
                "GIT_ALTERNATE_OBJECT_DIRECTORIES": _alternate(repository.folder),
            },
        )


@contextmanager
def scratch_folder(parent: Path, prefix: str, *inside: str) -> Iterator[Path]:
    """Create a folder with these folders inside, and remove it after the `with` block.

    `remove_leftovers` removes that of a process that was killed. Raises StorageError.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)  # it may have been removed
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        lock = lock_folder(folder)  # a crash releases the lock
        for name in inside:
            (folder / name).mkdir()
    except OSError as error:
        raise StorageError(
            f"Nothing can be written to {parent}: {error.strerror}."
            " See to space and permissions there, then try again."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(parent: Path, remove: Callable[[Path], None] = _remove) -> None:
    """Remove folders of processes that were killed: those whose lock is free."""
    with suppress(FileNotFoundError):  # another process has removed it
        for left in parent.iterdir():
            if time.time() - left.stat().st_mtime > _YOUNG_SECONDS:
                _remove_unlocked(left, remove)


def _remove_unlocked(folder: Path, remove: Callable[[Path], None]) -> None:
    try:
        lock = lock_folder(folder)
    except BlockingIOError:
        return
    remove(folder)
    os.close(lock)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock a file; the lock ends with the process at the latest."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        flock(descriptor, LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def lock_folder(folder: Path) -> int:
    """Lock a folder until the descriptor is closed, or the process ends."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _alternate(folder: Path) -> str:
    """Quote a folder for git's list of alternates, which is separated by colons."""
    text = str(folder)
    if ":" not in text and not text.startswith('"'):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
