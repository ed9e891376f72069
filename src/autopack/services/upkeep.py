"""What is done without being asked: at start, and every few seconds."""

from __future__ import annotations

import structlog
from sqlalchemy.exc import DBAPIError

from ..domain.errors import AutopackError
from ..store import counts, pulses, runs
from .context import AppContext
from .opening import changing
from .projection import is_branch_elsewhere, project_backlog
from .rulesets import read_ruleset, restore_ruleset

logger = structlog.get_logger(__name__)

BATCH = 100
LATEST_RUNS = 50
EVENTS_UNDER_WAY = 10_000  # at most so many events are numbered by changes not yet committed
PULSE = "upkeep"
UPKEEP_QUEUE = "upkeep"  # of those who have the repository and the runs' folder


def start_up(context: AppContext) -> None:
    """Lay out the project's files and roll forward whatever lags from before."""
    context.mirror.prepare()
    _distrust_files(context)
    _find_lost_files(context)
    try:
        read_ruleset(context)
    except AutopackError as error:
        logger.warning("ruleset_refused", why=error.detail)  # starts are refused, all else works
    with context.reading() as session:
        project_backlog(context, session)
    keep_up(context)


def _distrust_files(context: AppContext) -> None:
    """After a stop of the machine, let those runs lag whose files it may have damaged."""
    event = context.mirror.unsynced_since()
    if event is None:
        return
    with context.writing() as session:
        # A change that was not committed when the mark was made has a number below the mark's.
        changed = runs.list_changed_since(session, event - EVENTS_UNDER_WAY)
        runs.forget_mirrored(session, changed)
        session.commit()
    logger.warning("files_written_again", runs=len(changed), why="the machine was stopped")


def _find_lost_files(context: AppContext) -> None:
    """Let those runs lag whose files somebody has removed, and lay out the project's own.

    Looks at the latest runs; at all of them once one of these is found to have none.
    """
    try:
        if not context.mirror.has_backlog():
            restore_ruleset(context)
            with context.reading() as session:
                project_backlog(context, session)
    except AutopackError as error:
        logger.warning("files_not_restored", why=error.detail)
        return
    with context.writing() as session:
        latest = runs.list_mirrored(session, LATEST_RUNS)
        if all(context.mirror.has_run(run_id) for run_id in latest):
            return
        known = runs.list_mirrored(session, None)
        lost = [run_id for run_id in known if not context.mirror.has_run(run_id)]
        runs.forget_mirrored(session, lost)
        session.commit()
    logger.warning("files_lost", runs=len(lost))


def keep_up_alone(context: AppContext) -> None:
    """Keep up, unless somebody else is at it; who is killed at it keeps nobody waiting."""
    with context.writing() as session:
        if pulses.try_turn(session, PULSE):
            keep_up(context)


def keep_up(context: AppContext) -> None:
    """Roll forward what lags, end what has waited too long, add up counts. (rules §2, §4)"""
    context.repository.remove_leftovers()
    _find_lost_files(context)
    with context.writing() as session:
        counts.fold_counts(session)
        session.commit()
    with context.reading() as session:
        event = runs.last_event(session)
        lagging = runs.list_lagging(session, BATCH)
        overdue = runs.list_overdue(session, context.now(), BATCH)
        heads = runs.list_live_heads(session)
    elsewhere = [run_id for run_id, head in heads if is_branch_elsewhere(context, run_id, head)]
    for run_id in dict.fromkeys([*lagging, *overdue, *elsewhere]):
        try:
            with changing(context, run_id, is_waiting=False):
                pass  # to open a change is to bring the run up to date
        except runs.RunBusyError:
            continue  # whoever holds it brings it up to date
        except (AutopackError, DBAPIError) as error:
            logger.warning("upkeep_failed", run_id=run_id, why=str(error))
        except Exception:  # one run's trouble keeps neither the others waiting nor us from starting
            logger.exception("upkeep_failed", run_id=run_id)
    context.mirror.sync(event, is_forced=bool(lagging))
    with context.writing() as session:
        pulses.beat(session, PULSE)
        session.commit()
