"""Aging of the backlog's entries: it follows the commit that counts reports. (rules §7)

To decide it within that commit, Python would hold entries that other runs wait for.
(docs/decisions/backlog.md)
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from ..domain.debt import LifeKind
from ..domain.issues import BacklogStatus, needs_cleanup
from ..models import BacklogEntry, Run
from ..store import issues
from ..store.session import RowSession
from .context import AppContext


def let_age(
    context: AppContext, session: RowSession, run: Run, entries: Mapping[str, BacklogEntry]
) -> dict[str, BacklogEntry]:
    """Let entries age that a run has reported; return all of them as they are then. (rules §7)

    The caller holds the run's lock, and has no transaction open. Done again, it changes nothing. In
    this run the issues stay as grave as they were.
    """
    due = [entry for entry in entries.values() if _is_due(run, entry)]
    if not due:
        return dict(entries)
    session.begin_change()
    try:
        locked = issues.lock_entries(session, due)
        now = context.now_in(run)
        for entry in locked:
            if _is_due(run, entry):  # it may have aged, or been closed, since it was read
                _age(session, run, entry, now)
        session.commit()
    except BaseException:
        session.rollback()
        raise
    return {**entries, **{entry.issue_key: entry for entry in locked}}


def _is_due(run: Run, entry: BacklogEntry) -> bool:
    return entry.status is BacklogStatus.OPEN and needs_cleanup(
        entry.base_severity,
        age_in_runs=entry.age_in_runs,
        age_in_tiers=entry.age_in_tiers,
        after_runs=run.cleanup_after_runs,
        after_tiers=run.cleanup_after_tiers,
    )


def _age(session: RowSession, run: Run, entry: BacklogEntry, now: datetime) -> None:
    entry.status, entry.needs_cleanup_at = BacklogStatus.NEEDS_CLEANUP, now
    issues.note(
        *(session, run.project_id, entry.issue_key, LifeKind.AGED, now),
        run_id=run.run_id,
        reason=f"seen in {entry.age_in_runs} runs and {entry.age_in_tiers} tiers",
    )
