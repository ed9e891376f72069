"""The merge of a run's branch with today's base branch, rehearsed in memory."""

from __future__ import annotations

from ..domain.changes import printable_path
from ..domain.errors import UnavailableError
from ..domain.naming import branch_ref, head_ref
from ..domain.rehearsal import (
    Rehearsal,
    RehearsalResult,
    missing_branch,
    missing_record,
    rehearsal_reasons,
)
from ..models import Run
from .context import AppContext


def rehearse(context: AppContext, run: Run) -> tuple[Rehearsal | None, tuple[str, ...]]:
    """Merge a run's branch with its base branch as both are now; return the reasons against it.

    There is no rehearsal if a branch is missing, if the run's own is not at the recorded commit, or
    if git fails; each is a reason too. Needs at most two processes of git.
    """
    repository = context.repository
    base = repository.read_ref(head_ref(run.base_branch))
    if base is None:
        return None, (missing_branch(run.base_branch, is_base=True),)
    head = repository.read_ref(branch_ref(run.run_id))
    if head is None:
        return None, (missing_branch(run.branch),)
    if head != run.head_commit:
        return None, (f"branch '{run.branch}' is at {head}, the run recorded {run.head_commit}",)
    try:
        rehearsal = _rehearse(context, run, head, base)
    except UnavailableError as error:
        why = f"the merge with '{run.base_branch}' cannot be rehearsed: {error.detail}"
        return None, (why,)
    reasons = rehearsal_reasons(rehearsal, run.trunk)
    if run.ended_at is not None and not run.has_record:
        reasons += (missing_record(run.branch, run.run_id),)
    return rehearsal, reasons


def _rehearse(context: AppContext, run: Run, head: str, base: str) -> Rehearsal:
    def came_to(result: RehearsalResult, files: tuple[str, ...] = ()) -> Rehearsal:
        return Rehearsal(result=result, base_branch=run.base_branch, base_commit=base, files=files)

    if run.trunk != base and not context.repository.is_ancestor(run.trunk, base):
        return came_to(RehearsalResult.BEHIND)
    merge = context.repository.try_merge(base, head)
    if merge.mergeable:
        return came_to(RehearsalResult.CLEAN)
    return came_to(RehearsalResult.CONFLICT, tuple(map(printable_path, merge.conflicts)))
