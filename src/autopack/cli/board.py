"""A run, shown until it is over: as a live board in a terminal, else as lines."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from queue import Empty, Queue
from threading import Thread
from typing import TYPE_CHECKING, Final

from ..client import Autopack, ClientError
from ..views.events import EventAnswer
from ..views.runs import RunAnswer
from .terminal import cell, make_console, print_json, say

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS: Final = 0.5
NOTES_SHOWN: Final = 6

# An event, a line of another process, the error that ends the view; None: the run is over.
News = EventAnswer | str | Exception | None


class Board:
    """Follows a run. Other threads may add lines, or end the view by an error."""

    def __init__(
        self, client: Autopack, run_id: str, *, after: int = 0, footer: Sequence[str] = ()
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._after = after
        self._footer = footer
        self._news: Queue[News] = Queue()
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._is_ended = False

    def add(self, line: str) -> None:
        """Show a line below the run."""
        self._news.put(line)

    def fail(self, error: Exception) -> None:
        """End the view; `show` raises the error."""
        self._news.put(error)

    def show_live(self) -> RunAnswer:
        """Show the board until the run is over, and return the run."""
        from rich.live import Live  # imported here, as it takes time, and pipes do not need it

        run = self._client.get_run(self._run_id)
        console = make_console()
        with self._following(), Live(self._view(run, console.height), console=console) as live:
            is_over = False
            while not is_over:
                news = self._drain()
                is_over = None in news
                self._notes.extend(each for each in news if isinstance(each, str))
                if is_over or any(isinstance(each, EventAnswer) for each in news):
                    run = self._client.get_run(self._run_id)
                # Without events too: the minutes change.
                live.update(self._view(run, console.height), refresh=True)
            self._footer = ()
            live.update(self._view(run, None))
        return run

    def show_lines(self, *, as_json: bool) -> RunAnswer:
        """Print each event as a line until the run is over, and return the run.

        Added lines are text for people, so they are not part of the lines of JSON.
        """
        with self._following():
            is_over = False
            while not is_over:
                for each in self._drain():
                    if isinstance(each, EventAnswer):
                        print_event(each, as_json=as_json)
                    elif isinstance(each, str):
                        say(each, is_error=as_json, is_now=True)
                    else:
                        is_over = True
        return self._client.get_run(self._run_id)

    def _view(self, run: RunAnswer, height: int | None) -> RenderableType:
        from rich.console import Group

        from .view import run_view

        below = [cell(note, "dim") for note in self._notes] + [cell(line) for line in self._footer]
        if not below:
            return run_view(run, height)
        room = None if height is None else height - len(below) - 1
        return Group(run_view(run, room), cell(""), *below)

    @contextmanager
    def _following(self) -> Iterator[None]:
        Thread(target=self._follow, daemon=True).start()
        try:
            yield
        finally:
            self._is_ended = True

    def _follow(self) -> None:
        """Put each event into the queue, then None, or the error."""
        try:
            for event in self._client.follow(self._run_id, after=self._after):
                self._news.put(event)
        except ClientError as error:
            self._news.put(error)
        except RuntimeError:
            # The user ended the view, and with it the client, while this thread waited.
            if not self._is_ended:
                raise
        else:
            self._news.put(None)

    def _drain(self) -> list[EventAnswer | str | None]:
        """Wait a moment, then take all news in the queue: a burst costs one request for the run.

        Raises an error that is in the queue.
        """
        news: list[EventAnswer | str | None] = []
        with suppress(Empty):
            wait = REFRESH_SECONDS
            while True:
                each = self._news.get(timeout=wait) if wait else self._news.get_nowait()
                if isinstance(each, Exception):
                    raise each
                news.append(each)
                wait = 0.0
        return news


def print_event(event: EventAnswer, *, as_json: bool) -> None:
    """Print an event as a line."""
    if as_json:
        print_json(event, is_line=True)
        return
    where = event.phase_id or event.tier_id or ""
    words = (str(event.sequence), f"{event.at:%H:%M:%S}", where, event.sentence)
    say("  ".join(word for word in words if word), is_now=True)
