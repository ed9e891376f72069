"""Whole files or none: temporary file, then rename.

This module does not protect files against a power cut; durability.py does that for all files
together.

All access goes through file descriptors of folders that were opened without following links, so a
hostile link below the runs directory has no effect. The lock is `flock` on the folder itself: it
needs no file, works across threads (each opens the folder anew) and across processes, and a crash
frees it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import ClassVar

from ..domain.errors import UnavailableError

TEMPORARY = ".tmp"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Errors of a file system that cannot fsync a folder; the renames are then as durable as possible.
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


class MirrorUnusableError(UnavailableError):
    """The runs directory cannot be written; the existing files are unchanged."""

    code: ClassVar[str] = "runs_dir_unusable"

    def __init__(self, path: Path | str, error: OSError) -> None:
        reason = error.strerror or type(error).__name__
        super().__init__(
            f"{path} cannot be written: {reason}. AUTONOMOUS_RUNS_DIR must name a folder that"
            " the service may write to, on a disk with free space.",
            path=str(path),
            reason=reason,
        )
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class OpenFolder:
    """A folder by its descriptor; the path is for messages alone."""

    descriptor: int
    path: str


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file's whole content, and the folder for it."""

    folder: OpenFolder
    name: str
    content: bytes

    @property
    def path(self) -> str:
        return f"{self.folder.path}/{self.name}"


@contextmanager
def usable(path: Path | str) -> Iterator[None]:
    """Turn errors of the file system into MirrorUnusableError with path and reason."""
    try:
        yield
    except OSError as error:
        raise MirrorUnusableError(path, error) from error


@contextmanager
def open_top(path: Path) -> Iterator[OpenFolder]:
    """Open the runs directory; the operator may use links for it. Raises OSError."""
    descriptor = os.open(path, _FOLDER)
    try:
        yield OpenFolder(descriptor, str(path))
    finally:
        os.close(descriptor)


@contextmanager
def open_folder(parent: OpenFolder, name: str) -> Iterator[OpenFolder]:
    """Open or create a folder below another; does not follow a link. Raises OSError."""
    flags = _FOLDER | os.O_NOFOLLOW
    try:
        descriptor = os.open(name, flags, dir_fd=parent.descriptor)
    except FileNotFoundError:
        with suppress(FileExistsError):  # another process was quicker
            os.mkdir(name, dir_fd=parent.descriptor)
        descriptor = os.open(name, flags, dir_fd=parent.descriptor)
    try:
        yield OpenFolder(descriptor, f"{parent.path}/{name}")
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(parent: OpenFolder, name: str) -> Iterator[OpenFolder]:
    """Open or create a folder below another, and hold its lock. Raises OSError.

    If the folder was deleted during the wait for its lock, its files would be lost: open the new
    one.
    """
    while True:
        with open_folder(parent, name) as folder:
            lock(folder)
            if _stands(folder, parent, name):
                yield folder
                return


def lock(folder: OpenFolder) -> None:
    """Wait for the folder's lock and hold it until the folder is closed. Raises OSError."""
    flock(folder.descriptor, LOCK_EX)


def _stands(folder: OpenFolder, parent: OpenFolder, name: str) -> bool:
    try:
        found = os.stat(name, dir_fd=parent.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(folder.descriptor))


def read_head(folder: OpenFolder, name: str, limit: int) -> bytes:
    """Read the first `limit` bytes; empty for a missing file or one that is not regular."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=folder.descriptor)
    except FileNotFoundError:
        return b""
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return b""
        raise
    try:
        return os.read(descriptor, limit) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    finally:
        os.close(descriptor)


def exists(folder: OpenFolder, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def remove_leftovers(folder: OpenFolder) -> None:
    """Remove the temporary files of a writer that crashed. Call with the folder's lock held."""
    for name in os.listdir(folder.descriptor):
        if name.startswith(".") and name.endswith(TEMPORARY):
            os.unlink(name, dir_fd=folder.descriptor)


def remove_older(folder: OpenFolder, names: re.Pattern[str], moment: datetime) -> None:
    """Remove the files with these names that were last written before a moment."""
    for name in os.listdir(folder.descriptor):
        if names.fullmatch(name):
            found = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False)
            if found.st_mtime < moment.timestamp():
                os.unlink(name, dir_fd=folder.descriptor)


def replace_files(top: OpenFolder, files: Sequence[NewFile], *, durably: bool = False) -> None:
    """Replace files by new ones, in the given order.

    `top` is the locked folder in which the temporary files are made; the files' folders are it or
    lie within it. All contents are written before the first name changes, so a full disk changes
    nothing. `durably`: on the disk when this returns. Raises MirrorUnusableError.
    """
    temporaries: list[str] = []
    try:
        with usable(top.path):
            for file in files:
                temporaries.append(_write_beside(top, file, durably=durably))
            for file in files:
                os.rename(
                    temporaries[0],
                    file.name,
                    src_dir_fd=top.descriptor,
                    dst_dir_fd=file.folder.descriptor,
                )
                del temporaries[0]
            if durably:
                for folder in dict.fromkeys(file.folder for file in files):
                    _sync_folder(folder)
    finally:
        for temporary in temporaries:
            with suppress(OSError):
                os.unlink(temporary, dir_fd=top.descriptor)


def _write_beside(top: OpenFolder, file: NewFile, *, durably: bool) -> str:
    """Write a file's content to a temporary file, and return its name."""
    temporary = f".{file.name}{TEMPORARY}"
    try:
        descriptor = _create(top, temporary)
        try:
            _write_all(descriptor, file.content)
            if durably:
                os.fsync(descriptor)
        except OSError:
            os.unlink(temporary, dir_fd=top.descriptor)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise MirrorUnusableError(file.path, error) from error
    return temporary


def _create(folder: OpenFolder, name: str) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        return os.open(name, flags, 0o644, dir_fd=folder.descriptor)
    except FileExistsError:  # left by a writer that crashed, as this process has the lock
        os.unlink(name, dir_fd=folder.descriptor)
        return os.open(name, flags, 0o644, dir_fd=folder.descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _sync_folder(folder: OpenFolder) -> None:
    """Make a folder's renames durable, as far as its file system can."""
    try:
        os.fsync(folder.descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise
