"""Puts a whole file system on its disk: one call instead of one for each of many files."""

from __future__ import annotations

import ctypes
import os
import re
import sys
from typing import Final

# Local ones, where `syncfs` waits for data, names and the disk's cache as `fsync` does: ext, XFS,
# Btrfs, tmpfs, and overlayfs, which is one of them for what is written.
_TRUSTED: Final = frozenset({0xEF53, 0x58465342, 0x9123683E, 0x01021994, 0x794C7630})
_REPORTS_ERRORS: Final = (5, 8)  # the first Linux whose `syncfs` fails when a write has failed
_LITTLE_KB: Final = 32 * 1024  # a slow disk writes it in half a second
_DIRTY: Final = re.compile(rb"^(?:Dirty|Writeback): +(\d+) kB$", re.MULTILINE)


def sync_file_system(descriptor: int) -> None:
    """Return when all of the file system is on the disk that has this open file or folder.

    Raises OSError.
    """
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux alone has it
    if syncfs is None:
        os.sync()
    elif syncfs(descriptor) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def is_quick_to_sync(descriptor: int) -> bool:
    """Return whether to sync this file system is as safe as each file, and waits for little else.

    What others have written lately is synced too, so the wait may be long if that is much.
    """
    return _IS_RECENT_LINUX and _has_little_to_write() and type_of(descriptor) in _TRUSTED


def _has_little_to_write() -> bool:
    try:
        with open("/proc/meminfo", "rb") as file:
            found = _DIRTY.findall(file.read())
    except OSError:
        return False
    return bool(found) and sum(map(int, found)) <= _LITTLE_KB


def type_of(descriptor: int) -> int | None:
    """Return Linux' number of a file system's type; None if it does not say."""
    answer = (ctypes.c_ulong * 32)()  # `struct statfs`, whose first word it is
    return answer[0] if ctypes.CDLL(None).fstatfs(descriptor, answer) == 0 else None


def _version(release: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", release)[:2])


_IS_RECENT_LINUX: Final = (
    sys.platform == "linux" and _version(os.uname().release) >= _REPORTS_ERRORS
)
