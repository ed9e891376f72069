"""Background work: what is queued with a change, and who does it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from autopack.config import Settings
from autopack.database import make_engine
from autopack.jobs.queue import defer

pytestmark = pytest.mark.integration


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    assert settings.database_url is not None
    engine = make_engine(settings.database_url, 15)
    yield engine
    engine.dispose()


class TestQueue:
    def test_a_job_is_queued_by_the_commit_of_the_change_or_not_at_all(
        self, engine: Engine
    ) -> None:
        with Session(engine) as session:
            defer(session, "work", queue="q", arguments={"number": 1})
            session.rollback()
            defer(session, "work", queue="q", arguments={"number": 2})
            assert _queued(engine) == []
            session.commit()
        assert _queued(engine) == [("work", {"number": 2}, None)]

    def test_a_job_that_waits_already_is_due_at_the_earlier_time(self, engine: Engine) -> None:
        soon = datetime.now(UTC) + timedelta(hours=1)
        late = soon + timedelta(hours=1)
        with Session(engine) as session:
            for at, due in [(late, late), (soon, soon), (late, soon), (None, None), (late, None)]:
                defer(session, "work", queue="q", arguments={}, queueing_lock="one", at=at)
                session.commit()
                assert _queued(engine) == [("work", {}, due)]

    def test_no_worker_takes_a_job_before_the_change_that_wants_it_again_is_there(
        self, engine: Engine
    ) -> None:
        with Session(engine) as session:
            for _ in range(2):
                session.commit()
                defer(session, "work", queue="q", arguments={}, queueing_lock="one")
            assert _fetch(engine) is None
            session.commit()
        assert _fetch(engine) == "work"


def _queued(engine: Engine) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        rows = connection.execute(
            text("SELECT task_name, args, scheduled_at FROM procrastinate_jobs")
        )
        return [tuple(row) for row in rows]


def _fetch(engine: Engine) -> str | None:
    """Take the next job, as a worker does."""
    with engine.connect() as connection:
        query = text("SELECT task_name FROM procrastinate_fetch_job_v2(ARRAY['q'], NULL)")
        name: str | None = connection.scalar(query)
        connection.commit()
        return name
