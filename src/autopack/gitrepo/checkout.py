"""A commit checked out in a throw-away folder, for CI: the repository itself is only read."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..config import Settings
from .quarantine import lock_folder, remove_leftovers
from .repository import Repository
from .workspace import ObjectCache


@dataclass(frozen=True, slots=True)
class Checkout:
    """A work tree with a git dir of its own, whose history lies in `objects`."""

    tree: Path
    objects: Path


@contextmanager
def checked_out(
    settings: Settings, repository: Repository, branch: str, commit: str
) -> Iterator[Checkout]:
    """Check a commit of a branch out; fetch it from the remote where the repository lacks it.

    What was left over by processes that were killed is removed first. Raises FetchError when the
    commit may be there in a moment, else WorkspaceError and OSError.
    """
    parent = settings.home / "ci"
    parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parent, _remove)
    remote = repository.remote
    is_here = repository.has_commit(commit) or remote is None
    folder = Path(tempfile.mkdtemp(prefix="run-", dir=parent))
    lock = lock_folder(folder)
    try:
        cache = ObjectCache(
            settings.home / "copies",
            str(settings.ssh_auth_sock) if settings.ssh_auth_sock else None,
        )
        source = str(repository.git_dir) if is_here or remote is None else remote.address
        tree = cache.lay_out(folder, sources=[source], branch=branch, commit=commit).tree
        alternates = tree / ".git" / "objects" / "info" / "alternates"
        yield Checkout(tree, Path(alternates.read_text().splitlines()[0]))
    finally:
        _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove what hostile code may have left: folders closed to us, or too deep for recursion."""
    for words in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
        subprocess.run(
            [*words, "--", str(folder)],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
