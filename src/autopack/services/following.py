"""Bring branches and files of this node up to date with what other nodes changed.

A node notes up to which event it has followed. Objects are made again from the stored patches
(rebuilding.py); what a node cannot make, such as a run on a commit that it does not have, is noted
beside the run and tried again. (docs/replicas.md)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from ..domain.errors import AutopackError
from ..store import feed, nodes, runs
from .context import AppContext
from .opening import locked_session, up_to_date

logger = structlog.get_logger(__name__)

EVENTS_AT_ONCE: Final = 5_000
RETRIED_AT_ONCE: Final = 20


def follow(context: AppContext) -> None:
    """Follow all events of other nodes so far, and try again what failed before.

    The caller has the turn of this node, as two followers would do the same twice.
    """
    with context.reading() as session:
        lacking = nodes.list_lacking(session, context.node_id, RETRIED_AT_ONCE)
    _bring(context, [run_id for run_id, _ in lacking], dict(lacking))
    follow_events(context)


def follow_events(context: AppContext) -> None:
    """Follow all events of other nodes so far."""
    with context.reading() as session:
        position = nodes.get_position(session, context.node_id)
        settled, _ = feed.find_settled(session)
    while position < settled and not context.stopping.is_set():
        up_to = min(settled, position + EVENTS_AT_ONCE)
        with context.reading() as session:
            behind = nodes.list_behind(session, context.node_id, after=position, up_to=up_to)
        _bring(context, behind, {})
        if context.stopping.is_set():
            return  # the rest of these runs is left to the next process
        with context.writing() as session:
            nodes.set_position(session, context.node_id, up_to)
            session.commit()
        position = up_to


def _bring(context: AppContext, run_ids: Sequence[str], known: dict[str, str]) -> None:
    """Bring runs up to date: first those that no process holds, then the others in their turn."""
    busy = []
    for run_id in run_ids:
        if not _try_to_bring(context, run_id, known.get(run_id), is_waiting=False):
            busy.append(run_id)
    for run_id in busy:
        _try_to_bring(context, run_id, known.get(run_id), is_waiting=True)


def _try_to_bring(context: AppContext, run_id: str, known: str | None, *, is_waiting: bool) -> bool:
    """Return whether a run was free; a failure is noted, if it is not known yet."""
    if context.stopping.is_set():
        return True
    try:
        with locked_session(context, run_id, is_waiting=is_waiting) as session:
            up_to_date(context, session, run_id)
            session.commit()
    except runs.RunBusyError:
        return False
    except AutopackError as error:
        if error.detail != known:
            logger.warning("node_lacks", run_id=run_id, why=error.detail)
            with context.writing() as session:
                nodes.note_lack(session, run_id, context.node_id, error.detail)
                session.commit()
    return True
