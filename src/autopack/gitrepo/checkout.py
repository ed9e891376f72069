"""A tree checked out in a temporary folder, for CI: the repository itself is only read.

The tree is that of a commit, or one that differs from it in some files.
"""

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
from .workspace import ObjectCache, Workspace


@dataclass(frozen=True, slots=True)
class Checkout:
    """A work tree with its own git directory, whose history is in `objects`."""

    tree: Path
    objects: Path
    workspace: Workspace


@contextmanager
def checked_out(
    settings: Settings, repository: Repository, branch: str, commit: str
) -> Iterator[Checkout]:
    """Check out a commit of a branch; fetch it from the remote if the repository does not have it.

    Folders of processes that were killed are removed first. Raises FetchError when a later try may
    find the commit, else WorkspaceError and OSError.
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
        workspace = cache.lay_out(folder, sources=[source], branch=branch, commit=commit)
        alternates = workspace.tree / ".git" / "objects" / "info" / "alternates"
        yield Checkout(workspace.tree, Path(alternates.read_text().splitlines()[0]), workspace)
    finally:
        _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder that hostile code may have made unreadable or too deep for recursion."""
    for words in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
        subprocess.run(
            [*words, "--", str(folder)],
            env={"PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
