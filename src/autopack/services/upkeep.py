"""Work that no request asks for: at the start, and every few seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Final

import structlog
from sqlalchemy.exc import DBAPIError

from ..domain.errors import AutopackError
from ..store import counts, nodes, pulses, runs
from .attention import close_merged_runs
from .context import AppContext
from .figures import count_ended_runs
from .following import follow, look_at_all
from .opening import changing
from .projection import EVENTS_UNDER_WAY, is_branch_elsewhere, project_backlog
from .rulesets import follow_ruleset, read_ruleset, restore_ruleset

logger = structlog.get_logger(__name__)

BATCH = 100
LATEST_RUNS = 50
START_SECONDS: Final = 2.0
PULSE = "upkeep"
UPKEEP_QUEUE = "upkeep"  # for workers with the repository and the runs directory


def start_up(context: AppContext) -> None:
    """Write the project's files, and roll forward runs that lag: for START_SECONDS, then answer.

    What is left comes in the background, and with the requests for a run.
    """
    context.mirror.prepare()
    _distrust_files(context)
    _find_lost_runs(context)
    try:
        _restore_lost_ruleset(context)
        read_ruleset(context)
        follow_ruleset(context)
    except AutopackError as error:
        logger.warning("ruleset_refused", why=error.detail)  # no run can start meanwhile
    with context.reading() as session:
        project_backlog(context, session)
    look_at_all(context)
    _roll_forward(context, _no_turn, time.monotonic() + START_SECONDS)
    _tend_runs(context, _no_turn)


def _no_turn() -> None:
    """At a start there is no turn to keep: what another process does too is done once."""


def _distrust_files(context: AppContext) -> None:
    """After a stop of the machine, mark runs as lagging whose files may be damaged."""
    event = context.mirror.unsynced_since()
    if event is None:
        return
    with context.writing() as session:
        # Changes that were not complete when the mark was set may have events before the mark's.
        changed = runs.list_changed_since(session, event - EVENTS_UNDER_WAY)
        nodes.reset_checkpoints(session, changed, context.node_id, "the machine was stopped")
        session.commit()
    logger.warning("files_written_again", runs=len(changed), why="the machine was stopped")


def _find_lost_files(context: AppContext) -> None:
    """Mark runs as lagging whose files were removed, and write the project's own files again."""
    try:
        if _restore_lost_ruleset(context):
            with context.reading() as session:
                project_backlog(context, session)
    except AutopackError as error:
        logger.warning("files_not_restored", why=error.detail)
        return
    _find_lost_runs(context)


def _restore_lost_ruleset(context: AppContext) -> bool:
    """Write the ruleset again if the project's folder is new, or was removed; say whether it is."""
    is_lost = not context.mirror.has_backlog()
    if is_lost:
        restore_ruleset(context)
    return is_lost


def _find_lost_runs(context: AppContext) -> None:
    """Mark runs as lagging whose files were removed.

    Checks the latest runs; if one of them has no files, checks all runs.
    """
    with context.reading() as session:
        latest = runs.list_mirrored(session, context.node_id, LATEST_RUNS)
    if all(context.mirror.has_run(run_id) for run_id in latest):
        return
    with context.writing() as session:
        known = runs.list_mirrored(session, context.node_id, None)
        lost = [run_id for run_id in known if not context.mirror.has_run(run_id)]
        nodes.reset_checkpoints(session, lost, context.node_id, "the files were removed")
        session.commit()
    logger.warning("files_lost", runs=len(lost))


def keep_up(context: AppContext) -> None:
    """End what has waited too long, add up counts, look after this node. (rules §2, §4)

    Except for what another process does at this moment; the lock of a killed one is free at once.
    """
    # First, as deadlines must not wait for a node that catches up.
    with context.writing() as session:
        if pulses.try_turn(session, PULSE):
            _tend_runs(context, partial(pulses.keep_turn, session))
    tend_node(context)


def _tend_runs(context: AppContext, keep_turn: Callable[[], None]) -> None:
    """Do what one node does for all: deadlines, merges, counts and figures."""
    with context.autocommitting() as session:
        session.begin_change()
        counts.fold_counts(session)
        for place in nodes.remove_silent(session):
            logger.warning("node_removed", place=place, why="no sign of life for days")
        session.commit()
    count_ended_runs(context)
    keep_turn()
    _close_merged(context)
    with context.reading() as session:
        overdue = runs.list_overdue(session, context.now(), BATCH)
    _bring_up_to_date(context, overdue, keep_turn)
    with context.autocommitting() as session:
        pulses.note_completed(session, PULSE)
        session.commit()


def tend_node(context: AppContext) -> bool:
    """Bring this node's branches and files up to date, unless another of its processes does.

    Returns whether more is left to do at once.
    """
    with context.writing() as session:
        if not nodes.try_turn(session, context.node_id):
            return False
        _find_lost_files(context)
        _roll_forward(context, partial(pulses.keep_turn, session))
        try:
            follow_ruleset(context)
        except AutopackError as error:
            logger.warning("ruleset_not_followed", why=error.detail)
        return follow(context)


def _close_merged(context: AppContext) -> None:
    try:
        close_merged_runs(context)
    except AutopackError as error:  # a repository that cannot be read must not stop the rest
        logger.warning("merged_runs_not_closed", why=error.detail)


def _roll_forward(
    context: AppContext, keep_turn: Callable[[], None], deadline: float = math.inf
) -> None:
    """Bring the runs up to date that this node changed last."""
    context.repository.remove_leftovers()
    with context.reading() as session:
        # Files that a node writes while it catches up are of any event.
        is_catching_up = nodes.get_followed(session, context.node_id).is_catching_up
        event = 0 if is_catching_up else runs.last_event(session)
        lagging = runs.list_lagging(session, context.node_id, BATCH)
        heads = runs.list_live_heads(session, context.node_id)
    elsewhere = (run_id for run_id, head in heads if is_branch_elsewhere(context, run_id, head))
    _bring_up_to_date(context, chain(lagging, elsewhere), keep_turn, deadline)
    try:
        context.mirror.sync(event)
    except AutopackError as error:  # a full disk must not stop the rest
        logger.warning("files_not_synced", why=error.detail)


def _bring_up_to_date(
    context: AppContext,
    run_ids: Iterable[str],
    keep_turn: Callable[[], None],
    deadline: float = math.inf,
) -> None:
    for run_id in run_ids:
        if time.monotonic() > deadline:
            return
        keep_turn()
        try:
            with changing(context, run_id, is_waiting=False):
                pass  # opening a change brings the run up to date
        except runs.RunBusyError:
            continue  # the process that holds it brings it up to date
        except (AutopackError, DBAPIError) as error:
            logger.warning("upkeep_failed", run_id=run_id, why=str(error))
        except Exception:  # an error of one run must stop neither the other runs nor the start
            logger.exception("upkeep_failed", run_id=run_id)
