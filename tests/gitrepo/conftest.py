"""Repositories as users have them, and patches between any two states of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pygit2
import pytest

from autopack.config import Settings
from autopack.gitrepo import Repository

if TYPE_CHECKING:
    from tests.conftest import GitRepo

State = Mapping[str, bytes | tuple[str, bytes]]


@dataclass
class History:
    """Makes commits of any state, the checkout untouched, and patches between them."""

    repo: GitRepo
    count: int = 0

    def commit(self, files: State) -> str:
        """Commit exactly these files, each a content or a mode and a content."""
        self.count += 1
        ref = f"refs/states/{self.count}"
        stream = [
            f"commit {ref}\ncommitter A <a@localhost> 1 +0000\ndata 1\nx\ndeleteall\n".encode()
        ]
        for path, value in files.items():
            mode, data = value if isinstance(value, tuple) else ("100644", value)
            name = b'"%b"' % b"".join(b"\\%03o" % byte for byte in path_bytes(path))
            if mode == "160000":
                stream.append(b"M 160000 %b %b\n" % (data, name))
            else:
                stream.append(b"M %b inline %b\ndata %d\n" % (mode.encode(), name, len(data)))
                stream += data, b"\n"
        self.repo.git("fast-import", "--quiet", "--force", stdin=b"".join(stream))
        return (self.repo.path / ".git" / ref).read_text().strip()

    def patch(self, old: str, new: str, *options: str) -> bytes:
        """Return git's own patch from one commit to another, byte for byte."""
        command = ["git", "diff", "--binary", "--full-index", *options, old, new]
        done = subprocess.run(command, cwd=self.repo.path, capture_output=True, check=True)
        return done.stdout

    def tree(self, commit: str) -> str:
        kind, data = pygit2.Odb(self.repo.path / ".git" / "objects").read(commit)
        assert kind == pygit2.enums.ObjectType.COMMIT
        return data[len("tree ") :][:40].decode()


def path_bytes(path: str) -> bytes:
    return path.encode(errors="surrogateescape")


OpenRepository = Callable[..., Repository]


@pytest.fixture
def open_repository(tmp_path: Path) -> OpenRepository:
    """Open the repository at a path, with settings other than the default where given."""

    def open_at(path: Path, **settings: object) -> Repository:
        folders = {"home": tmp_path / "home", "autonomous_runs_dir": tmp_path / "runs"}
        values = {"repo_path": path, **folders, **settings}
        return Repository.open(Settings.model_validate(values))

    return open_at


@pytest.fixture
def repository(git_repo: GitRepo, open_repository: OpenRepository) -> Repository:
    return open_repository(git_repo.path)


@pytest.fixture
def history(git_repo: GitRepo) -> History:
    return History(git_repo)
