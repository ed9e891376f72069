"""The parts of a finished run's record besides the run itself. (docs/promotion.md)"""

from __future__ import annotations

from typing import Any

from ..domain.outcomes import CommitKind
from ..domain.terms import CiProfile, Sandbox, Verdict
from . import Shape


class RecordedCommit(Shape):
    """One commit of the run's branch, and the patch that it was made from."""

    sha: str
    tree: str
    parent: str
    kind: CommitKind
    phase_id: str | None
    patch_sha256: str | None
    is_merged: bool


class RecordedCiRun(Shape):
    """One run of CI on one commit."""

    commit_sha: str
    profile: CiProfile
    attempt: int
    verdict: Verdict | None
    sandbox: Sandbox | None
    is_flaky: bool
    tests: dict[str, Any] | None
    url: str | None
    reason: str | None
