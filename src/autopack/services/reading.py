"""Read a run with several statements at one moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

from ..domain.errors import AutopackError
from ..models import Run
from ..store import runs
from ..store.session import RowSession
from .context import AppContext
from .opening import changing
from .projection import is_behind


@contextmanager
def one_moment(context: AppContext) -> Iterator[RowSession]:
    """Open a session whose statements all see the same snapshot of the database."""
    with context.engine.connect() as connection:
        connection = connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        with RowSession(connection) as session:
            yield session


def get_current_run(context: AppContext, run_id: str) -> Run:
    """Return a run whose branch is about to be read, after this node shows its last change.

    Raises NotFoundError, and UnavailableError where this node cannot show it.
    """
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        if not _is_elsewhere(context, session, run):
            return run
    with changing(context, run_id) as change:
        return change.run


@contextmanager
def reading_run(
    context: AppContext, run_id: str, *, needs_branch: bool = False
) -> Iterator[tuple[RowSession, Run]]:
    """Load a run with its tiers and phases, and keep the snapshot for further reads.

    A run whose deadline has passed ends first, and this node first shows what another one changed.
    Raises NotFoundError; UnavailableError if the branch is needed and this node cannot show it.
    """
    with one_moment(context) as session:
        run = runs.get_run(session, run_id)
        is_elsewhere = _is_elsewhere(context, session, run)
        if not is_elsewhere and (run.ended_at is not None or context.now() < run.deadline_at):
            yield session, run
            return
    # An error that prevents the run's end must not prevent the report. A request that holds the run
    # right now lets it end itself, so no reader waits for that.
    is_needed = is_elsewhere and needs_branch
    with (
        nullcontext() if is_needed else suppress(AutopackError),
        changing(context, run_id, is_waiting=is_needed),
    ):
        pass
    with one_moment(context) as session:
        yield session, runs.get_run(session, run_id)


def _is_elsewhere(context: AppContext, session: RowSession, run: Run) -> bool:
    """Return whether another node made a change that this one does not show.

    Of its own changes, the request that makes one brings branch and files up to date.
    """
    return run.mirrored_by != context.node_id and is_behind(context, session, run)
