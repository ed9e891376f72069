"""What the archive of one run says of itself, and what came of its import."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from . import Shape

Oid = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class RunManifest(Shape):
    """The contents of a run's archive. (docs/backup.md)"""

    kind: Literal["autopack-run"] = "autopack-run"
    format: Literal[1] = 1
    autopack: str
    created_at: datetime
    revision: str
    run_id: str
    base_branch: str
    base_commit: Oid
    head_commit: Oid
    event_hash: str
    rows: int


class ExportAnswer(Shape):
    file: str
    size_bytes: int
    manifest: RunManifest


class ImportAnswer(Shape):
    run_id: str
    state: str
    head_commit: str
    is_new: bool
