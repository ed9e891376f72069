"""Events as they happen, for any number of readers by one connection to Postgres.

Each event is read and written out once. A reader holds a few of them at most: whoever falls behind
reads on from the tables, from where it is. Everything but the reading runs in the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog
from sqlalchemy import Engine

from ..domain.errors import UnavailableError
from ..domain.events import canonical_json, event_document
from ..store import feed as store
from ..store import runs
from ..store.feed import FeedEvent, Listener
from ..views.events import EndOfRun
from .availability import OUTAGES
from .context import AppContext

logger = structlog.get_logger(__name__)

NEWS: Final = 250
KEEP_ALIVE_SECONDS: Final = 15.0
# While a transaction is under way that holds lower ids: if it fails, nobody tells.
SETTLING_SECONDS: Final = 0.03
RETRY_SECONDS: Final = 1.0


class TooManyStreamsError(UnavailableError):
    code = "too_many_streams"


@dataclass(frozen=True, slots=True)
class FeedItem:
    """An event as it is told; `previous` is the position of the one before it."""

    position: int
    previous: int
    run_pk: int
    sequence: int
    kind: str
    document: str


class View(Protocol):
    """Which events a reader wants, and how it numbers them."""

    def number(self, told: FeedItem) -> int:
        """Return the event's number, 0 if it is not wanted."""

    def continues(self, told: FeedItem, last: int) -> bool:
        """Tell whether nothing that is wanted is missing before this event."""

    def is_enough(self, told: FeedItem) -> bool:
        """Tell whether this event may be the last."""

    def read(self, last: int) -> tuple[list[FeedItem], EndOfRun | None]:
        """Read a page of events after a number, and whether that is all there will be."""


class Feed:
    """Hears of new events, as long as somebody reads them."""

    def __init__(self, engine: Engine, limit: int) -> None:
        self.engine = engine
        self._limit = limit
        self._mailboxes: set[_Mailbox] = set()
        self._listening: asyncio.Task[None] | None = None
        self._news = asyncio.Event()
        self._position: int | None = None  # up to which everybody has been told
        self._last = 0  # the position of the last event told
        self._is_placed = asyncio.Event()
        self._is_ending = False

    @property
    def position(self) -> int:
        return self._position or 0

    def require_room(self) -> None:
        """Raises TooManyStreamsError."""
        if len(self._mailboxes) >= self._limit:
            raise TooManyStreamsError(
                f"{self._limit} streams are open already (AUTOPACK_MAX_STREAMS); try again later"
            )

    async def follow(
        self, view: View, last: int | None
    ) -> AsyncGenerator[FeedItem | EndOfRun | None]:
        """Yield what comes after a number, or from now on; None when nothing came for a while.

        Ends when all has been told, or with the service.
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
                except OUTAGES:  # it was there when the stream began, and will be again
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
        """Let every reader come to its end."""
        self._is_ending = True
        self._is_placed.set()
        self._news.set()
        for mailbox in self._mailboxes:
            mailbox.wake()

    async def close(self) -> None:
        """End, and let go of the connection."""
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
            self._news.set()  # perhaps nobody reads any more

    async def _listen(self) -> None:
        """Tell what happens while somebody reads; a database that went away is missed, not lost."""
        while self._is_wanted:
            try:
                listener = await asyncio.to_thread(Listener, self.engine)
                try:
                    await self._tell_from(listener)
                finally:
                    await asyncio.to_thread(listener.close)
            except OUTAGES as error:
                logger.warning("event_feed_interrupted", why=str(error))
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:  # streams that hear nothing would never know
                logger.exception("event_feed_failed")
                await asyncio.sleep(RETRY_SECONDS)
        self._listening = None
        self._position = None
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
            self._is_placed.set()
            if not news.is_more:
                seconds = KEEP_ALIVE_SECONDS if news.is_settled else SETTLING_SECONDS
                await self._hear(listener, seconds)

    def _tell(self, events: list[FeedEvent]) -> None:
        for event in events:
            told = _told(event, self._last)
            self._last = told.position
            for mailbox in self._mailboxes:
                mailbox.take(told)

    async def _hear(self, listener: Listener, seconds: float) -> None:
        """Wait until something is said, for so long at most."""
        loop = asyncio.get_running_loop()
        self._news.clear()
        loop.add_reader(listener.file_number, self._news.set)
        try:
            if self._is_wanted and not listener.has_heard():
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), seconds)
        finally:
            loop.remove_reader(listener.file_number)


class _Mailbox:
    """The latest events that a reader wants; where one is full, the oldest make room."""

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
        """Return the next event, None when there is none for a while."""
        if not self._events:
            self._is_awake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_awake.wait(), KEEP_ALIVE_SECONDS)
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
        settled = self._feed.position  # what comes after it will be told
        with self._context.reading() as session:
            return [_told(each) for each in store.list_after(session, last, settled)], None


def _told(found: FeedEvent, previous: int = 0) -> FeedItem:
    document = event_document(found.sequence, found.event, found.previous_hash)
    return FeedItem(
        position=found.position,
        previous=previous,
        run_pk=found.run_pk,
        sequence=found.sequence,
        kind=found.event.kind,
        document=canonical_json({"run_id": found.run_id, **document, "hash": found.hash}).decode(),
    )
