"""The projects of the service. (docs/projects.md)"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Depends, Path, Request
from fastapi.concurrency import run_in_threadpool

from ..domain.projects import NewProject, ProjectRepository
from ..domain.values import Identifier
from ..services import projects
from ..services.projects import Opening
from ..views.projects import ProjectAnswer, ProjectsAnswer
from .bodies import StrictRoute
from .errors import problems
from .examples import NEW_PROJECT, PROJECT, example
from .inputs import Context
from .places import Places, places_of

router = APIRouter(tags=["projects"], route_class=StrictRoute)


def _places(request: Request) -> Places:
    return places_of(request.scope)


def _opening(request: Request) -> Opening:
    opening: Opening = request.app.state.opening
    return opening


InPlaces = Annotated[Places, Depends(_places)]
InOpening = Annotated[Opening, Depends(_opening)]
ProjectName = Annotated[
    Identifier,
    Path(description="The project's name.", openapi_examples={"shop": {"value": "shop"}}),
]


@router.get("/projects", responses=problems(503), summary="List projects")
async def list_projects(context: Context, places: InPlaces) -> ProjectsAnswer:
    """The default project first, closed ones too; to a key that is for one project that one alone.

    Each operation of this API exists for each open project below `/projects/{project}`. Without it
    a path means the project of the caller's key, else the default one.
    """
    await places.refresh()
    found = await run_in_threadpool(projects.list_projects, context, places.problems)
    return ProjectsAnswer(projects=found)


@router.get(
    "/projects/{project}", responses=problems(404, 422, 503), summary="Read about a project"
)
async def get_project(context: Context, places: InPlaces, project: ProjectName) -> ProjectAnswer:
    """A project that is not there, and one that the caller's key is not for, are the same 404."""
    return await _now(context, places, project)


@router.post(
    "/projects",
    status_code=201,
    responses=problems(409, 413, 422, 503),
    summary="Add a project",
)
async def create_project(
    context: Context,
    places: InPlaces,
    opening: InOpening,
    wanted: Annotated[NewProject, Body(openapi_examples=example(NEW_PROJECT, "A second project"))],
) -> ProjectAnswer:
    """It gets a database and folders of its own, and is served at once.

    409 for a name that is or was in use, and for a repository that another project has; 422 for a
    folder that is no repository that can be served. For callers whose key is for all projects.
    """
    await run_in_threadpool(projects.create_project, context, wanted, opening)
    return await _now(context, places, wanted.name)


@router.put(
    "/projects/{project}",
    responses=problems(404, 409, 413, 422, 503),
    summary="Change a project",
)
async def change_project(
    context: Context,
    places: InPlaces,
    opening: InOpening,
    project: ProjectName,
    wanted: Annotated[ProjectRepository, Body(openapi_examples=example(PROJECT, "A remote"))],
) -> ProjectAnswer:
    """Another folder of the same repository, base branch or remote; its open streams end.

    A project whose database is lost is changed too, and `problem` says why it is not served. The
    folder of a closed one may be empty: a backup can be restored into it.
    """
    await run_in_threadpool(projects.change_project, context, project, wanted, opening)
    return await _now(context, places, project)


@router.post(
    "/projects/{project}/close",
    responses=problems(404, 409, 422, 503),
    summary="Close a project",
)
async def close_project(context: Context, places: InPlaces, project: ProjectName) -> ProjectAnswer:
    """Stop serving it; what it has is kept. 409 while it has runs under way."""
    await places.refresh()
    place = places.find(project)
    opened = None if place is None else place.state.context
    await run_in_threadpool(projects.close_project, context, project, opened)
    return await _now(context, places, project)


@router.post(
    "/projects/{project}/reopen",
    responses=problems(404, 409, 422, 503),
    summary="Serve a closed project again",
)
async def reopen_project(
    context: Context, places: InPlaces, opening: InOpening, project: ProjectName
) -> ProjectAnswer:
    """All is as it was, keys too."""
    await run_in_threadpool(projects.reopen_project, context, project, opening)
    return await _now(context, places, project)


async def _now(context: Context, places: Places, name: str) -> ProjectAnswer:
    await places.refresh()
    return await run_in_threadpool(projects.get_project, context, name, places.problems)
