"""One clone for a database: branches and files of another clone would not be updated.

Any number of services and job processes may share a database if they share the clone, the home and
the runs directory.
"""

from __future__ import annotations

from contextlib import suppress
from threading import Event, Thread
from typing import Final

import structlog
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from ..domain.errors import ConflictError
from ..gitrepo import Repository
from ..models import ServedClone
from ..store import serving
from .context import AppContext

logger = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 5


class ServedElsewhereError(ConflictError):
    """The database belongs to another clone, or to another repository."""

    code = "served_elsewhere"


def require_history(context: AppContext) -> None:
    """Check that the database's runs are of this repository. Raises ServedElsewhereError."""
    with context.writing() as session:
        known = serving.lock_clone(session)
        if known is not None and known.clone != context.repository.clone_identity().clone:
            _require_shared_history(session, known, context.repository)


def claim_database(session: Session, repository: Repository) -> None:
    """Reserve the database for this clone, and commit that. Raises ServedElsewhereError.

    If it belonged to another clone, whose service has stopped, branches and files are rebuilt here.
    """
    mine = repository.clone_identity()
    with session.begin():
        known = serving.lock_clone(session)
        if known is None or known.clone != mine.clone:
            if known is not None:
                if serving.is_served(session):
                    raise ServedElsewhereError(
                        f"the database is served from {known.place} already, since "
                        f"{known.since:%Y-%m-%d %H:%M} UTC, and this is {mine.place}: branches here"
                        " would not show what is recorded there. Stop that service, or set"
                        " DATABASE_URL to a database of this clone's own."
                    )
                _require_shared_history(session, known, repository)
                logger.warning("clone_changed", was=known.place, now=mine.place)
            roots = repository.root_commits()
            serving.put_clone(session, clone=mine.clone, place=mine.place, root_commits=list(roots))
        serving.share(session)


def _require_shared_history(session: Session, known: ServedClone, repository: Repository) -> None:
    roots = repository.root_commits()
    is_comparable = roots and known.root_commits  # a shallow clone has none
    if is_comparable and not {*roots} & {*known.root_commits} and serving.has_runs(session):
        raise ServedElsewhereError(
            f"the database has runs of the repository at {known.place} (first commit"
            f" {known.root_commits[0]}); {repository.clone_identity().place} (first commit"
            f" {roots[0]}) shares no history with it. Set DATABASE_URL to a database of this"
            " repository's own."
        )


class ClonePlace:
    """Reserves the database for this clone until it is closed, also over a restart of Postgres."""

    def __init__(self, context: AppContext) -> None:
        self._context = context
        self._is_over = Event()
        self._connection = self._take()
        self._thread = Thread(target=self._watch, name="clone-place", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()
        self._drop()

    def _take(self) -> Connection:
        connection = self._context.engine.connect()
        try:
            with Session(connection, expire_on_commit=False) as session:
                claim_database(session, self._context.repository)
        except BaseException:
            connection.close()
            raise
        return connection

    def _watch(self) -> None:
        while not self._is_over.wait(LOOK_SECONDS):
            self.look()

    def look(self) -> None:
        """Check that the lock is still held; take it again if it is not."""
        if not self._is_held():
            self._reclaim()

    def _is_held(self) -> bool:
        held = self._connection.connection.dbapi_connection
        dialect = self._connection.dialect
        try:
            return held is not None and dialect.do_ping(held)
        except dialect.loaded_dbapi.Error:
            return False

    def _reclaim(self) -> None:
        """Take the lock again after an outage of Postgres; another clone's service may have it."""
        try:
            connection = self._take()
        except ServedElsewhereError as error:
            if not self._context.superseded.is_set():
                logger.error("served_elsewhere", why=error.detail)
            self._context.superseded.set()
        except (DBAPIError, PoolTimeoutError):
            return  # Postgres is still unavailable
        else:
            self._connection.invalidate()
            self._connection.close()
            self._connection = connection
            self._context.superseded.clear()

    def _drop(self) -> None:
        with suppress(DBAPIError), Session(self._connection) as session:
            serving.leave(session)
            session.commit()
        self._connection.close()
