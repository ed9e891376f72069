"""The identity of a node: one clone of a repository, with the folders of its service."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ..config import Settings, repository_top
from .quarantine import locked

_ID = "id"
_GENERATIONS = "generations"


@dataclass(frozen=True, slots=True)
class NodeIdentity:
    """`node_id` is equal if clone, home and runs directory are the same; `place` is for people."""

    node_id: str
    place: str
    file: Path

    def generations(self) -> Generations:
        """Return what the home's file says. Raises OSError."""
        try:
            found = json.loads(self.file.read_text())
            return Generations(before=str(found["before"]), last=str(found["last"]))
        except (FileNotFoundError, ValueError, TypeError, LookupError):
            return Generations(before="", last="")

    def put(self, generations: Generations) -> None:
        """Replace the home's file; it is on the disk when this returns. Raises OSError."""
        write_whole(self.file, json.dumps(asdict(generations)))


@dataclass(frozen=True, slots=True)
class Generations:
    """The last two marks that processes of a home gave it at their start.

    The database has one of the two: the last one, or the one before if that start did not succeed.
    A home with other marks is an old backup, or a copy of it was started since.
    """

    before: str
    last: str

    def has(self, generation: str) -> bool:
        return generation in (self.before, self.last)


def identify(settings: Settings, objects: Path) -> NodeIdentity:
    """Return the identity of this node; creates the home's id if it has none.

    Paths and host names are not part of it, as containers see one volume under several.
    """
    top = repository_top(settings.repo_path)
    runs_dir = settings.autonomous_runs_dir
    runs = runs_dir.relative_to(top) if runs_dir.is_relative_to(top) else runs_dir
    words = f"{_home_id(settings.home)}:{objects.stat().st_ino}:{runs}"
    # The first migration for nodes makes the id of the earlier one clone in the same way.
    node_id = hashlib.sha256(words.encode(errors="surrogateescape")).hexdigest()[:16]
    file = settings.home / f"{_GENERATIONS}-{node_id}"
    return NodeIdentity(node_id, f"{socket.gethostname()}:{top}", file)


@contextmanager
def locked_home(home: Path) -> Iterator[None]:
    """Hold the lock under which the small files of a home are written."""
    with locked(home / f"{_ID}.lock"):
        yield


def write_whole(file: Path, text: str) -> None:
    """Write a home's file durably, all of it or nothing; one process at a time. Raises OSError.

    A killed process or a full disk would else leave an empty file, which none writes again.
    """
    fresh = file.with_name(f"{file.name}.new")
    with fresh.open("w") as opened:
        opened.write(text)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(fresh, file)


def renew_home(home: Path) -> None:
    """Give a home another id at its next use: its folders are not those of the known node."""
    with locked_home(home):
        (home / _ID).unlink(missing_ok=True)


def _home_id(home: Path) -> str:
    """Return the home's id. A copied home gets its own id, since the id names the file itself."""
    file = home / _ID
    with locked_home(home):
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
