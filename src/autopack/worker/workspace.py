"""A worker's own folder; the next worker removes the folder of one that was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ..gitrepo.quarantine import locked

_LOCK = ".lock"


@dataclass(frozen=True, slots=True)
class WorkerFolder:
    """A worker's folder. Every process that may still work in it keeps `lock` locked."""

    folder: Path
    lock: int

    @contextmanager
    def desk(self) -> Iterator[Path]:
        """Yield a folder for one work item; it is removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            remove(folder)


@contextmanager
def enter(home: Path) -> Iterator[WorkerFolder]:
    """Create a folder below the workers' home, and remove those of workers that were killed."""
    workspaces = home / "work"
    home.mkdir(parents=True, exist_ok=True, mode=0o700)  # copies of repositories are there too
    workspaces.mkdir(exist_ok=True)
    with locked(home / "lock"):  # so that a new folder is not removed before it is locked
        _clear(workspaces)
        lock, path = tempfile.mkstemp(_LOCK, dir=workspaces)  # first: by it the folder is found
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = Path(path.removesuffix(_LOCK))
        folder.mkdir(mode=0o700)
    try:
        yield WorkerFolder(folder, lock)
    finally:
        remove(folder)
        Path(path).unlink(missing_ok=True)
        os.close(lock)


def remove(folder: Path) -> None:
    """Remove a folder, including what an agent made read-only in it."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        for parent, _, _ in os.walk(folder):
            with suppress(OSError):
                os.chmod(parent, 0o700)
        shutil.rmtree(folder, ignore_errors=True)


def _clear(workspaces: Path) -> None:
    for lock in workspaces.glob(f"*{_LOCK}"):
        with suppress(FileNotFoundError):  # a worker that ends removes its own
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            else:
                remove(lock.with_suffix(""))
                lock.unlink()
            finally:
                os.close(descriptor)
