"""Pages that change while they are open: fragments of HTML, as server-sent events.

All browsers that show one page share a board. It reads the page's data and renders its parts once
for all of them, at most once a second, when an event concerns the page; browsers get the parts that
differ. So a hundred open pages cost as much as a hundred open streams.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any, Final

import structlog
from fastapi import APIRouter, Header, Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from ..api.credentials import is_still_known
from ..api.guard import caller_of
from ..api.inputs import Context
from ..domain.errors import AutopackError, InvalidError
from ..domain.values import Identifier
from ..services.availability import OUTAGES
from ..services.context import AppContext
from ..services.feed import KEEP_ALIVE_SECONDS, AllView, Feed, RunView, View
from ..views.events import EndOfRun
from .pages import RunQuery, home_values, runs_values
from .rendering import ENVIRONMENT, HOME, Page, fragment, with_parts
from .routes import PageRoute
from .run_page import PARTS, run_values

logger = structlog.get_logger(__name__)
router = APIRouter(include_in_schema=False, route_class=PageRoute)

PAUSE_SECONDS: Final = 1.0
# Some of a page changes without an event: heartbeats of agents, what waits for too long.
AGING_SECONDS: Final = 30.0
RETRY_MILLISECONDS: Final = 1_000
HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
UNREADABLE: Final[tuple[type[Exception], ...]] = (AutopackError, *OUTAGES)
# Relative times differ at each look, and the browser itself keeps them up to date.
_AGES: Final = re.compile(r"(?<=>)[^<]*(?=</time>)")
# What grows with the time besides them is no reason to send a page to a browser that reconnects.
_GROWS: Final = re.compile(r'<svg class="fall".*?</svg>', re.DOTALL)
HOME_PARTS: Final = ("attention", "summary", "running", "ended", "nodes")
# An event's id: the number of the page's last event, and a digest of what it shows.
_ID: Final = r"^[0-9]{1,15}(-[0-9a-f]{8})?$"


class UnknownPageError(InvalidError):
    code = "unknown_page"


@dataclass(frozen=True, slots=True)
class BoardKey:
    """What one board shows. Browsers with the same values share it."""

    page: str
    run_id: str
    phase_id: str
    root: str
    may_act: bool
    query: RunQuery


@dataclass
class Picture:
    """The parts of a page at one moment; `lines` are the latest events with their numbers.

    `ages` says whether the parts change without an event.
    """

    number: int
    parts: dict[str, str] = field(default_factory=dict)
    lines: list[tuple[int, str]] = field(default_factory=list)
    ages: bool = False
    is_over: bool = False
    outage: str = ""

    @cached_property
    def id(self) -> str:
        """Return the id of this state of the page, that a browser names when it reconnects."""
        digest = hashlib.sha256()
        for text in self.parts.values():
            digest.update(_GROWS.sub("", _AGES.sub("", text)).encode())
        return f"{self.number}-{digest.hexdigest()[:8]}"


class Board:
    """Renders a page's parts for all browsers that show it."""

    def __init__(
        self, key: BoardKey, draw: Callable[[], Picture], feed: Feed, view: View, outage: str
    ) -> None:
        self.key = key
        self.readers = 0
        self.picture: Picture | None = None
        self._draw = draw
        self._feed = feed
        self._view = view
        self._outage_notice = outage  # the fragment that says that the database does not answer
        self._is_dirty = asyncio.Event()
        self._changed = asyncio.Condition()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_dirty.set()
        steps = (self._follow(), self._look_again(), self._render())
        self._tasks = [loop.create_task(step) for step in steps]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def next(self, seen: Picture | None) -> Picture | None:
        """Return the next picture after one; None after a while without one."""
        async with self._changed:
            # Not `asyncio.wait_for`: on Python 3.11 it waits in a second task. A reader that is
            # cancelled twice leaves before that task has the lock, which then stays locked.
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._changed.wait_for(
                        lambda: self.picture is not seen or self._feed.is_ending
                    )
        return None if self.picture is seen else self.picture

    async def _follow(self) -> None:
        last = None
        if self.key.run_id:  # its events have numbers of their own, not the feed's positions
            async with self._changed:
                await self._changed.wait_for(lambda: self.picture is not None)
            last = self.picture.number if self.picture else 0
        async with aclosing(self._feed.follow(self._view, last)) as events:
            async for event in events:
                if event is not None:
                    self._is_dirty.set()
                elif not self._feed.is_connected:
                    await self._show_outage()
                elif self.picture is not None and self.picture.outage:
                    self._is_dirty.set()
                if isinstance(event, EndOfRun):
                    return
        async with self._changed:  # the service ends: no reader waits for the next picture
            self._changed.notify_all()

    async def _look_again(self) -> None:
        """Draw a page of all runs again when it is sure that each event from then on will come.

        The first look may be before that, and an event between the two would not be seen.
        """
        if not self.key.run_id:  # a run's events are read from its picture's number on
            await self._feed.wait_for_place()
            self._is_dirty.set()

    async def _show_outage(self) -> None:
        """Say on the open pages that the database does not answer; they stay as they are."""
        if self.picture is not None and not self.picture.outage:
            await self._show(replace(self.picture, outage=self._outage_notice))

    async def _show(self, picture: Picture) -> None:
        async with self._changed:
            self.picture = picture
            self._changed.notify_all()

    async def _render(self) -> None:
        while self.picture is None or not self.picture.is_over:
            ages = self.picture is not None and self.picture.ages
            with suppress(TimeoutError):
                async with asyncio.timeout(AGING_SECONDS if ages else None):
                    await self._is_dirty.wait()
            self._is_dirty.clear()
            try:
                picture = await run_in_threadpool(self._draw)
            except UNREADABLE as error:
                logger.warning("page_not_drawn", page=self.key.page, why=str(error))
                self._is_dirty.set()  # again, after the pause
                await self._show_outage()
            except Exception:  # an error of one page must not end its stream for good
                logger.exception("page_not_drawn", page=self.key.page)
            else:
                await self._show(picture)
            await asyncio.sleep(PAUSE_SECONDS)


