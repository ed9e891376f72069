"""Live events, for any number of readers, by one connection to Postgres.

Each event is read and encoded once. A reader buffers only a few: a slow reader continues from the
tables, at its position. Everything except the queries runs in the event loop.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import structlog
from sqlalchemy import Engine

from ..domain.access import Caller
from ..domain.errors import UnavailableError
from ..domain.event_text import tell
from ..domain.events import canonical_json, event_document
from ..domain.limits import TooManyKeyStreamsError
from ..store import feed as store
from ..store import runs
from ..store.feed import FeedEvent, Listener
from ..views.events import EndOfRun
from .availability import OUTAGES
from .context import AppContext

logger = structlog.get_logger(__name__)

NEWS: Final = 250
KEEP_ALIVE_SECONDS: Final = 15.0
# Interval while a transaction with lower ids is open: if it fails, no notification comes.
GAP_SECONDS: Final = 0.03
RETRY_SECONDS: Final = 1.0
KEY_RETRY_SECONDS: Final = 15


class TooManyStreamsError(UnavailableError):
    code = "too_many_streams"


@dataclass(frozen=True, slots=True)
class FeedItem:
    """An event to send; `previous` is the position of the one before it."""

    position: int
    previous: int
    run_pk: int
    sequence: int
    kind: str
    document: str


class View(Protocol):
    """The events of a reader, and their numbers."""

    def number(self, told: FeedItem) -> int:
        """Return the event's number; 0 if the reader does not get it."""

    def continues(self, told: FeedItem, last: int) -> bool:
        """Return whether no event of the reader is missing before this one."""

    def is_enough(self, told: FeedItem) -> bool:
        """Return whether this event may be the last."""

    def read(self, last: int) -> tuple[list[FeedItem], EndOfRun | None]:
        """Read a page of events after a number, and the end of the stream if it follows."""


class Feed:
    """Listens for new events, while there are readers."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine = engine
        self._limit = limit
        self._mailboxes: set[_Mailbox] = set()
        self._open = 0
        self._of_keys = Counter[str]()  # open streams by the names of their keys
        self._listening: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._position: int | None = None  # the position up to which all readers have got events
        self._last = 0  # the position of the last event sent
        self._is_placed = asyncio.Event()
        self._is_ending = False
        self._is_connected = True

    @property
    def position(self) -> int:
        return self._position or 0

    @property
    def is_connected(self) -> bool:
        """Whether new events arrive; False while the database does not answer."""
        return self._is_connected

    @property
    def is_ending(self) -> bool:
        """Whether the streams end, with the service."""
        return self._is_ending

    async def wait_for_place(self) -> None:
        """Wait until readers get each event from then on. It needs a reader that waits."""
        await self._is_placed.wait()

    def require_room(self, caller: Caller) -> None:
        """Raises TooManyStreamsError, TooManyKeyStreamsError."""
        key, limits = caller.holder, caller.limits
        if key is not None and limits is not None and self._of_keys[key] >= limits.streams:
            raise TooManyKeyStreamsError(
                f"{key} has {limits.streams} streams open; close one first",
                retry_after=KEY_RETRY_SECONDS,
            )
        if self._open >= self._limit:
            raise TooManyStreamsError(
                f"{self._limit} streams are open already (AUTOPACK_MAX_STREAMS); try again later"
            )

    @contextmanager
    def counted(self, caller: Caller) -> Iterator[None]:
        """Count a stream for its key as long as it is open."""
        key = caller.holder or ""
        self._of_keys[key] += 1
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            self._of_keys[key] -= 1
            if not self._of_keys[key]:
                del self._of_keys[key]

    async def follow(
        self, view: View, last: int | None
    ) -> AsyncGenerator[FeedItem | EndOfRun | None]:
        """Yield events after a number, or from now on.

        None comes after a while without one, and when `is_connected` changes.
        Ends when all events were sent, or with the service.
        """
        with self._mailbox(view) as mailbox:
            await self._is_placed.wait()
            last = self.position if last is None else last
            is_behind = True
            while not self._is_ending:
                if not is_behind:
                    told = await mailbox.next()
                    if told is None:
                        yield None
                    elif view.number(told) > last:
                        is_behind = not view.continues(told, last) or view.is_enough(told)
                        if view.continues(told, last):
                            yield told
                            last = view.number(told)
                    continue
                try:
                    page, over = await asyncio.to_thread(view.read, last)
                except OUTAGES:  # the database was available before, and will be again
                    yield None
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                for told in page:
                    yield told
                    last = view.number(told)
                if over is not None:
                    yield over
                    return
                is_behind = len(page) == store.PAGE

    def end(self) -> None:
        """End the stream of every reader."""
        self._is_ending = True
        self._is_placed.set()
        self._news.set()
        for mailbox in self._mailboxes:
            mailbox.wake()

    async def close(self) -> None:
        """End all streams, and close the connection."""
        self.end()
        if self._listening is not None:
            await self._listening

    @contextmanager
    def _mailbox(self, view: View) -> Iterator[_Mailbox]:
        mailbox = _Mailbox(view)
        self._mailboxes.add(mailbox)
        if self._listening is None:
            self._listening = asyncio.get_running_loop().create_task(self._listen())
        try:
            yield mailbox
        finally:
            self._mailboxes.discard(mailbox)
            self._news.set()  # there may be no reader any more

    async def _listen(self) -> None:
        """Send new events while there are readers; after an outage of the database it continues."""
        while self._is_wanted:
            try:
                listener = await asyncio.to_thread(Listener, self.engine)
                try:
                    await self._tell_from(listener)
                finally:
                    await asyncio.to_thread(listener.close)
            except OUTAGES as error:
                logger.warning("event_feed_interrupted", why=str(error))
                self._set_connected(False)
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # streams without events would not notice the outage
                logger.exception("event_feed_failed")
                self._set_connected(False)
                await asyncio.sleep(RETRY_SECONDS)
        self._listening = None
        self._position = None
        self._is_connected = True
        if not self._is_ending:
            self._is_placed.clear()

    @property
    def _is_wanted(self) -> bool:
        return bool(self._mailboxes) and not self._is_ending

    async def _tell_from(self, listener: Listener) -> None:
        while self._is_wanted:
            news = await asyncio.to_thread(listener.read, self._position)
            self._tell(news.events)
            if self._position is None:
                self._last = news.position
            self._position = news.position
            self._set_connected(True)
            self._is_placed.set()
            if not news.is_more:
                seconds = KEEP_ALIVE_SECONDS if news.is_newest else GAP_SECONDS
                await self._hear(listener, seconds)

    def _set_connected(self, is_connected: bool) -> None:
        if self._is_connected != is_connected:
            self._is_connected = is_connected
            for mailbox in self._mailboxes:
                mailbox.wake()

    def _tell(self, events: list[FeedEvent]) -> None:
        for event in events:
            told = _told(event, self._last)
            self._last = told.position
            for mailbox in self._mailboxes:
                mailbox.take(told)

    async def _hear(self, listener: Listener, seconds: float) -> None:
        """Wait for a notification, at most for so long."""
        loop = asyncio.get_running_loop()
        self._news.clear()
        loop.add_reader(listener.file_number, self._news.set)
        try:
            if self._is_wanted and not listener.has_heard():
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._news.wait()
        finally:
            loop.remove_reader(listener.file_number)


class _Mailbox:
    """The latest events for a reader; when it is full, the oldest are dropped."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._events: deque[FeedItem] = deque(maxlen=NEWS)
        self._is_awake = asyncio.Event()

    def take(self, told: FeedItem) -> None:
        if self._view.number(told):
            self._events.append(told)
            self._is_awake.set()

    def wake(self) -> None:
        self._is_awake.set()

    async def next(self) -> FeedItem | None:
        """Return the next event; None after a while without one."""
        if not self._events:
            self._is_awake.clear()
            with suppress(TimeoutError):
                # Not `wait_for`, which on Python 3.11 may swallow a cancellation.
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._is_awake.wait()
        return self._events.popleft() if self._events else None


