"""Read a run with several statements at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ..domain.errors import AutopackError
from ..models import Run
from ..store import runs
from ..store.session import RowSession
from .context import AppContext
from .opening import changing


@contextmanager
def one_moment(context: AppContext) -> Iterator[RowSession]:
    """Open a session whose statements all see the same snapshot of the database."""
    with context.engine.connect() as connection:
        connection = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        with RowSession(connection) as session:
            yield session


@contextmanager
def reading_run(context: AppContext, run_id: str) -> Iterator[tuple[RowSession, Run]]:
    """Load a run with its tiers and phases, and keep the snapshot for further reads.

    A run whose deadline has passed ends first. Raises NotFoundError.
    """
    with one_moment(context) as session:
        run = runs.get_run(session, run_id)
        if run.ended_at is not None or context.now() < run.deadline_at:
            yield session, run
            return
    # An error that prevents the run's end must not prevent the report. A request that holds the run
    # right now lets it end itself, so no reader waits for that.
    with suppress(AutopackError), changing(context, run_id, is_waiting=False):
        pass
    with one_moment(context) as session:
        yield session, runs.get_run(session, run_id)
