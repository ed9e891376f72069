"""What comes after a commit to Postgres: refs move, files are written.

The commit is the moment when a change happened. A step after it that fails is not undone but rolled
forward, under the run's lock: by the run's next request, the periodic job, or the next start. So is
the aging of what the change has reported.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import structlog
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from .. import tracing
from ..domain.errors import AutopackError, UnavailableError
from ..domain.events import IssueRecorded, IssueResolved
from ..models import Run
from ..store import feed, runs
from ..store.session import RowSession
from .change import RunChange
from .projection import project, project_backlog
from .sightings import follow_backlog, write_backlog

logger = structlog.get_logger(__name__)


class ProjectionLaggingError(UnavailableError):
    """The change is recorded, but branch or files do not show it yet."""

    code = "projection_lagging"


class OutcomeUnknownError(UnavailableError):
    """The database went away during the commit, so the outcome is not known."""

    code = "outcome_unknown"


def commit_change(change: RunChange) -> None:
    """Commit a settled change to Postgres, then let branch and files follow.

    The refs are locked and checked before the commit, so that it never speaks of a branch that
    another process holds. Raises RefMovedError, OutcomeUnknownError, ProjectionLaggingError.
    """
    change.objects.install()  # durable before the database names them
    if change.ref_updates:
        with (
            tracing.step("commit"),
            change.context.repository.prepare_refs(change.ref_updates) as refs,
        ):
            write_backlog(change)
            commit_for_good(change.session)
            after_commit(change.session, change.run, refs.commit)
    else:
        with tracing.step("commit"):
            write_backlog(change)
            commit_for_good(change.session)
    if change.run.revision != change.revision_before:
        with tracing.step("files"):
            after_commit(change.session, change.run, lambda: _write_files(change))


def commit_for_good(session: RowSession) -> None:
    """Commit. Raises OutcomeUnknownError when the database goes away in the midst of it."""
    try:
        session.commit()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise OutcomeUnknownError(
            "the database went away during the commit, so this may be recorded or not; send the "
            "same request again, with the same Idempotency-Key if it had one"
        ) from error


def after_commit(session: RowSession, run: Run, step: Callable[[], None]) -> None:
    """Do a step that comes after the commit: what fails in it is rolled forward later.

    Readers of the feed are told of the change all the same. Raises ProjectionLaggingError.
    """
    try:
        step()
    except Exception as error:  # whatever it is, the change is recorded
        why = error.detail if isinstance(error, AutopackError) else type(error).__name__
        with suppress(DBAPIError, InvalidRequestError):  # it may be the database that failed
            feed.announce(session)
        logger.warning("projection_lags", run_id=run.run_id, why=why, exc_info=True)
        raise ProjectionLaggingError(
            f"run '{run.run_id}' is recorded at revision {run.revision}, but branch or files do "
            f"not show it yet ({why}); they will as soon as they can, so do not send this again"
        ) from error


def _write_files(change: RunChange) -> None:
    context, session, run = change.context, change.session, change.run
    follow_backlog(change)
    has_issues = any(isinstance(each, IssueRecorded | IssueResolved) for each in change.events)
    if change.record is not None:
        context.mirror.write_files(*change.record)
    else:
        # A person may have removed the run's files: then all of them are written again.
        is_whole = context.mirror.has_run(run.run_id)
        project(
            context,
            session,
            run,
            phases=change.touched_phases if is_whole else None,
            index=change.index() if has_issues or not is_whole else None,
        )
    if change.touches_backlog:
        project_backlog(context, session)
    runs.mark_mirrored(session, run, context.node_id)
