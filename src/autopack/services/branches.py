"""The run's branch: its state, its difference, a patch check, and the rollback."""

from __future__ import annotations

from typing import Any

from ..domain.changes import printable_path
from ..domain.errors import AutopackError, ConflictError
from ..domain.naming import branch_ref, head_ref
from ..domain.operating import RollbackCommit, require_rollback
from ..domain.order import first_at_hand
from ..domain.outcomes import CommitKind
from ..domain.results import PatchCheck
from ..domain.secret_rules import redact
from ..gitrepo import RepositoryUnusableError
from ..models import Phase, Run
from ..store import runs
from ..views.branches import (
    IntegrationStatusAnswer,
    PatchCheckAnswer,
    RepairAnswer,
    RollbackAnswer,
)
from . import patching
from .context import AppContext
from .pushes import remote_status
from .reading import get_current_run
from .replies import Answer, changing_once, key_scope, once
from .settling import settle


class NoSnapshotError(ConflictError):
    code = "no_snapshot"


def integration_status(context: AppContext, run_id: str) -> IntegrationStatusAnswer:
    """Compare a run's branch with the base branch, by a real merge in memory."""
    run = get_current_run(context, run_id)
    with context.reading() as session:
        remote = remote_status(context, session, run)
    repository = context.repository
    current = repository.read_ref(branch_ref(run_id))
    base = repository.read_ref(head_ref(run.base_branch))
    if base is None:
        raise RepositoryUnusableError(f"there is no branch '{run.base_branch}' any more")
    common: dict[str, Any] = {
        "run_id": run_id,
        "branch": run.branch,
        "base_branch": run.base_branch,
        "current_commit": current,
        "recorded_commit": run.head_commit,
        "last_snapshot": run.last_snapshot,
        "remote": remote,
    }
    if current is None:
        return IntegrationStatusAnswer(
            **common,
            exists=False,
            commits_ahead_of_main=0,
            commits_behind_main=0,
            files_changed=[],
            insertions=0,
            deletions=0,
            mergeable=False,
            conflicts=[],
        )
    ahead, behind = repository.ahead_behind(current, base)
    # Readers want the work, without the commit of its record.
    changed = run.work_commit if current == run.head_commit else current
    difference = repository.diff_stat(run.base_commit, changed)
    merge = repository.try_merge(base, current)
    return IntegrationStatusAnswer(
        **common,
        exists=True,
        commits_ahead_of_main=ahead,
        commits_behind_main=behind,
        files_changed=[printable_path(path) for path in difference.files],
        insertions=difference.insertions,
        deletions=difference.deletions,
        mergeable=merge.mergeable,
        conflicts=[printable_path(path) for path in merge.conflicts],
    )


def diff(context: AppContext, run_id: str, phase_id: str | None) -> bytes:
    """Return the difference of a run's branch from its base, or the changes of one phase."""
    run = get_current_run(context, run_id)
    if phase_id is None:
        return context.repository.diff(run.base_commit, run.work_commit)
    return phase_diff(context, runs.get_phase(run, phase_id))


def phase_diff(context: AppContext, phase: Phase) -> bytes:
    """Return what a phase changed so far; nothing before its first commit."""
    if phase.start_commit is None or phase.commit is None:
        return b""
    return context.repository.diff(phase.before_commit or phase.start_commit, phase.commit)


def check_patch(
    context: AppContext, run_id: str, check: PatchCheck
) -> tuple[PatchCheckAnswer, AutopackError | None]:
    """Check a patch by policy and by applying it without storing; nothing is recorded.

    The refusal that a submission would get is part of the answer.
    """
    run = get_current_run(context, run_id)
    phase = runs.get_phase(run, check.phase_id) if check.phase_id else _next_phase(run)
    answer = PatchCheckAnswer(phase_id=phase.phase_id, head=run.head_commit, applies=False)
    try:
        applied = context.repository.dry_apply(
            run.head_commit,
            check.patch(),
            patching.policy_check_for(context.settings, run, phase),
            base_commit=check.base_commit or patching.began_at(run, phase, run.head_commit),
        )
    except patching.PATCH_FAULTS as error:
        return answer, error
    found = PatchCheckAnswer.of(
        answer,
        applies=True,
        merged=applied.merged,
        repairs=[RepairAnswer.of(repair) for repair in applied.repairs],
        files_changed=[file.printable_path for file in applied.changes],
        insertions=applied.insertions,
        deletions=applied.deletions,
    )
    return found, None


def rollback(
    context: AppContext, run_id: str, to_phase: str, reason: str, idempotency_key: str | None
) -> Answer:
    """Reset the branch of a run that is over to a snapshot, by a new commit.

    History is never rewritten; the run becomes ineligible for promotion.
    """
    request = {"to_phase": to_phase, "reason": reason}
    identity = once("rollback", request, [key_scope(idempotency_key)])
    reason = redact(reason)
    with changing_once(context, run_id, identity) as turn:
        if turn.is_new:
            change = turn.change
            phase = change.phase(to_phase)
            require_rollback(change.state)
            if phase.snapshot_commit is None or phase.snapshot_tag is None:
                raise NoSnapshotError(
                    f"phase '{to_phase}' has no snapshot: it is {phase.state}, not COMPLETE"
                )
            patching.require_free_branch(change)
            commit = change.add_commit(
                CommitKind.ROLLBACK,
                context.repository.tree_of(phase.snapshot_commit),
                f"Roll back to the snapshot of phase {to_phase}\n\n{reason}\n\n"
                f"Autopack-Run: {run_id}\nAutopack-Phase: {to_phase}\n",
                phase=phase,
            )
            change.decide(RollbackCommit(to_phase=to_phase, commit=commit.sha, reason=reason))
            settle(change)
            turn.answer(
                RollbackAnswer(
                    message=f"branch {change.run.branch} is back at the snapshot of '{to_phase}'",
                    commit_sha=commit.sha,
                    snapshot=phase.snapshot_tag,
                    promotion_eligible_to_main=change.run.promotion_eligible_to_main,
                )
            )
    return turn.result()


def _next_phase(run: Run) -> Phase:
    phases = run.phases
    return first_at_hand(phases) or phases[-1]
