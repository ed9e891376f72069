"""What a backup says of itself, and what came of its restore."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from . import Shape


class BackupManifest(Shape):
    """The contents of a backup. (docs/backup.md)"""

    kind: Literal["autopack-backup"] = "autopack-backup"
    format: Literal[1] = 1
    autopack: str
    created_at: datetime
    project_id: str
    revision: str
    postgres: int
    dump_program: int
    schema_name: str
    root_commits: list[str]
    is_shallow: bool
    runs: int
    refs: int


class BackupAnswer(Shape):
    file: str
    size_bytes: int
    manifest: BackupManifest
    warnings: list[str]


class RestoredRun(Shape):
    """A run after a restore; without problems it is as it was when the backup was made."""

    run_id: str
    state: str
    head_commit: str
    events: int
    has_branch: bool
    problems: list[str]


class RestoreAnswer(Shape):
    file: str
    manifest: BackupManifest
    revision: str
    # Branches and tags that were elsewhere, and where they are kept; branches of other runs.
    set_aside: dict[str, str]
    unknown_branches: list[str]
    runs: list[RestoredRun]
    problems: int