class RunView:
    """The events of one run, by their sequence numbers, until the run is over."""

    def __init__(self, context: AppContext, run_id: str) -> None:
        """Raises NotFoundError."""
        self._context = context
        self._run_id = run_id
        with context.reading() as session:
            self._run_pk = runs.get_run_pk(session, run_id)

    def number(self, told: FeedItem) -> int:
        return told.sequence if told.run_pk == self._run_pk else 0

    def continues(self, told: FeedItem, last: int) -> bool:
        return told.sequence == last + 1

    def is_enough(self, told: FeedItem) -> bool:
        return told.kind == "RunEnded"

    def read(self, last: int) -> tuple[list[FeedItem], EndOfRun | None]:
        with self._context.reading() as session:
            page = [_told(each) for each in store.list_of_run(session, self._run_pk, last)]
            end = store.find_end(session, self._run_pk)
        newest = page[-1].sequence if page else last
        if end is None or end[1] > newest:
            return page, None
        return page, EndOfRun(run_id=self._run_id, state=end[0])


class AllView:
    """The events of all runs, by their positions in the feed."""

    def __init__(self, context: AppContext, feed: Feed) -> None:
        self._context = context
        self._feed = feed

    def number(self, told: FeedItem) -> int:
        return told.position

    def continues(self, told: FeedItem, last: int) -> bool:
        return told.previous <= last

    def is_enough(self, _told: FeedItem) -> bool:
        return False

    def read(self, last: int) -> tuple[list[FeedItem], EndOfRun | None]:
        horizon = self._feed.position  # later events will be sent
        with self._context.reading() as session:
            return [_told(each) for each in store.list_after(session, last, horizon)], None


def document_of(found: FeedEvent) -> dict[str, Any]:
    """Return an event as streams and webhooks tell it. (views/events.py)"""
    document = event_document(found.sequence, found.event, found.previous_hash)
    sentence, outcome = tell(found.event)
    said = {"run_id": found.run_id, "hash": found.hash, "sentence": sentence, "outcome": outcome}
    return {**document, **said}


def _told(found: FeedEvent, previous: int = 0) -> FeedItem:
    return FeedItem(
        position=found.position,
        previous=previous,
        run_pk=found.run_pk,
        sequence=found.sequence,
        kind=found.event.kind,
        document=canonical_json(document_of(found)).decode(),
    )
