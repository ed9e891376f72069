"""A small repository to try the service on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pygit2


def create_sample_repository(folder: Path, files: Mapping[str, str]) -> None:
    """Make a repository at `folder` with one commit on `main` that holds `files`."""
    repository = pygit2.init_repository(folder, initial_head="main")
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        repository.index.add(name)
    repository.index.write()
    author = pygit2.Signature("Autopack", "autopack@localhost")
    tree = repository.index.write_tree()
    repository.create_commit("refs/heads/main", author, author, "Start the sample\n", tree, [])
