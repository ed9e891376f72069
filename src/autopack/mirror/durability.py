"""Which files of the runs directory a stop of the machine may have cost.

A request does not wait until its files are on the disk: Postgres can give all of them again. Every
few seconds the directory's whole file system is synced instead, and a mark beside the runs notes up
to which event that was, and in which start of the machine. In another one, what came later may be
truncated, empty, missing or old, and is written again. (docs/architecture.md, "A power cut")
"""

from __future__ import annotations

import ctypes
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from .files import NewFile, OpenFolder, exists, open_top, read_head, replace_files, usable

MARK: Final = ".synced.json"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MARK_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class SyncMark:
    """Up to which event of the database the files were on the disk, and in which start."""

    event: int
    boot: str


def boot_id() -> str:
    """Return what names this start of the machine; empty where the system has no such name."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def read_mark(runs_dir: Path) -> SyncMark | None:
    """Return the mark; None: there is none yet, and every file was synced when it was written.

    A mark that cannot be read vouches for nothing. Raises MirrorUnusableError.
    """
    with usable(runs_dir), open_top(runs_dir) as top:
        if not exists(top, MARK):
            return None
        text = read_head(top, MARK, _MARK_BYTES)
    try:
        found = json.loads(text)
        return SyncMark(event=int(found["event"]), boot=str(found["boot"]))
    except (ValueError, TypeError, LookupError):
        return SyncMark(event=0, boot="")


def sync(runs_dir: Path, mark: SyncMark) -> None:
    """Bring every file to the disk, and then set the mark. Raises MirrorUnusableError."""
    with usable(runs_dir), open_top(runs_dir) as top:
        sync_file_system(top)
        text = json.dumps(asdict(mark)).encode()
        replace_files(top, [NewFile(top, MARK, text)], durably=True)


def sync_file_system(folder: OpenFolder) -> None:
    syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)  # Linux alone has it
    if syncfs is None:
        os.sync()
    elif syncfs(folder.descriptor) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
