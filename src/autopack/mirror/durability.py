"""Which files of the runs directory a stop of the machine may have damaged.

A request does not wait until its files are on the disk, because Postgres can give all of them
again. Instead, every few seconds the directory's whole file system is synced, and a mark beside the
runs records the last event before that and the start of the machine. After another start, files of
later events may be truncated, empty, missing or old: they are written again, with some before the
mark (services/upkeep.py), and so are git objects that were made again from Postgres. What is
written without an event is synced at once. (docs/architecture.md, "A power cut")
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from .. import syncing
from .files import NewFile, exists, lock, open_top, read_head, replace_files, usable

MARK: Final = ".synced.json"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_MARK_BYTES: Final = 1_024


@dataclass(frozen=True, slots=True)
class SyncMark:
    """The last event whose files were on the disk, and the start of the machine at that time."""

    event: int
    boot: str


def boot_id() -> str:
    """Return the id of this start of the machine; empty where the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def read_mark(runs_dir: Path) -> SyncMark | None:
    """Return the mark; None without one: then no service has written files without syncing them.

    After a mark that cannot be read, no file is trusted. Raises MirrorUnusableError.
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


def sync(runs_dir: Path, folders: Sequence[Path], mark: SyncMark) -> None:
    """Sync every file of the folders, and then set the mark. Raises MirrorUnusableError."""
    sync_all(folders)
    with usable(runs_dir), open_top(runs_dir) as top:
        lock(top)
        text = json.dumps(asdict(mark)).encode()
        replace_files(top, [NewFile(top, MARK, text)], durably=True)


def sync_all(folders: Sequence[Path]) -> None:
    """Sync the file systems that folders are on. Raises MirrorUnusableError."""
    synced: set[int] = set()
    for path in folders:
        with usable(path), open_top(path) as folder:
            device = os.fstat(folder.descriptor).st_dev
            if device not in synced:
                syncing.sync_file_system(folder.descriptor)
            synced.add(device)