class Boards:
    """The boards of all pages that are open now."""

    def __init__(self) -> None:
        self._boards: dict[BoardKey, Board] = {}

    def take(self, board: Board) -> Board:
        """Return the board for a page: the one that there is, or this one, which then starts."""
        found = self._boards.get(board.key)
        if found is None:
            found = self._boards[board.key] = board
            board.start()
        found.readers += 1
        return found

    def release(self, board: Board) -> None:
        board.readers -= 1
        if not board.readers:
            board.stop()
            self._boards.pop(board.key, None)


@router.get(f"{HOME}/stream")
async def stream(
    request: Request,
    context: Context,
    page: Annotated[str, Query(max_length=20)],
    run: Identifier | None = None,
    phase: Annotated[str, Query(max_length=200)] = "",
    text: Annotated[str, Query(max_length=64)] = "",
    state: Annotated[str, Query(max_length=64)] = "",
    promotion: Annotated[str, Query(max_length=64)] = "",
    since: Annotated[str, Query(max_length=64)] = "",
    after: Annotated[str, Query(pattern=_ID)] = "0",
    last_event_id: Annotated[str | None, Header(pattern=_ID)] = None,
) -> EventSourceResponse:
    """Send the parts of a page that differ from those a browser has: those after a number."""
    feed: Feed = request.app.state.feed
    feed.require_room(context.caller)
    shown_by = Page(request, context.now())
    key = BoardKey(
        page,
        run or "",
        phase,
        shown_by.root,
        shown_by.may_act,
        RunQuery(text, state, promotion, since),
    )
    board = await _board(context, feed, key, shown_by.values())
    start = after if last_event_id is None else last_event_id
    return EventSourceResponse(_events(request, feed, board, start), headers=HEADERS)


