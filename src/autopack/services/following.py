"""Bring branches and files of this node up to date with what other nodes changed.

A node notes up to which event it has followed. One that is new, or was away long, looks at every
run instead, in the background, and answers meanwhile. Objects are made again from the stored
patches (rebuilding.py); what a node cannot make, such as a run on a commit that it does not have,
is noted beside the run and tried again. (docs/replicas.md)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import structlog

from ..domain.errors import AutopackError
from ..store import feed, nodes, runs
from ..store.nodes import Followed
from .availability import OUTAGES
from .context import AppContext
from .opening import locked_session, up_to_date

logger = structlog.get_logger(__name__)

EVENTS_AT_ONCE: Final = 5_000
RUNS_AT_ONCE: Final = 20
# How long following goes on before this node is looked after again, if more is left.
FOLLOWING_SECONDS: Final = 1.0


def follow(context: AppContext) -> bool:
    """Follow the changes of other nodes so far, and try again what failed before.

    Returns whether more is left to do after FOLLOWING_SECONDS. The caller has the turn of this
    node, as two followers would do the same twice.
    """
    deadline = time.monotonic() + FOLLOWING_SECONDS
    follow_events(context)
    is_more = _retry(context, deadline)
    return _catch_up(context, deadline) or is_more


def follow_events(context: AppContext) -> None:
    """Follow all events of other nodes so far; what `look_at_all` finds is left to `follow`."""
    followed, horizon = look_at_all(context)
    if followed.position >= horizon:
        return
    with context.reading() as session:
        behind = nodes.list_behind(session, context.node_id, after=followed.position, up_to=horizon)
    _bring(context, behind, {})
    if not context.stopping.is_set():  # else the rest is left to the next process
        _note(context, replace(followed, position=horizon))


def look_at_all(context: AppContext) -> tuple[Followed, int]:
    """Let a new node, and one that was away long, look at every run instead of at each event.

    Returns up to where this node has looked, and the horizon of all events.
    """
    with context.autocommitting() as session:
        followed = nodes.get_followed(session, context.node_id)
        horizon, _ = feed.find_horizon(session)
        behind = horizon - followed.position
        if behind > EVENTS_AT_ONCE or (behind > 0 and followed.position == 0):
            end = nodes.next_run_pk(session)
            is_needed = _list_unseen(context, end, is_live=False, limit=1)
            followed = Followed(horizon, end if is_needed else None)
            nodes.set_followed(session, context.node_id, followed)
    return followed, horizon


def _retry(context: AppContext, deadline: float) -> bool:
    """Try again what failed, as long as all of it succeeds; return whether more is left."""
    while True:
        with context.reading() as session:
            lacking = nodes.list_lacking(session, context.node_id, RUNS_AT_ONCE)
        failures = _bring(context, [run_id for run_id, _ in lacking], dict(lacking))
        if failures or len(lacking) < RUNS_AT_ONCE or context.stopping.is_set():
            return False  # what fails is tried again with the next look after this node
        if time.monotonic() > deadline:
            return True


def _catch_up(context: AppContext, deadline: float) -> bool:
    """Bring runs up to date that this node has not looked at; return whether more are left.

    First those that are not over, as agents work on them, then the newest. Requests about a run
    bring it up to date by themselves.
    """
    with context.reading() as session:
        followed = nodes.get_followed(session, context.node_id)
    if followed.unseen_before is None:
        return False
    for is_live in (True, False):
        before = followed.unseen_before
        while found := _list_unseen(context, before, is_live=is_live, limit=RUNS_AT_ONCE):
            _bring(context, [run_id for _, run_id in found], {})
            if context.stopping.is_set():
                return True
            before, _ = found[-1]
            if not is_live:
                _note(context, replace(followed, unseen_before=before))
            if time.monotonic() > deadline:
                return True
    _note(context, replace(followed, unseen_before=None))
    return False


def _list_unseen(
    context: AppContext, before: int, *, is_live: bool, limit: int
) -> list[tuple[int, str]]:
    with context.reading() as session:
        return nodes.list_unseen(
            session, context.node_id, before=before, is_live=is_live, limit=limit
        )


def _note(context: AppContext, followed: Followed) -> None:
    with context.autocommitting() as session:
        nodes.set_followed(session, context.node_id, followed)


def _bring(context: AppContext, run_ids: Sequence[str], known: dict[str, str]) -> int:
    """Bring runs up to date, first those that no process holds; return how many failed."""
    busy = []
    failures = 0
    for run_id in run_ids:
        try:
            failures += not _try_to_bring(context, run_id, known.get(run_id), is_waiting=False)
        except runs.RunBusyError:
            busy.append(run_id)
    for run_id in busy:
        failures += not _try_to_bring(context, run_id, known.get(run_id), is_waiting=True)
    return failures


def _try_to_bring(context: AppContext, run_id: str, known: str | None, *, is_waiting: bool) -> bool:
    """Return whether a run is up to date; a failure is noted, if it is not known yet.

    Raises RunBusyError when another process holds the run, and the caller must not wait.
    """
    if context.stopping.is_set():
        return True
    try:
        with locked_session(context, run_id, is_waiting=is_waiting) as session:
            up_to_date(context, session, run_id)
            session.commit()
    except runs.RunBusyError:
        raise
    except OUTAGES:
        raise
    except AutopackError as error:
        why = error.detail
    except Exception as error:  # it must not keep this node from following other runs
        logger.exception("following_failed", run_id=run_id)
        why = f"an unexpected error, which the log shows: {type(error).__name__}"
    else:
        return True
    if why != known:
        logger.warning("node_lacks", run_id=run_id, why=why)
        with context.writing() as session:
            nodes.note_lack(session, run_id, context.node_id, why)
            session.commit()
    return False
