"""What a project is, beside the default one of the settings. (docs/projects.md)"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from .access import Caller, WrongProjectError
from .errors import ConflictError, InvalidError, NotFoundError, UnavailableError
from .values import Closed, Identifier, Name

#: What follows a project's name in a path of `/projects` itself, not of the project's API.
DEEDS = frozenset({"close", "reopen"})


class ProjectNotFoundError(NotFoundError):
    """There is none of this name, or the caller's key is for another one: the same answer."""

    code = "project_not_found"

    def __init__(self, name: str) -> None:
        super().__init__(f"there is no open project '{name[:80]}'")


class ProjectUnavailableError(UnavailableError):
    """The project is open, but the service that answers cannot serve it."""

    code = "project_unavailable"


class ProjectExistsError(ConflictError):
    code = "project_exists"


class ProjectClosedError(ConflictError):
    code = "project_closed"


class RepositoryTakenError(ConflictError):
    code = "repository_taken"


class LiveRunsError(ConflictError):
    code = "project_has_live_runs"


class DefaultProjectError(ConflictError):
    code = "default_project"


class ProjectDatabaseError(ConflictError):
    code = "project_database_refused"


class ConnectionsExhaustedError(ConflictError):
    """Postgres could not serve another project and requests beside it."""

    code = "connections_exhausted"


class ProjectRepositoryError(InvalidError):
    code = "project_repository"


def _absolute(value: str) -> str:
    if not Path(value).is_absolute():
        raise ValueError("must be an absolute path")
    return value


class ProjectRepository(Closed):
    """Where a project's commits come from and go to."""

    repository: Annotated[
        Name,
        AfterValidator(_absolute),
        Field(description="Folder of its git repository on the service's machine."),
    ]
    base_branch: Annotated[
        Name | None,
        Field(description="Branch that runs start from; null: `main`, else the default branch."),
    ] = None
    git_remote: Annotated[
        Identifier | None,
        Field(description="Name of the repository's remote that branches are pushed to."),
    ] = None


class NewProject(ProjectRepository):
    """A project to add; its name is used once and for all, as events name it."""

    name: Identifier


def require_unbound(caller: Caller) -> None:
    """Refuse a caller whose key is for one project. Raises WrongProjectError."""
    if caller.project_id is not None:
        raise WrongProjectError(
            f"projects are managed by callers for all projects; {caller.label} is bound to the"
            f" project '{caller.project_id}'"
        )


def project_for(caller: Caller, named: str | None, default: str, served: Collection[str]) -> str:
    """Return in which project a request is answered: the one of its path, else of its key.

    Raises ProjectNotFoundError, for a project that is not there and for one that the caller may
    not see alike, and WrongProjectError for a caller whose own project is not served here.
    """
    bound = caller.project_id
    if bound is not None and bound not in served:
        raise WrongProjectError(
            f"{caller.label} is bound to the project '{bound}', which is not served here"
        )
    wanted = named or bound or default
    if wanted not in served or bound not in (None, wanted):
        raise ProjectNotFoundError(wanted)
    return wanted