async def _board(context: AppContext, feed: Feed, key: BoardKey, values: dict[str, Any]) -> Board:
    """Make the board of a page. Raises NotFoundError, UnknownPageError."""
    outage = ENVIRONMENT.get_template("outage.html").render(values)
    if key.page == "run" and key.run_id:
        view: View = await run_in_threadpool(RunView, context, key.run_id)
        return Board(key, lambda: _draw_run(context, key, values), feed, view, outage)
    if key.page == "home":
        view = AllView(context, feed)
        return Board(key, lambda: _draw_home(context, feed, values), feed, view, outage)
    if key.page == "runs":
        view = AllView(context, feed)
        return Board(key, lambda: _draw_runs(context, feed, key, values), feed, view, outage)
    raise UnknownPageError("page: is one of 'home', 'runs' and 'run', 'run' with the run's id")


def _draw_run(context: AppContext, key: BoardKey, values: dict[str, Any]) -> Picture:
    now = context.now()
    found = run_values(context, key.run_id, key.phase_id or None, now)
    values = with_parts(values | found | {"now": now})
    lines = [
        (event.sequence, fragment("run.html", "feed", values | {"feed": [event]}))
        for event in found["feed"]
    ]
    return Picture(
        number=found["event_count"],
        parts={name: fragment("run.html", name, values) for name in PARTS},
        lines=lines,
        ages=bool(found["r"].leases),
        is_over=found["r"].ended_at is not None,
    )


def _draw_home(context: AppContext, feed: Feed, values: dict[str, Any]) -> Picture:
    now = context.now()
    number = feed.position
    values = with_parts(values | home_values(context, now) | {"now": now, "is_live": True})
    parts = {name: fragment("home.html", name, values) for name in HOME_PARTS}
    return Picture(number, parts, ages=True)


def _draw_runs(context: AppContext, feed: Feed, key: BoardKey, values: dict[str, Any]) -> Picture:
    now = context.now()
    number = feed.position
    found = runs_values(context, key.query, now, None)
    values = with_parts(values | found | {"now": now})
    return Picture(number, {"runs": fragment("runs.html", "runs", values)}, ages=True)


async def _events(request: Request, feed: Feed, board: Board, start: str) -> AsyncIterator[bytes]:
    boards: Boards = request.app.state.boards
    with feed.counted(caller_of(request.scope)):
        board = boards.take(board)
        try:
            yield format_sse_event(retry=RETRY_MILLISECONDS)
            seen: Picture | None = None
            while True:
                picture = await board.next(seen)
                if not await is_still_known(request.scope) or feed.is_ending:
                    return
                if picture is None:
                    yield KEEPALIVE_COMMENT
                    continue
                for event in _differences(seen, picture, start):
                    yield event
                seen = picture
                if picture.is_over:
                    yield format_sse_event(event="end", data_str="over")
                    return
        finally:
            boards.release(board)


def _differences(seen: Picture | None, picture: Picture, start: str) -> list[bytes]:
    """Return the events that make of one picture the next.

    `start` is the id of the state that a browser has: a page that it has just loaded has no digest.
    """
    parts = picture.parts | {"outage": picture.outage}
    number, _, digest = start.partition("-")
    last = int(number)
    if seen is not None:
        before = seen.parts | {"outage": seen.outage}
        last = max((number for number, _ in seen.lines), default=last)
    elif last and start in (picture.id, str(picture.number)):
        # Also a browser that has it all may still show that the database did not answer.
        before = picture.parts if digest else parts
    else:
        before = {} if digest else {"outage": ""}
    changed = [
        format_sse_event(id=picture.id, event=name, data_str=text)
        for name, text in parts.items()
        if name not in before or _AGES.sub("", before[name]) != _AGES.sub("", text)
    ]
    new = [text for number, text in picture.lines if number > last]
    if new:
        changed.append(format_sse_event(id=picture.id, event="feed", data_str="".join(new)))
    return changed
