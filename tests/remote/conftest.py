"""Remotes as people have them: bare repositories, by path, by file:// and over smart HTTP."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr

from autopack.config import Settings
from autopack.gitrepo import Remote, Repository

from .git_server import GitServer, git_server

if TYPE_CHECKING:
    from tests.conftest import GitRepo


@dataclass(frozen=True)
class Bare:
    """A bare repository that is pushed to."""

    path: Path

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-c", "user.name=Eve", "-c", "user.email=eve@example.org", *arguments],
            cwd=self.path,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    def refs(self) -> dict[str, str]:
        rows = self.git("for-each-ref", "--format=%(refname) %(objectname)").splitlines()
        return dict(row.split(" ") for row in rows)

    def refuse_pushes(self, words: str = "not today") -> None:
        """Let its own hook refuse whatever is pushed."""
        hook = self.path / "hooks" / "pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
        hook.chmod(0o755)

    def take_pushes(self) -> None:
        (self.path / "hooks" / "pre-receive").unlink()

    def commit_on(self, parent: str, message: str = "Mine") -> str:
        """Make a commit that no other repository has."""
        return self.git("commit-tree", "-m", message, "-p", parent, f"{parent}^{{tree}}")


@pytest.fixture
def bare(tmp_path: Path) -> Bare:
    path = tmp_path / "remotes" / "bare.git"
    path.mkdir(parents=True)
    bare = Bare(path)
    bare.git("init", "--quiet", "--bare", "--initial-branch=main")
    bare.git("config", "http.receivepack", "true")
    return bare


@pytest.fixture
def server(bare: Bare) -> Iterator[GitServer]:
    with git_server(bare.path.parent) as server:
        yield server


OpenRemote = Callable[..., Remote]


@pytest.fixture
def open_remote(git_repo: GitRepo, tmp_path: Path) -> OpenRemote:
    """Open the sample repository with a remote, without a service around it."""

    def open_one(address: str, *, repo_path: Path = git_repo.path, seconds: int = 600) -> Remote:
        settings = Settings(
            _env_file=None,
            repo_path=repo_path,
            home=tmp_path / "home",
            git_remote=SecretStr(address),
            git_push_timeout_seconds=seconds,
        )
        remote = Repository.open(settings).remote
        assert remote is not None
        return remote

    return open_one
