"""git's lock of a ref: while the file `<ref>.lock` is there, no other process moves the ref.

The file has the ref's next value, and becomes the ref by a rename. This is how git itself does it
(`lockfile.h`), so both respect each other.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from contextlib import suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from types import TracebackType

from .errors import RefLockedError, RefNameTakenError, StorageError

logger = logging.getLogger(__name__)

_WAIT_SECONDS = 0.5
_LOOK_SECONDS = 0.01
_STALE_SECONDS = 60
# A lock of ours has the sticky bit, which means nothing else at a file, from its beginning. It is
# stale as soon as no process has its flock: wherever a process is killed, it blocks no ref. git's
# locks have no flock: their age makes them stale. So it is where a file system keeps no such bit.
_LOCK_BIT = stat.S_ISVTX


class RefLock:
    """The lock of one ref, with its next value. A context manager; the lock ends with the block."""

    def __init__(self, git_dir: Path, ref: str) -> None:
        self.ref = ref
        self._top = f"{git_dir}/refs"
        self._path = f"{git_dir}/{ref}"
        self._lock = f"{self._path}.lock"
        self._descriptor = -1
        self._is_moved = False

    def __enter__(self) -> RefLock:
        """Take the lock. Raises RefLockedError, RefNameTakenError, StorageError."""
        try:
            self._descriptor = self._create()
        except NotADirectoryError:
            raise RefNameTakenError(self.ref, "a ref above it") from None
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._is_moved:
            with suppress(FileNotFoundError):
                os.unlink(self._lock)
        os.close(self._descriptor)

    def write(self, oid: str) -> None:
        """Write the next value durably, so that `move` is only a rename.

        Raises RefNameTakenError where a folder with files has the ref's place, and StorageError.
        """
        try:
            self._remove_empty_folder()
            os.write(self._descriptor, f"{oid}\n".encode())
            # The bit as it is: some systems keep none, and refuse to set it.
            bit = os.fstat(self._descriptor).st_mode & _LOCK_BIT
            os.fchmod(self._descriptor, self._ref_mode() | bit)
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._unwritable(error) from error

    def move(self) -> None:
        """Let the ref have the written value. Raises StorageError."""
        try:
            os.rename(self._lock, self._path)
        except OSError as error:
            raise self._unwritable(error) from error
        self._is_moved = True
        with suppress(OSError):  # the ref is moved; the bit means nothing at it
            os.fchmod(self._descriptor, self._ref_mode())

    def _create(self) -> int:
        deadline = time.monotonic() + _WAIT_SECONDS
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        while True:
            try:
                descriptor = os.open(self._lock, flags, 0o666 | _LOCK_BIT)
                if _hold(descriptor):
                    return descriptor
            except FileNotFoundError:
                self._make_folder(os.path.dirname(self._lock))
                if time.monotonic() > deadline:
                    raise
            except FileExistsError:
                if remove_stale(self._lock):
                    continue
                if time.monotonic() > deadline:
                    raise RefLockedError(
                        f"{self.ref} is being moved by another git process."
                    ) from None
                time.sleep(_LOOK_SECONDS)

    def _make_folder(self, folder: str) -> None:
        """Make a folder and those above it; git may remove empty ones at any moment."""
        with suppress(FileExistsError):
            try:
                os.mkdir(folder)
            except FileNotFoundError:
                self._make_folder(os.path.dirname(folder))
                return  # the next round of `_create` makes this one
            os.chmod(folder, self._mode())  # that of a shared repository has its group's rights

    def _ref_mode(self) -> int:
        return self._mode() & 0o666

    def _mode(self) -> int:
        return stat.S_IMODE(os.stat(self._top).st_mode)

    def _remove_empty_folder(self) -> None:
        """Remove what is left of refs within this ref's name: git leaves their folders."""
        if os.path.isdir(self._path):
            try:
                for folder, _, _ in os.walk(self._path, topdown=False):
                    os.rmdir(folder)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise RefNameTakenError(self.ref, f"a folder {self.ref} with files") from error

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"Nothing can be written to {os.path.dirname(self._lock)}: {error.strerror}."
            " Check free space and permissions there, then try again."
        )


def _hold(descriptor: int) -> bool:
    """Take the flock of a new lock; return False if another process removed it before."""
    with suppress(OSError):  # a file system without flock, where no lock is known to be stale
        flock(descriptor, LOCK_EX)  # `remove_stale` may look at it for a moment
    if os.fstat(descriptor).st_nlink:
        return True
    os.close(descriptor)
    return False


def remove_stale(path: str, *, age: float = _STALE_SECONDS) -> bool:
    """Remove a lock whose process was killed; return whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        flock(descriptor, LOCK_EX | LOCK_NB)  # so that of two that find it only one removes it
        found = os.fstat(descriptor)
        seconds = time.time() - found.st_mtime
        is_young = seconds < age and not found.st_mode & _LOCK_BIT
        if is_young or not os.path.samestat(found, os.stat(path)):
            return False
        os.unlink(path)
    except FileNotFoundError:
        return True
    except OSError:  # its process has it
        return False
    finally:
        os.close(descriptor)
    logger.warning("removed the stale lock %s, %d seconds old", path, seconds)
    return True
