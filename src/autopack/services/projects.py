"""The projects of a service: list, create, change, close, open again. (docs/projects.md)

Every project has a database, a repository and folders of its own, so it is one more set of
settings: whatever serves the default project serves it. All functions take the default project's
context, unless they say so.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

import structlog
from pydantic import SecretStr
from sqlalchemy import URL, Engine, make_url
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from ..config import Settings
from ..domain.audit_log import AuditAction
from ..domain.errors import UnavailableError
from ..domain.projects import (
    ConnectionsExhaustedError,
    DefaultProjectError,
    LiveRunsError,
    NewProject,
    ProjectClosedError,
    ProjectDatabaseError,
    ProjectExistsError,
    ProjectNotFoundError,
    ProjectRepository,
    ProjectRepositoryError,
    RepositoryTakenError,
    require_unbound,
)
from ..gitrepo.errors import RepositoryUnusableError
from ..gitrepo.repository import find_git_dir
from ..models import Project
from ..store import projects as store
from ..store.session import RowSession
from ..views.projects import ProjectAnswer
from .audit_log import note
from .context import AppContext
from .nodes import ServedElsewhereError, require_history

logger = structlog.get_logger(__name__)

#: Opens the resources of a project, its database at head. Raises AutopackError.
Opening = Callable[[Settings], AbstractContextManager[AppContext]]

FOLDER: Final = "projects"  # in the service's home
# A project that waits has about ten connections; the others are for requests of all projects.
CONNECTIONS_WANTED: Final = 25


@dataclass(frozen=True, slots=True)
class OpenProject:
    """A project that is to be served; `changed_at` differs when its settings do."""

    name: str
    changed_at: datetime
    settings: Settings


def list_open(context: AppContext) -> list[OpenProject]:
    """Return the projects beside the default one that are to be served."""
    with context.reading() as session:
        return _open_of(context.settings, context.engine.url, session)


def list_open_in(settings: Settings, engine: Engine) -> list[OpenProject]:
    """Return the same from a database of any schema, which has none without a list of projects."""
    with Session(engine) as session:
        return _open_of(settings, engine.url, session) if store.has_list(session) else []


def _open_of(settings: Settings, url: URL, session: Session) -> list[OpenProject]:
    return [
        OpenProject(row.name, row.changed_at, _settings_of(settings, url, row))
        for row in store.list_projects(session)
        if row.closed_at is None
    ]


def settings_of(
    settings: Settings, engine: Engine, name: str, *, may_be_closed: bool = False
) -> Settings:
    """Return the settings of a project beside the default one, whose settings and engine are given.

    The database may have any schema. Raises ProjectNotFoundError, ProjectClosedError unless
    `may_be_closed`, and RepositoryTakenError for a closed project whose repository another one has
    by now.
    """
    with Session(engine) as session:
        project = store.find_project(session, name) if store.has_list(session) else None
        if project is None:
            raise ProjectNotFoundError(name)
        if project.closed_at is None or not may_be_closed:
            _require_open(project, name)
        else:
            owner = store.find_owner(session, project.git_dir)
            if project.git_dir == os.path.realpath(find_git_dir(settings)):
                owner = settings.project_id
            _require_free(project, owner)
        return _settings_of(settings, engine.url, project)


def make_missing_database(autocommit: Engine, settings: Settings) -> None:
    """Create the empty database of a project, if the server does not have it.

    `autocommit` is the default project's, `settings` are the project's. Raises
    ProjectDatabaseError.
    """
    name = make_url(settings.database_url or "").database or ""
    if not store.has_database(autocommit, name):
        _create_database(autocommit, name)


def list_projects(context: AppContext, problems: Mapping[str, str]) -> list[ProjectAnswer]:
    """Return the projects that the caller may see, the default one first."""
    with context.reading() as session:
        rows = store.list_projects(session)
    found = [_default(context), *(_answer(row, problems) for row in rows)]
    return [each for each in found if context.caller.project_id in (None, each.name)]


def get_project(context: AppContext, name: str, problems: Mapping[str, str]) -> ProjectAnswer:
    """Return a project that the caller may see. Raises ProjectNotFoundError."""
    for each in list_projects(context, problems):
        if each.name == name:
            return each
    raise ProjectNotFoundError(name)


def create_project(context: AppContext, wanted: NewProject, opening: Opening) -> ProjectAnswer:
    """Add a project: its database, its folders, the first entry of its audit log.

    The row is written last, so a project is there whole or not at all. Raises WrongProjectError,
    ProjectExistsError, ProjectRepositoryError, RepositoryTakenError, ConnectionsExhaustedError,
    ProjectDatabaseError.
    """
    require_unbound(context.caller)
    now = context.now()
    with context.writing() as session:
        store.lock_projects(session)
        is_default = wanted.name.lower() == context.settings.project_id.lower()
        if is_default or store.has_name(session, wanted.name):
            raise ProjectExistsError(
                f"there is, or was, a project '{wanted.name}': a name is used once"
            )
        project = Project(
            **wanted.model_dump(),
            database="",
            created_at=now,
            created_by=context.caller.actor,
            changed_at=now,
        )
        project.git_dir = _own_git_dir(context, session, project)
        _require_connections(session)
        project.database = _new_database(context)
        home = _home_of(context.settings, project.name)
        is_new_home = not home.exists()
        try:
            _open_once(context, project, opening, AuditAction.PROJECT_CREATED)
            session.add(project)
            session.commit()
        except BaseException:
            store.drop_database(context.autocommit, project.database)
            if is_new_home:
                shutil.rmtree(home, ignore_errors=True)
            raise
        return _answer(project, {})


def change_project(
    context: AppContext, name: str, wanted: ProjectRepository, opening: Opening
) -> ProjectAnswer:
    """Give a project, open or closed, another folder of its repository, base branch or remote.

    A backup is restored into the folder that the list names. So that of a closed project may be
    empty, and the database may be lost; what is not seen now is checked when it is served again.
    Raises WrongProjectError, DefaultProjectError, ProjectNotFoundError, ProjectRepositoryError,
    RepositoryTakenError.
    """
    with context.writing() as session:
        project = _lock(context, session, name)
        for field, value in wanted.model_dump().items():
            setattr(project, field, value)
        with session.no_autoflush:
            project.git_dir = _own_git_dir(context, session, project)
        if project.closed_at is None:
            try:
                _open_once(context, project, opening, AuditAction.PROJECT_CHANGED)
            except UnavailableError as error:
                by = context.caller.actor
                logger.warning("project_changed_unseen", project=name, by=by, why=error.detail)
        project.changed_at = context.now()
        session.commit()
        return _answer(project, {})


def close_project(context: AppContext, name: str, opened: AppContext | None) -> ProjectAnswer:
    """Stop serving a project; its database, repository and folders stay as they are.

    `opened` is the project's own context, None where it cannot be opened. One whose database is
    lost is closed too, so that a backup can be restored. Raises
    WrongProjectError, DefaultProjectError, ProjectNotFoundError, ProjectClosedError,
    LiveRunsError.
    """
    with context.writing() as session:
        project = _require_open(_lock(context, session, name), name)
        if opened is None or not store.has_database(context.autocommit, project.database):
            logger.warning("project_closed_unseen", project=name, by=context.caller.actor)
        else:
            with opened.for_caller(context.caller).writing() as own:
                # The log's lock comes first, as for everything else that it tells.
                note(own, opened.for_caller(context.caller), AuditAction.PROJECT_CLOSED, name, {})
                if store.has_live_runs(own):
                    raise LiveRunsError(
                        f"project '{name}' has runs under way: wait for them, or cancel them"
                    )
                own.commit()
        project.closed_at = context.now()
        session.commit()
        return _answer(project, {})


def reopen_project(context: AppContext, name: str, opening: Opening) -> ProjectAnswer:
    """Serve a closed project again.

    Raises WrongProjectError, DefaultProjectError, ProjectNotFoundError, ProjectExistsError for
    one that is open, ProjectRepositoryError, RepositoryTakenError, ConnectionsExhaustedError.
    """
    with context.writing() as session:
        project = _lock(context, session, name)
        if project.closed_at is None:
            raise ProjectExistsError(f"project '{name}' is open")
        project.git_dir = _own_git_dir(context, session, project)
        _require_connections(session)
        _open_once(context, project, opening, AuditAction.PROJECT_REOPENED)
        project.closed_at, project.changed_at = None, context.now()
        session.commit()
        return _answer(project, {})


def _lock(context: AppContext, session: RowSession, name: str) -> Project:
    require_unbound(context.caller)
    store.lock_projects(session)
    if name == context.settings.project_id:
        raise DefaultProjectError(
            f"'{name}' is the default project: the service's settings say what it is"
        )
    project = store.find_project(session, name)
    if project is None:
        raise ProjectNotFoundError(name)
    return project


def _require_open(project: Project | None, name: str) -> Project:
    if project is None:
        raise ProjectNotFoundError(name)
    if project.closed_at is not None:
        raise ProjectClosedError(
            f"project '{name}' is closed, since {project.closed_at:%Y-%m-%d %H:%M} UTC"
        )
    return project


def _own_git_dir(context: AppContext, session: RowSession, project: Project) -> str:
    """Return the git directory of a project that no other open project has.

    Branches of runs have the same names in each project, so two of them would share branches.
    """
    try:
        git_dir = os.path.realpath(
            find_git_dir(_settings_of(context.settings, context.engine.url, project))
        )
    except RepositoryUnusableError as error:
        raise ProjectRepositoryError(f"repository: {error.detail}") from error
    owner = store.find_owner(session, git_dir)
    if git_dir == os.path.realpath(context.repository.git_dir):
        owner = context.settings.project_id
    _require_free(project, owner)
    return git_dir


def _require_free(project: Project, owner: str | None) -> None:
    if owner not in (None, project.name):
        raise RepositoryTakenError(
            f"repository: {project.repository} is that of the project '{owner}', whose runs have"
            " branches of the same names"
        )


def _require_connections(session: RowSession) -> None:
    """Refuse a project beside which the others would be refused by Postgres."""
    free, most = store.free_connections(session)
    if free < CONNECTIONS_WANTED:
        raise ConnectionsExhaustedError(
            f"Postgres has {max(free, 0)} of its {most} connections (max_connections) left, another"
            f" project needs {CONNECTIONS_WANTED}: raise max_connections, or close a project"
        )


def _new_database(context: AppContext) -> str:
    name = store.new_database_name(context.autocommit)
    _create_database(context.autocommit, name)
    return name


def _create_database(autocommit: Engine, name: str) -> None:
    try:
        store.create_database(autocommit, name)
    except ProgrammingError as error:
        reason = " ".join(str(error.orig).split())
        role = autocommit.url.username or "of DATABASE_URL"
        raise ProjectDatabaseError(
            f"Postgres makes no database for the project ({reason}): allow it by"
            f' `ALTER ROLE "{role}" CREATEDB`'
        ) from error


def _open_once(
    context: AppContext, project: Project, opening: Opening, action: AuditAction
) -> None:
    """Check that a project can be served, and write into its audit log what is done to it."""
    data = {field: getattr(project, field) for field in ProjectRepository.model_fields}
    try:
        with opening(_settings_of(context.settings, context.engine.url, project)) as opened:
            require_history(opened)
            its = opened.for_caller(context.caller)
            with its.writing() as session:
                note(session, its, action, project.name, data)
                session.commit()
    except (RepositoryUnusableError, ServedElsewhereError) as error:
        raise ProjectRepositoryError(f"repository: {error.detail}") from error


def _settings_of(settings: Settings, url: URL, project: Project) -> Settings:
    home = _home_of(settings, project.name)
    url = url.set(database=project.database)
    remote = project.git_remote
    return settings.model_copy(
        update={
            "project_id": project.name,
            "repo_path": Path(project.repository),
            "base_branch": project.base_branch,
            "git_remote": None if remote is None else SecretStr(remote),
            "database_url": url.render_as_string(hide_password=False),
            "home": home,
            "autonomous_runs_dir": home / "runs",
            "testing": False,  # no one else brings its database to head
        }
    )


def _home_of(settings: Settings, name: str) -> Path:
    return settings.home / FOLDER / name


def _default(context: AppContext) -> ProjectAnswer:
    settings = context.settings
    return ProjectAnswer(
        name=settings.project_id,
        is_default=True,
        state="open",
        problem=None,
        repository=str(settings.repo_path),
        base_branch=settings.base_branch,
        git_remote=None,  # an address of the settings may hold a password
        created_at=None,
        created_by=None,
        closed_at=None,
    )


def _answer(project: Project, problems: Mapping[str, str]) -> ProjectAnswer:
    return ProjectAnswer.of(
        project,
        is_default=False,
        state="open" if project.closed_at is None else "closed",
        problem=problems.get(project.name),
    )
