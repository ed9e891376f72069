"""Removes the details of runs that were settled long ago. (rules §10, docs/backup.md)

One run is one short transaction under the run's own lock, so requests of other runs never wait, and
a killed job leaves every run whole or removed. Before the details go, the record in the repository
is read and checked: from then on it is the only copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Final

import structlog
from sqlalchemy.exc import DBAPIError

from ..domain.errors import AutopackError
from ..store import nodes, pulses, runs
from ..store import retention as store
from ..store.runs import RunBusyError
from ..views.retention import RetentionAnswer
from .context import AppContext
from .opening import locked_session, up_to_date
from .projection import project
from .verifying import RecordDamagedError, recorded_end

logger = structlog.get_logger(__name__)

BATCH: Final = 100
TURN: Final = "retention"
PAUSE_SECONDS: Final = 3600
# After each run the job rests as long as the run took: it uses half of one connection at most.
_LONGEST_REST_SECONDS: Final = 1.0


class Retention:
    """The periodic work of one process: one node at a time, one pass an hour."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._next_at = 0.0

    def __call__(self) -> None:
        age = self._context.settings.retention
        if age is None or time.monotonic() < self._next_at:
            return
        with self._context.writing() as session:
            if not pulses.try_turn(session, TURN):
                return
            done = retain(self._context, age, keep_turn=partial(pulses.keep_turn, session))
        self._next_at = time.monotonic() + PAUSE_SECONDS
        if done.runs:
            logger.info("details_removed", runs=done.runs, bytes=done.bytes)


def retain(
    context: AppContext,
    age: timedelta,
    *,
    is_dry_run: bool = False,
    keep_turn: Callable[[], None] | None = None,
) -> RetentionAnswer:
    """Remove the details of runs that were settled so long ago, or count them. (rules §10)

    A run that is busy, or whose record cannot be read, keeps its details until the next time.
    `keep_turn`: of periodic work. It rests after each run, and notes its progress for monitoring.
    """
    before = context.now() - age
    removed = size = 0
    kept = _Kept()
    place: store.OldRun | None = None
    with context.reading() as session:
        old_runs = store.count_old(session, before)
    while not context.stopping.is_set():
        if keep_turn is not None:
            _note(context, max(0, old_runs.due - removed), kept.failed)
        with context.reading() as session:
            batch = store.list_settled(session, before, place, BATCH)
            sizes = store.count_bytes(session, [run.id for run in batch]) if batch else 0
        if not batch:
            break
        place = batch[-1]
        found: list[int] = []
        for old in batch:
            began = time.monotonic()
            if _take(context, old, before, is_dry_run=is_dry_run, kept=kept):
                found.append(old.id)
            if keep_turn is not None:
                keep_turn()
                rest = min(time.monotonic() - began, _LONGEST_REST_SECONDS)
                if context.stopping.wait(rest):
                    break
        if found and not is_dry_run:
            _mark(context, found)
        removed += len(found)
        size += sizes if len(found) == len(batch) else sizes * len(found) // len(batch)
    return RetentionAnswer(
        before=before,
        is_dry_run=is_dry_run,
        runs=removed,
        bytes=size,
        kept_not_settled=old_runs.not_settled,
        kept_without_record=old_runs.without_record + kept.damaged,
        kept_in_use=old_runs.in_use,
    )


@dataclass
class _Kept:
    """How many runs keep their details because of an error, and of these because of the record."""

    failed: int = 0
    damaged: int = 0


def _take(
    context: AppContext, old: store.OldRun, before: datetime, *, is_dry_run: bool, kept: _Kept
) -> bool:
    """Remove the details of one run, or see whether they would be; count an error, and go on."""
    try:
        return _is_recorded(context, old) if is_dry_run else _remove(context, old, before)
    except RunBusyError as error:
        logger.info("details_kept", run_id=old.run_id, why=error.detail)
    except (AutopackError, DBAPIError) as error:
        kept.failed += 1
        kept.damaged += isinstance(error, RecordDamagedError)
        logger.warning("details_kept", run_id=old.run_id, why=str(error))
    return False


def _note(context: AppContext, due: int, failed: int) -> None:
    with context.writing() as session:
        store.note_progress(session, due=due, failed=failed)
        session.commit()


def _is_recorded(context: AppContext, old: store.OldRun) -> bool:
    """Return True for a run whose record this node can read, or has to make again.

    Raises RecordDamagedError.
    """
    with context.reading() as session:
        run = runs.get_run(session, old.run_id)
    if run.mirrored_by == context.node_id:
        recorded_end(context.repository, run)
    return True


def _remove(context: AppContext, old: store.OldRun, before: datetime) -> bool:
    """Remove the details of one run; return whether it was done.

    Raises RecordDamagedError, and RunBusyError while a request has the run.
    """
    with locked_session(context, old.run_id, is_waiting=False) as session:
        run = runs.lock_run(session, old.run_id)
        if run.mirrored_by != context.node_id:  # its record is read here
            run = up_to_date(context, session, old.run_id)
        if not store.may_be_removed(session, old, before):
            session.rollback()
            return False
        end = recorded_end(context.repository, run)
        store.remove_details(session, run.id, recorded=end.sequence, now=context.now())
        session.commit()
        run = runs.lock_run(session, old.run_id)
        project(context, session, run, phases=None, index=None)
        session.commit()
    return True


def _mark(context: AppContext, run_pks: list[int]) -> None:
    """Record that the files of runs are removed, when they are off the disk too.

    Else a power cut would bring them back, and nothing would remove them again. Runs without the
    mark lag, so the upkeep removes their files.
    """
    try:
        context.mirror.sync_unmarked()
    except AutopackError as error:
        logger.warning("files_not_synced", why=error.detail)
        return
    with context.autocommitting() as session:
        nodes.mark_removed(session, run_pks, context.node_id)
