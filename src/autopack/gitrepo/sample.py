"""A small repository to try the service on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

AUTHOR = ("Autopack", "autopack@localhost")


def create_sample_repository(folder: Path, files: Mapping[str, str]) -> None:
    """Create a repository at `folder` with one commit on `main` that contains `files`."""
    from git import Actor, Repo  # here: 0.2 s to import, and only the sample needs it

    # No template: a user's default hooks would make the sample differ between machines.
    with Repo.init(
        folder, initial_branch="main", template="", allow_unsafe_options=True
    ) as repository:
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        repository.index.add(list(files))
        author = Actor(*AUTHOR)
        repository.index.commit(
            "Start the sample\n", author=author, committer=author, skip_hooks=True
        )
