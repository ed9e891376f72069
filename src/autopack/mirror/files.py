"""Whole files or none: temporary file, fsync, rename, fsync of the folder.

Everything goes through file descriptors of folders that were opened without following links, so
a link planted below the runs directory leads nowhere. The lock is `flock` on the folder itself: it
needs no file, works across threads (each opens the folder anew) and across processes, and a crash
frees it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import ClassVar

from ..domain.errors import UnavailableError

TEMPORARY = ".tmp"
# Open files at one time: far below the usual limit of 1,024 for a process.
_BATCH = 64
# Above this many files fsync in parallel: the disk then flushes once for several of them.
_PARALLEL_FROM = 8
_FSYNC_THREADS = 4
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# What a file system answers that cannot fsync a folder; its renames are as durable as they get.
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class MirrorUnusableError(UnavailableError):
    """The runs directory cannot be written; the files that were there are as they were."""

    code: ClassVar[str] = "runs_dir_unusable"

    def __init__(self, path: Path, error: OSError) -> None:
        reason = error.strerror or type(error).__name__
        super().__init__(
            f"{path} cannot be written: {reason}. AUTONOMOUS_RUNS_DIR must name a folder that"
            " the service may write to, on a disk with room.",
            path=str(path),
            reason=reason,
        )
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file's whole content, and the open folder that it belongs into."""

    folder: int
    name: str
    content: bytes


@contextmanager
def usable(path: Path) -> Iterator[None]:
    """Say of a failure of the file system what could not be written, and why."""
    try:
        yield
    except OSError as error:
        raise MirrorUnusableError(path, error) from error


@contextmanager
def open_folder(name: str | Path, parent: int | None = None) -> Iterator[int]:
    """Open a folder as a descriptor. Below `parent` it is made if absent, and no link followed."""
    flags = _FOLDER
    if parent is not None:
        flags |= os.O_NOFOLLOW
        with suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
            sync_folder(parent)
    descriptor = os.open(name, flags, dir_fd=parent)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(name: str, parent: int) -> Iterator[int]:
    """Open a folder below `parent`, made if absent, and hold its lock.

    A folder that was deleted while we waited for its lock is nobody's to write into: take the next.
    """
    while True:
        with open_folder(name, parent) as folder:
            flock(folder, LOCK_EX)
            if os.fstat(folder).st_nlink:
                yield folder
                return


def read_file(folder: int, name: str, limit: int) -> bytes | None:
    """Read the first `limit` bytes; None for what is absent or no regular file's name."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return None
        raise
    try:
        return os.read(descriptor, limit)
    except IsADirectoryError:
        return None
    finally:
        os.close(descriptor)


def remove_leftovers(folder: int) -> None:
    """Remove the temporary files of a writer that crashed. Call with the folder's lock held."""
    for name in os.listdir(folder):
        if name.startswith(".") and name.endswith(TEMPORARY):
            os.unlink(name, dir_fd=folder)


def replace_files(top: int, path: Path, files: Sequence[NewFile]) -> None:
    """Put new files in the place of old ones, in the order given.

    `top` is the locked folder at `path` in which the temporary files are made; the files' folders
    lie within it. All contents are on the disk before the first name changes, so a full disk
    changes nothing. Raises MirrorUnusableError.
    """
    written: list[str] = []
    try:
        for start in range(0, len(files), _BATCH):
            _write_batch(top, path, files[start : start + _BATCH], written)
        with usable(path):
            for file, temporary in zip(files, tuple(written), strict=True):
                os.rename(temporary, file.name, src_dir_fd=top, dst_dir_fd=file.folder)
                written.remove(temporary)
            for folder in dict.fromkeys(file.folder for file in files):
                sync_folder(folder)
    finally:
        for temporary in written:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=top)


def _write_batch(top: int, path: Path, files: Sequence[NewFile], written: list[str]) -> None:
    descriptors: list[int] = []
    try:
        for file in files:
            with usable(path / file.name):
                temporary = f".{file.name}{TEMPORARY}"
                descriptors.append(_create(top, temporary))
                written.append(temporary)
                _write_all(descriptors[-1], file.content)
        with usable(path):
            _sync_all(descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _create(folder: int, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o644, dir_fd=folder)
    except FileExistsError:  # of a writer that crashed: the lock is ours, so nobody uses it
        os.unlink(name, dir_fd=folder)
        return os.open(name, flags, 0o644, dir_fd=folder)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_all(descriptors: Sequence[int]) -> None:
    if len(descriptors) <= _PARALLEL_FROM:
        _sync(descriptors)
        return
    shares = [descriptors[start::_FSYNC_THREADS] for start in range(_FSYNC_THREADS)]
    with ThreadPoolExecutor(_FSYNC_THREADS, thread_name_prefix="mirror-fsync") as pool:
        for _ in pool.map(_sync, shares):
            pass


def _sync(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.fsync(descriptor)


def sync_folder(folder: int) -> None:
    """Make the names of a folder durable, as far as its file system can."""
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
