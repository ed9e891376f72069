"""What tells one clone of a repository, with the folders of the service on it, from another."""

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
    """`clone` is equal where clone, home and runs directory are the same; `place` is for people."""

    clone: str
    place: str


def identify(settings: Settings, objects: Path) -> CloneIdentity:
    """Tell which clone this is; makes the home's id where it has none.

    No path and no host name is part of it: containers see one volume under several.
    """
    top = repository_top(settings.repo_path)
    runs_dir = settings.autonomous_runs_dir
    runs = runs_dir.relative_to(top) if runs_dir.is_relative_to(top) else runs_dir
    clone = f"{_home_id(settings.home)}:{objects.stat().st_ino}:{runs}"
    return CloneIdentity(clone, f"{socket.gethostname()}:{top}")


def _home_id(home: Path) -> str:
    """Return the home's id; a copy of a home gets one of its own, for its file is another."""
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
