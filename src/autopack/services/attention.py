"""What needs a person, gathered from the database, git and the disks. (docs/attention.md)"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ..domain.access import AccessRole
from ..domain.attention import (
    MOST_OF_A_KIND,
    ClosedAs,
    Disk,
    EndedRun,
    Need,
    NotDismissibleError,
    Situation,
    dismissed_run,
    needs,
)
from ..domain.audit_log import AuditAction
from ..domain.errors import UnavailableError
from ..domain.events import SUPERVISOR
from ..domain.naming import branch_ref, head_ref
from ..models import Run
from ..store import attention as store
from ..views.attention import ActionAnswer, AttentionAnswer, AttentionItem, DismissalAnswer
from .audit_log import note
from .context import AppContext
from .reading import one_moment
from .rehearsal import rehearse

# The merges of this many runs, the last ones, are rehearsed, once for each pair of commits.
REHEARSED: Final = 50
KEPT_REHEARSALS: Final = 2_000


def attention(context: AppContext) -> AttentionAnswer:
    """Return what needs a person; only operators get the items about keys and webhooks."""
    situation, is_complete = _situation(context)
    is_operator = AccessRole.OPERATOR in context.caller.roles
    found = needs(situation, context.now(), is_operator=is_operator)
    return AttentionAnswer(
        count=len(found), is_complete=is_complete, items=[_item(need) for need in found]
    )


def dismiss(context: AppContext, item: str) -> DismissalAnswer:
    """Close the run that an item is about, so that it needs no person any more.

    A run that is closed already stays as it is. Raises NotFoundError, NotDismissibleError.
    """
    run_id = dismissed_run(item)
    with context.writing() as session:
        now = context.now()
        by = context.caller.actor
        closed = store.close_run(session, run_id, now, by=by, how=ClosedAs.DISMISSED)
        if closed is None:
            raise NotDismissibleError(f"run '{run_id}' is not over, so it cannot be dismissed")
        closed_at, closed_by, closed_as = closed
        if (closed_at, closed_by) == (now, by):
            note(session, context, AuditAction.ATTENTION_DISMISSED, run_id, {"item": item})
        session.commit()
    return DismissalAnswer(
        run_id=run_id, closed_at=closed_at, closed_by=closed_by, closed_as=closed_as
    )


def close_merged_runs(context: AppContext) -> None:
    """Close runs whose work is in the base branch: by a merge, a squash, or by hand."""
    now = context.now()
    with context.reading() as session:
        found = store.list_succeeded(session, now, REHEARSED)
    merged = [run.run_id for run in found if _today(context, run)[1]]
    if merged:
        with context.writing() as session:
            for run_id in merged:
                store.close_run(session, run_id, now, by=SUPERVISOR, how=ClosedAs.MERGED)
            session.commit()


def _item(need: Need) -> AttentionItem:
    action = asdict(need.action)
    action["path"] = need.action.path or need.evidence
    return AttentionItem.of(need, severity=need.urgency, action=ActionAnswer(**action))


def _situation(context: AppContext) -> tuple[Situation, bool]:
    """Return everything that the rules look at, and whether no ended run was left out."""
    now = context.now()
    with one_moment(context) as session:
        runs = store.list_unclosed(session, now)
        live = store.list_low_budgets(session, now)
        phases = store.list_open_phases(session)
        pushes = store.find_failing_pushes(session)
        issues = store.find_aged_issues(session, context.settings.project_id)
        keys = store.list_expiring_keys(session, now)
        webhooks = store.list_stopped_webhooks(session)
    situation = Situation(
        ended=_ended(context, runs[:MOST_OF_A_KIND]),  # git runs outside of the transaction
        live=live,
        phases=phases,
        pushes=pushes if context.repository.remote is not None else None,
        issues=issues,
        disks=_disks(context),
        keys=keys,
        webhooks=webhooks,
    )
    is_complete = len(runs) <= MOST_OF_A_KIND and max(len(live), len(phases)) < MOST_OF_A_KIND
    return situation, is_complete


def _ended(context: AppContext, runs: Sequence[Run]) -> list[EndedRun]:
    succeeded = [run.run_id for run in runs if run.failure_code is None]
    rehearsed = set(succeeded[:REHEARSED])
    found = []
    for run in runs:
        today: tuple[str, ...] = ()
        if run.run_id in rehearsed:
            today, is_merged = _today(context, run)
            if is_merged:
                continue  # the upkeep closes it
        found.append(
            EndedRun(
                run_id=run.run_id,
                state=run.state,
                failure_code=run.failure_code,
                failure_reason=run.failure_reason,
                is_eligible=run.promotion_eligible_to_main,
                reasons=run.promotion_reasons,
                today=today,
                base_branch=run.base_branch,
                ended_at=run.ended_at or run.updated_at,
            )
        )
    return found


def _today(context: AppContext, run: Run) -> tuple[tuple[str, ...], bool]:
    """Return the reasons against a run's merge as of now, and whether its work is merged.

    The result is kept for the commits of both branches, since a rehearsal starts three processes.
    """
    repository = context.repository
    base = repository.read_ref(head_ref(run.base_branch)) or ""
    head = repository.read_ref(branch_ref(run.run_id)) or ""
    key = (run.run_id, run.head_commit, head, base)
    if (known := context.rehearsals.pop(key, None)) is not None:
        context.rehearsals[key] = known  # the newest of its run is the last
        return known
    try:
        is_merged = bool(base) and _is_merged(context, run, base)
    except UnavailableError:
        is_merged = False
    _, reasons = ((), ()) if is_merged else rehearse(context, run)
    if len(context.rehearsals) >= KEPT_REHEARSALS:
        context.rehearsals.clear()
    context.rehearsals[key] = reasons, is_merged
    return reasons, is_merged


@dataclass(frozen=True, slots=True)
class LastRehearsal:
    """The result of the last rehearsal of the merge of a run."""

    head_commit: str
    reasons: tuple[str, ...]
    is_merged: bool


def last_rehearsals(context: AppContext) -> dict[str, LastRehearsal]:
    """Return the results of the last rehearsals by run id, without a new rehearsal."""
    return {
        run_id: LastRehearsal(head_commit, reasons, is_merged)
        for (run_id, head_commit, *_), (reasons, is_merged) in [*context.rehearsals.items()]
    }


def _is_merged(context: AppContext, run: Run, base: str) -> bool:
    """Say whether a merge of the work would change nothing; a run without a change has no work."""
    repository = context.repository
    if repository.tree_of(run.work_commit) == repository.tree_of(run.base_commit):
        return False
    merge = repository.try_merge(base, run.work_commit)
    return merge.mergeable and merge.tree == repository.tree_of(base)


def _disks(context: AppContext) -> list[Disk]:
    folders = {
        "home": context.settings.home,
        "repository": context.repository.objects.folder,
        "runs_directory": context.settings.autonomous_runs_dir,
    }
    found: dict[int, Disk] = {}  # by device: one disk is one item
    for name, folder in folders.items():
        try:
            device, disk = os.stat(folder).st_dev, disk_of(name, folder)
        except OSError:
            continue  # /health says what is wrong with it
        found.setdefault(device, disk)
    return list(found.values())


def disk_of(name: str, folder: Path) -> Disk:
    """Return the room on the file system of a folder. Raises OSError."""
    now = os.statvfs(folder)
    return Disk(
        name=name,
        folder=str(folder),
        free_bytes=now.f_bavail * now.f_frsize,
        total_bytes=now.f_blocks * now.f_frsize,
        free_inodes=now.f_favail,
        total_inodes=now.f_files,
    )
