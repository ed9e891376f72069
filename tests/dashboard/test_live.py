"""Pages that change while they are open: what a browser gets, once, and only what differs."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text
from tests.conftest import ServedHere

from autopack.dashboard.live import Board, BoardKey, Picture
from autopack.dashboard.pages import RunQuery
from autopack.dashboard.rendering import HOME
from autopack.services.feed import KEEP_ALIVE_SECONDS

pytestmark = pytest.mark.integration

PLAN = {
    "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "T"}],
    "phases": [
        {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T0", "name": f"Phase {n}"}
        for n in range(2)
    ],
}


class Stream:
    """The events of an open page, as they come."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines = lines

    def next(self) -> dict[str, str]:
        """Return the next event."""
        event: dict[str, str] = {}
        for line in self._lines:
            if not line:
                if "event" in event:
                    return event
                event = {}
                continue
            name, _, value = line.partition(": ")
            event[name] = f"{event[name]}\n{value}" if name in event else value
        return {"event": "closed"}

    def until(self, name: str, word: str = "") -> dict[str, str]:
        """Return the first event of this name that holds a word."""
        while True:
            event = self.next()
            assert event["event"] != "closed"
            if event["event"] == name and word in event.get("data", ""):
                return event


@contextmanager
def opened(url: str, **query: Any) -> Iterator[Stream]:
    headers = {"Last-Event-ID": str(query.pop("last"))} if "last" in query else {}
    with httpx.stream(
        "GET", f"{url}{HOME}/stream", params=query, headers=headers, timeout=60, trust_env=False
    ) as answer:
        assert answer.status_code == 200, answer.read()
        yield Stream(answer.iter_lines())


def post(url: str, path: str, **body: Any) -> Any:
    answer = httpx.post(f"{url}{path}", json=body, timeout=60, trust_env=False)
    assert answer.status_code < 300, answer.text
    return answer.json()


def start(url: str, run_id: str = "run-1") -> None:
    post(url, "/runs/start", run={"run_id": run_id}, **PLAN)


def test_an_open_page_gets_what_differs_and_its_end(served_here: ServedHere) -> None:
    url = served_here.url
    for number in range(8):  # the run's events are few among those of all runs
        start(url, f"other-{number}")
    start(url)
    count = httpx.get(f"{url}/runs/run-1/events", trust_env=False).json()["events"][-1]["sequence"]
    with opened(url, page="run", run="run-1", phase="P0", after=count) as stream:
        post(url, "/runs/run-1/phases/P0/update_status", state="EXECUTING")
        assert "building" in stream.until("tiers")["data"]
        assert "Building began" in stream.until("feed")["data"]
        post(url, "/runs/run-1/cancel", reason="enough")
        assert "enough" in stream.until("head", "cancelled")["data"]
        stream.until("end")
        assert stream.next()["event"] == "closed"


def test_a_browser_that_comes_back_gets_what_it_missed(served_here: ServedHere) -> None:
    url = served_here.url
    start(url)
    with opened(url, page="run", run="run-1", phase="P0") as stream:
        number = stream.until("phase")["id"]
    post(url, "/runs/run-1/phases/P0/update_status", state="EXECUTING")
    with opened(url, page="run", run="run-1", phase="P0", last=number) as stream:
        feed = stream.until("feed")
        assert "Building began" in feed["data"]
        assert "The run started" not in feed["data"], "each event is told once"


def test_a_browser_that_has_it_all_gets_nothing_again(served_here: ServedHere) -> None:
    url = served_here.url
    start(url)
    with opened(url, page="run", run="run-1", phase="P0") as stream:
        number = stream.until("feed")["id"]
    with opened(url, page="run", run="run-1", phase="P0", last=number) as stream:
        assert stream.next() == {"event": "outage", "data": "", "id": number}
        post(url, "/runs/run-1/phases/P0/update_status", state="EXECUTING")
        assert stream.next()["event"] == "head"
    # What differs without an event is sent as well: the digest is of another state.
    with opened(url, page="run", run="run-1", phase="P0", last=f"{number[:-8]}00000000") as stream:
        assert stream.next()["event"] == "head"


def test_open_pages_say_that_the_database_is_away_and_go_on(
    served_here: ServedHere, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("services.feed", "dashboard.live"):  # how often a quiet page is looked after
        monkeypatch.setattr(f"autopack.{module}.KEEP_ALIVE_SECONDS", 0.5)
    url = served_here.url
    start(url)
    address = make_url(database_url)
    elsewhere = create_engine(address.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with (
        opened(url, page="home") as home,
        opened(url, page="run", run="run-1", phase="P0") as stream,
        elsewhere.connect() as connection,
    ):
        home.until("ended")
        stream.until("feed")

        def allow(word: str) -> None:
            connection.execute(
                text(f'ALTER DATABASE "{address.database}" WITH ALLOW_CONNECTIONS {word}')
            )

        try:
            allow("false")
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                    " WHERE datname = :name"
                ),
                {"name": address.database},
            )
            assert "database does not answer" in stream.until("outage")["data"]
            assert "database does not answer" in home.until("outage")["data"]
        finally:  # tests share the database
            allow("true")
        assert stream.until("outage")["data"] == ""
        assert home.until("outage")["data"] == ""
        post(url, "/runs/run-1/phases/P0/update_status", state="EXECUTING")
        assert "building" in stream.until("tiers")["data"]
        assert "building" in home.until("running", "building")["data"]
    elsewhere.dispose()


