"""A busy run only delays its own callers."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from autopack.api.turns import CHANGING_THREADS, NoTurnError, Turns
from autopack.config import Settings
from autopack.database import make_engine

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

CALLERS = 45  # there are 40 threads


@contextmanager
def run_held_elsewhere(settings: Settings, run_id: str) -> Iterator[None]:
    """Hold a run's lock as another process would."""
    engine = make_engine(settings.database_url or "", 60)
    key = {"run_id": run_id}
    with engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(hashtextextended(:run_id, 0))"), key)
        yield
        connection.execute(text("SELECT pg_advisory_unlock(hashtextextended(:run_id, 0))"), key)
    engine.dispose()


def test_many_callers_of_one_busy_run_keep_no_thread_from_others(
    api: Api, settings: Settings
) -> None:
    api.start()
    api.start("run-002")
    sent = threading.Semaphore(0)

    def report(number: int) -> int:
        sent.release()
        return api.issue(f"issue-{number}").status_code

    with ThreadPoolExecutor(CALLERS) as pool:
        with run_held_elsewhere(settings, "run-001"):
            answers = [pool.submit(report, number) for number in range(CALLERS)]
            for _ in range(CALLERS):
                assert sent.acquire(timeout=60)
            assert api.client.get("/health/live").status_code == 200
            assert api.run("run-001")["state"]  # a reader waits for no lock
            assert api.issue("other", "run-002").status_code == 201
            assert not any(answer.done() for answer in answers)
        found = Counter(answer.result(timeout=60) for answer in answers)
    assert found == {201: CALLERS}


def test_a_turn_that_does_not_come_is_503_and_to_be_tried_again(
    settings: Settings, api: Api
) -> None:
    api.client.app.state.turns._seconds = 0.01  # type: ignore[attr-defined]
    api.start()
    with ThreadPoolExecutor(1) as pool, run_held_elsewhere(settings, "run-001"):
        first = pool.submit(api.issue)
        while not api.client.app.state.turns._runs:  # type: ignore[attr-defined]
            pass
        second = api.issue()
        api.refused(second, 503, "run_busy", "'run-001'")
        assert second.headers["retry-after"] == "1"
    assert first.result(timeout=60).status_code == 201


def test_turns_of_a_run_are_in_order_and_leave_no_state() -> None:
    async def story() -> list[str]:
        turns, done = Turns(), list[str]()

        async def work(name: str) -> None:
            async with turns.take("Run" if name != "b" else "run"):
                await asyncio.sleep(0)
                done.append(name)

        await asyncio.gather(*(work(name) for name in "abc"))
        assert not turns._runs
        return done

    assert asyncio.run(story()) == ["a", "b", "c"]


def test_all_runs_together_have_a_share_of_the_threads() -> None:
    async def story() -> None:
        turns = Turns()
        turns._seconds = 0.01
        async with asyncio.TaskGroup() as tasks:
            end = asyncio.Event()

            async def work(number: int) -> None:
                async with turns.take(f"run-{number}"):
                    await end.wait()

            for number in range(CHANGING_THREADS):
                tasks.create_task(work(number))
            await asyncio.sleep(0)
            with pytest.raises(NoTurnError):
                async with turns.take("one-more"):
                    pass
            end.set()
        assert not turns._runs
        async with turns.take("one-more"):
            pass

    asyncio.run(story())
