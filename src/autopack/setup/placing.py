"""Write files into a folder of other authors: never through a link, never over a file.

A cloned repository is untrusted. A link at any part of a path could redirect a write, so each part
is opened separately, relative to the one before, without following links. If another process
replaces a part meanwhile, the open folders are not affected.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LinkError(Exception):
    """A part of a path is a link, or not a folder. The message names it."""


@contextmanager
def _parent(top: Path, name: str, *, make: bool) -> Iterator[int | None]:
    """Open the folder of a file below `top`; None if it is missing and must not be created."""
    folder = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    passed = PurePosixPath()
    try:
        for part in PurePosixPath(name).parts[:-1]:
            passed /= part
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, dir_fd=folder)
            try:
                inner = os.open(part, _FOLDER, dir_fd=folder)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                raise LinkError(
                    f"{passed} is a link or not a folder: nothing is written through it"
                ) from error
            os.close(folder)
            folder = inner
        yield folder
    finally:
        os.close(folder)


def require_no_link(top: Path, name: str) -> None:
    """Check the existing folders of a file's path. Raises LinkError."""
    with _parent(top, name, make=False):
        pass


def is_taken(top: Path, name: str) -> bool:
    """Return whether a path exists, a dangling link included. Raises LinkError."""
    with _parent(top, name, make=False) as folder:
        try:
            if folder is not None:
                os.stat(PurePosixPath(name).name, dir_fd=folder, follow_symlinks=False)
                return True
        except FileNotFoundError:
            pass
        return False


def read_file(top: Path, name: str) -> bytes | None:
    """Return a regular file's content; None for anything else, such as a link. Raises LinkError."""
    with _parent(top, name, make=False) as folder:
        if folder is None:
            return None
        try:
            descriptor = os.open(PurePosixPath(name).name, os.O_RDONLY | _FILE, dir_fd=folder)
        except OSError:
            return None
        with os.fdopen(descriptor, "rb") as file:
            is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            return file.read() if is_regular else None


def write_new(top: Path, name: str, content: bytes) -> None:
    """Write a new file. Raises LinkError, FileExistsError, OSError."""
    _write(top, name, content, os.O_CREAT | os.O_EXCL)


def append(top: Path, name: str, content: bytes) -> None:
    """Append to an existing file. Raises LinkError, OSError, also for a link."""
    _write(top, name, content, os.O_APPEND)


def _write(top: Path, name: str, content: bytes, how: int) -> None:
    with _parent(top, name, make=bool(how & os.O_CREAT)) as folder:
        if folder is None:
            raise FileNotFoundError(2, os.strerror(2), name)
        flags = os.O_WRONLY | how | _FILE
        descriptor = os.open(PurePosixPath(name).name, flags, 0o666, dir_fd=folder)
        with os.fdopen(descriptor, "wb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise LinkError(f"{name} is not a regular file: nothing is written to it")
            file.write(content)
