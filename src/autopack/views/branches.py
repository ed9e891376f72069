"""Answers about branches and patches."""

from __future__ import annotations

from typing import Any

from ..domain.changes import RepairKind
from . import Shape, WireTime


class RemoteAnswer(Shape):
    """The state of a run's branch on the remote; `attempts` counts since the last success."""

    url: str
    pushed_commit: str | None
    pushed_at: WireTime | None
    is_up_to_date: bool
    attempts: int
    last_error: str | None
    next_try_at: WireTime | None


class IntegrationStatusAnswer(Shape):
    run_id: str
    branch: str
    exists: bool
    base_branch: str
    commits_ahead_of_main: int
    commits_behind_main: int
    current_commit: str | None
    recorded_commit: str
    last_snapshot: str | None
    files_changed: list[str]
    insertions: int
    deletions: int
    mergeable: bool
    conflicts: list[str]
    remote: RemoteAnswer | None


class RepairAnswer(Shape):
    """One repair of a patch; `line` is in the patch as it was sent."""

    kind: RepairKind
    detail: str
    line: int | None


class PatchCheckAnswer(Shape):
    """The result of a patch check. `problem` is the refusal that a submission would get."""

    phase_id: str
    head: str
    applies: bool
    merged: bool = False
    repairs: tuple[RepairAnswer, ...] = ()
    files_changed: tuple[str, ...] = ()
    insertions: int = 0
    deletions: int = 0
    problem: dict[str, Any] | None = None


class RollbackAnswer(Shape):
    message: str
    commit_sha: str
    snapshot: str
    promotion_eligible_to_main: bool