def test_home_shows_runs_of_others_as_they_start(served_here: ServedHere) -> None:
    url = served_here.url
    with opened(url, page="home") as stream:
        stream.until("running", "Nothing runs")
        start(url, "run-2")
        assert "run-2" in stream.until("running", "run-2")["data"]


def test_a_filtered_list_shows_the_runs_that_come_to_match(served_here: ServedHere) -> None:
    url = served_here.url
    start(url, "run-3")
    with opened(url, page="runs", state="cancelled") as stream:
        stream.until("runs", "No run matches")
        post(url, "/runs/run-3/cancel", reason="enough")
        assert "run-3" in stream.until("runs", "enough")["data"]


def test_pages_that_show_the_same_are_drawn_once(served_here: ServedHere) -> None:
    url = served_here.url
    start(url)
    got: list[str] = []

    def read() -> None:
        with opened(url, page="run", run="run-1", phase="P0") as stream:
            stream.until("feed")
            ready.release()
            got.append(json.dumps(stream.until("tiers", "building")))

    ready = threading.Semaphore(0)
    readers = [threading.Thread(target=read) for _ in range(10)]
    for reader in readers:
        reader.start()
    for _ in readers:
        ready.acquire()
    post(url, "/runs/run-1/phases/P0/update_status", state="EXECUTING")
    for reader in readers:
        reader.join()
    assert len(got) == 10
    assert len({*got}) == 1


def test_a_page_that_does_not_exist_has_no_stream(served_here: ServedHere) -> None:
    url = f"{served_here.url}{HOME}/stream"
    for query, status in (
        ({"page": "nothing"}, 422),
        ({"page": "run"}, 422),
        ({"page": "run", "run": "nobody"}, 404),
        ({"page": "run", "run": "nobody", "after": "-1"}, 422),
    ):
        assert httpx.get(url, params=query, trust_env=False).status_code == status, query
    foreign = httpx.get(
        url, params={"page": "home"}, headers={"Origin": "http://evil.example"}, trust_env=False
    )
    assert foreign.status_code == 403


class EndingFeed:
    """A feed without events, until the service ends."""

    def __init__(self) -> None:
        self.ends = asyncio.Event()

    @property
    def is_ending(self) -> bool:
        return self.ends.is_set()

    async def follow(self, _view: object, _last: object) -> AsyncIterator[None]:
        await self.ends.wait()
        if not self.is_ending:
            yield None


class LateFeed(EndingFeed):
    """A feed that tells of events only from a moment after the page's first look."""

    def __init__(self) -> None:
        super().__init__()
        self.is_placed = asyncio.Event()

    async def wait_for_place(self) -> None:
        await self.is_placed.wait()


def test_a_page_of_all_runs_shows_an_event_between_its_first_look_and_the_feeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("autopack.dashboard.live.PAUSE_SECONDS", 0)

    async def look() -> None:
        feed: Any = LateFeed()
        key = BoardKey("home", "", "", "", may_act=False, query=RunQuery())
        events = ["before"]
        board = Board(key, lambda: Picture(0, {"running": events[-1]}), feed, feed, "")
        board.start()
        first = await board.next(None)
        events.append("between")
        feed.is_placed.set()
        second = await asyncio.wait_for(board.next(first), KEEP_ALIVE_SECONDS / 2)
        assert second is not None
        assert second.parts == {"running": "between"}
        board.stop()

    asyncio.run(look())


def test_no_reader_waits_for_a_picture_when_the_service_ends() -> None:
    async def end() -> None:
        feed: Any = EndingFeed()
        key = BoardKey("run", "run-1", "P0", "", may_act=False, query=RunQuery())
        board = Board(key, lambda: Picture(1), feed, feed, "")
        board.start()
        first = await board.next(None)
        waiting = asyncio.create_task(board.next(first))
        await asyncio.sleep(0)
        feed.ends.set()
        assert await asyncio.wait_for(waiting, KEEP_ALIVE_SECONDS / 2) is None
        board.stop()

    asyncio.run(end())


def test_readers_who_leave_while_the_picture_changes_hold_up_no_other() -> None:
    """Each at another moment, and cancelled at every step, as a server does with what is left."""

    async def leave(moment: int) -> None:
        feed: Any = EndingFeed()
        key = BoardKey("run", "run-1", "P0", "", may_act=False, query=RunQuery())
        board = Board(key, lambda: Picture(1), feed, feed, "")
        readers = [asyncio.create_task(board.next(None)) for _ in range(4)]
        await asyncio.sleep(0)
        changing = [asyncio.create_task(board._show(Picture(number))) for number in range(2)]
        for step in range(moment + 12):
            for reader in readers[1:3] if step >= moment else ():
                reader.cancel()
            await asyncio.sleep(0)
        late = asyncio.create_task(board.next(None))
        _, held_up = await asyncio.wait([*readers, *changing, late], timeout=KEEP_ALIVE_SECONDS / 2)
        assert not held_up
        assert late.result() is not None

    for moment in range(10):
        with closing(asyncio.new_event_loop()) as loop:  # `run` waits for tasks that are held up
            loop.run_until_complete(leave(moment))
