"""The memory and disk that a CI command uses in all its processes, and what the machine has left.

All figures are read from /proc, so that no control group is needed. Memory is counted in all
places: in processes, in a tmpfs, in files without a name (memfd, a deleted file), in System V
segments. Disk is what is in the work tree, and what was deleted there but is still open.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
# An empty file needs space too: an inode and a block on disk, an inode in memory.
_FILE_ON_DISK: Final = 4_096
_FILE_IN_MEMORY: Final = 1_024
_BLOCK: Final = 512  # the unit of st_blocks
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")
VMSTAT: Final = Path("/proc/vmstat")
_MEMINFO: Final = Path("/proc/meminfo")


class UnmeasurableError(Exception):
    """A command hides its usage. The message says how."""


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes in open files that are in no folder any more."""

    memory: int
    disk: int


def parents() -> Iterator[tuple[int, int]]:
    """Yield every running process of this machine with its parent."""
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                    state, parent, *_ = file.read().rpartition(b")")[2].split()
                    if state != b"Z":
                        yield int(name), int(parent)


def environ(pid: int) -> bytes:
    """Return a process's environment, with NULs after entries; empty if it cannot be read."""
    try:
        return Path(f"/proc/{pid}/environ").read_bytes() + b"\0"
    except OSError:
        return b""


def resident(pids: Iterable[int]) -> tuple[int, int]:
    """Return the bytes of memory that processes have mapped: private and shared ones."""
    own = shared = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            _, all_pages, shared_pages, *_ = Path(f"/proc/{pid}/statm").read_bytes().split()
            shared += int(shared_pages) * _PAGE
            own += (int(all_pages) - int(shared_pages)) * _PAGE
    return own, shared


def tmpfs_bytes(pids: Iterable[int], first: int | None) -> int:
    """Return the bytes in each tmpfs of the sandbox, and of namespaces that a command created.

    `first` is the sandbox's first process. Raises UnmeasurableError for a ramfs, which keeps no
    account, and for a tmpfs below another mount.
    """
    # Before the sandbox is complete, its processes see the machine's own mounts.
    ours = {device for device, _, _ in _mounts("self")}
    walls = {device for device, _, _ in _mounts(first)} if first else set()
    used: dict[str, int] = {}
    for space in {_namespace(pid): pid for pid in pids}.values():
        for device, kind, place in _mounts(space):
            if kind not in ("tmpfs", "ramfs") or device in ours or device in used:
                continue
            if kind == "ramfs":
                raise UnmeasurableError("it mounted a ramfs, whose size has no limit")
            with suppress(OSError):
                path = f"/proc/{space}/root{place}"
                found = os.stat(path).st_dev
                if device == f"{os.major(found)}:{os.minor(found)}":
                    volume = os.statvfs(path)
                    files = (volume.f_files - volume.f_ffree) * _FILE_IN_MEMORY
                    blocks = (volume.f_blocks - volume.f_bfree) * volume.f_frsize
                    used[device] = max(files, 0) + blocks
                elif device not in walls:
                    raise UnmeasurableError("it mounted something over a tmpfs, which hides it")
    return sum(used.values())


def _namespace(pid: int) -> str | None:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/mnt")
    return None


def _mounts(pid: int | str) -> Iterator[tuple[str, str, str]]:
    """Yield device, type and path of each mount that a process sees."""
    with suppress(OSError), open(f"/proc/{pid}/mountinfo", errors="surrogateescape") as lines:
        for line in lines:
            _, _, device, _, place, *rest = line.split(" ")
            path = _ESCAPED.sub(lambda found: chr(int(found[1], 8)), place)
            yield device, rest[rest.index("-") + 1], path


def held(pids: Iterable[int], tree: Path) -> Held:
    """Return the bytes of open or mapped files of processes that have no name any more."""
    disk_device = tree.stat().st_dev
    memory: dict[tuple[int, int], int] = {}
    disk: dict[tuple[int, int], int] = {}
    mapped: dict[int, int] = {}
    for pid in pids:
        with suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(found.st_mode) and found.st_nlink == 0:
                        kind = disk if found.st_dev == disk_device else memory
                        kind[found.st_dev, found.st_ino] = found.st_blocks * _BLOCK
        with suppress(OSError), open(f"/proc/{pid}/maps", "rb") as lines:
            for line in lines:
                if b" /memfd:" in line:
                    span, _, offset, _, inode, *_ = line.split()
                    start, _, end = span.partition(b"-")
                    reach = int(offset, 16) + int(end, 16) - int(start, 16)
                    mapped[int(inode)] = max(reach, mapped.get(int(inode), 0))
    # An open file counts with its exact size, a file that is only mapped up to the mapping's end.
    opened = {inode for _, inode in memory}
    closed = sum(size for inode, size in mapped.items() if inode not in opened)
    return Held(sum(memory.values()) + closed, sum(disk.values()))


def shared_segments(pid: int | None) -> int:
    """Return the bytes of the System V segments in a process's namespace."""
    nsenter = shutil.which("nsenter")
    if pid is None or nsenter is None:
        return 0
    words = [nsenter, "--target", str(pid), "--ipc"]
    if os.geteuid():
        words += ["--user", "--preserve-credentials"]
    try:
        done = subprocess.run(
            [*words, "cat", "/proc/sysvipc/shm"],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    heading, *rows = done.stdout.decode(errors="replace").splitlines() or [""]
    columns = heading.split()
    if "rss" not in columns:
        return 0
    return sum(int(row.split()[columns.index("rss")]) for row in rows)


def tree_bytes(tree: Path, limit: int) -> int:
    """Return the bytes in a folder; stops above the limit and does not follow links.

    Raises UnmeasurableError for a path that the system cannot name in one call.
    """
    used = 0
    folders = [os.fspath(tree)]
    while folders and used <= limit:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        used += max(_FILE_ON_DISK, found.st_blocks * _BLOCK)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)
        except OSError as error:
            # The folder was removed meanwhile, or its user has no access to it and so cannot write
            # there.
            if error.errno == errno.ENAMETOOLONG:
                raise UnmeasurableError("it created a path that is too long to measure") from error
    return used


def free_disk_bytes(folder: Path) -> int:
    """Return the free bytes for users on a folder's disk; 0 without a free inode."""
    volume = os.statvfs(folder)
    has_inodes = volume.f_files == 0 or volume.f_favail > 0
    return volume.f_bavail * volume.f_frsize if has_inodes else 0


def free_memory_bytes() -> int | None:
    """Return the available memory of this machine; None if it is not known."""
    return _figure(_MEMINFO, "MemAvailable:", 1_024)


def killed_for_memory() -> int:
    """Return how many processes the kernel has killed so far for lack of memory."""
    return _figure(VMSTAT, "oom_kill", 1) or 0


def _figure(path: Path, name: str, unit: int) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in path.read_text().splitlines():
            words = line.split()
            if words[0] == name:
                return int(words[1]) * unit
    return None
