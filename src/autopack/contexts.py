"""The resources of all use cases: opened for a process, for a command, for a further project."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .config import Settings
from .database import Database, DatabaseClock, open_database
from .domain.access import Caller
from .gitrepo import Repository
from .migrating import DatabaseError, one_line_errors
from .mirror import Mirror

# What the command line does beside the database, it imports from here.
from .services.audit_log import first_broken_entry as first_broken_entry
from .services.audit_log import last_entries as last_entries
from .services.context import AppContext as AppContext  # the command line names it
from .services.keys import create_key as create_key
from .services.keys import list_keys as list_keys
from .services.keys import revoke_key as revoke_key
from .services.keys import rotate_key as rotate_key
from .services.nodes import NodeMember, ServedElsewhereError, require_history
from .services.projects import OpenProject as OpenProject
from .services.projects import list_open_in as list_open_in
from .services.projects import settings_of
from .services.retention import retain as retain


@contextmanager
def open_context(settings: Settings, *, is_default: bool = True) -> Iterator[AppContext]:
    """Open the context of all use cases, its database at head.

    `is_default`: of the project of the service's settings, not of one beside it.
    """
    # First, since it refuses a home that a repository tracks, before a Postgres starts in it.
    repository = Repository.open(settings)
    with open_database(settings, is_further=not is_default) as database:
        if not settings.testing:
            database.migrate()
        mirror = Mirror(settings.autonomous_runs_dir, beside=repository.objects.folder)
        yield AppContext(
            settings,
            database.engine,
            database.autocommit,
            repository,
            mirror,
            now=DatabaseClock(database.autocommit),
            is_default=is_default,
            node_id=repository.node_identity().node_id,
        )


@contextmanager
def as_node(
    context: AppContext, *, address: str | None = None, has_ci_alone: bool = False
) -> Iterator[AppContext]:
    """Make this process a part of its node; yields the context with the node's id.

    A process for CI alone has no branches and files. Raises DatabaseError where the database has
    runs of another repository.
    """
    try:
        if has_ci_alone:
            require_history(context)
        member = None if has_ci_alone else NodeMember(context, address)
    except ServedElsewhereError as error:
        raise DatabaseError(error.detail) from error
    try:
        yield context if member is None else member.context
    finally:
        if member is not None:
            member.close()


@contextmanager
def beside_database(
    settings: Settings, name: str, project: str | None = None
) -> Iterator[AppContext]:
    """Open the service's data without a service; `name` is who works on them.

    `project`: those of a project, which is the default one if it is None. Raises
    ProjectNotFoundError, ProjectClosedError.
    """
    with (
        of_project(settings, project) as its,
        open_context(its.settings, is_default=its.is_default) as context,
    ):
        yield context.for_caller(Caller(name=name))


@dataclass(frozen=True, slots=True)
class ChosenProject:
    """A project's settings; `beside`: the open database that lists it, None for the default one."""

    settings: Settings
    beside: Database | None = None

    @property
    def is_default(self) -> bool:
        return self.beside is None


@contextmanager
def of_project(
    settings: Settings, project: str | None, *, may_be_closed: bool = False
) -> Iterator[ChosenProject]:
    """Find a project of the service's settings, and migrate nothing; None: the default one.

    While the `with` block runs, the embedded Postgres does. Raises ProjectNotFoundError,
    ProjectClosedError unless `may_be_closed`, RepositoryTakenError, DatabaseError.
    """
    if project is None or project == settings.project_id:
        yield ChosenProject(settings)
        return
    with open_database(settings) as database:
        with one_line_errors(database.engine):
            its = settings_of(settings, database.engine, project, may_be_closed=may_be_closed)
        yield ChosenProject(its, database)
