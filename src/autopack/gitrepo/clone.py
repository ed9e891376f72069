"""The identity of one clone of a repository, together with the folders of its service."""

from __future__ import annotations

import os
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..config import Settings, repository_top
from .quarantine import locked

_ID = "id"


@dataclass(frozen=True, slots=True)
class CloneIdentity:
    """`clone` is equal if clone, home and runs directory are the same; `place` is for people."""

    clone: str
    place: str


def identify(settings: Settings, objects: Path) -> CloneIdentity:
    """Return the identity of this clone; creates the home's id if it has none.

    Paths and host names are not part of it, as containers see one volume under several.
    """
    top = repository_top(settings.repo_path)
    runs_dir = settings.autonomous_runs_dir
    runs = runs_dir.relative_to(top) if runs_dir.is_relative_to(top) else runs_dir
    clone = f"{_home_id(settings.home)}:{objects.stat().st_ino}:{runs}"
    return CloneIdentity(clone, f"{socket.gethostname()}:{top}")


def _home_id(home: Path) -> str:
    """Return the home's id. A copied home gets its own id, since the id names the file itself."""
    file = home / _ID
    with locked(home / f"{_ID}.lock"):
        if file.is_file():
            known, _, inode = file.read_text().strip().partition(" ")
            if inode == str(file.stat().st_ino):
                return known
        fresh = file.with_suffix(".new")
        fresh.write_text("")
        made = uuid.uuid4().hex
        fresh.write_text(f"{made} {fresh.stat().st_ino}\n")
        os.replace(fresh, file)
        return made
