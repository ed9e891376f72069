"""The service about itself."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from .. import __version__
from ..services.availability import OUTAGES
from ..services.context import AppContext
from ..services.health import Check, check_health
from ..services.nodes import list_nodes
from ..views.service import CheckAnswer, HealthAnswer, LiveAnswer, NodeAnswer, ServiceAnswer
from .credentials import DASHBOARD
from .errors import problems
from .guard import GuardedRoute
from .inputs import Context
from .places import places_of

DESCRIPTION = "Supervises autonomous builds without intervention: from a plan to a verified branch."

router = APIRouter(tags=["service"], route_class=GuardedRoute)


@router.get("/", response_model=ServiceAnswer, responses=problems(), summary="About this service")
async def root(request: Request) -> ServiceAnswer | RedirectResponse:
    """Name, version and links. A browser is sent to the dashboard."""
    if "text/html" in request.headers.get("accept", ""):
        prefix = str(request.scope.get("root_path", "")).rstrip("/")
        return RedirectResponse(f"{prefix}{DASHBOARD}", 303)
    return ServiceAnswer(
        service="Autopack Supervisor",
        version=__version__,
        description=DESCRIPTION,
        links={
            "dashboard": DASHBOARD,
            "documentation": "/docs",
            "reference": "/redoc",
            "openapi": "/openapi.json",
            "health": "/health",
            "runs": "/runs",
            "attention": "/attention",
        },
    )


@router.get(
    "/health",
    responses={503: {"model": HealthAnswer, "description": "Unhealthy"}, **problems()},
    summary="Check all parts of the service",
)
def health(request: Request, context: Context, response: Response) -> HealthAnswer:
    """Database, repository, storage, runs directory, background jobs; 503 names what failed.

    `storage` is the free space for the service's home and the repository's objects.

    The checks are those of the project that answers; `projects` has all that the caller may see,
    where one that is not served here is `degraded`.

    `nodes` are the services and job processes of this database, by their homes, with how far each
    is behind; a node that is gone or behind does not make this one unhealthy. While this one
    catches up, as it is new or was away long, `checks.node` says how many runs it has still to look
    at. It answers rightly meanwhile, but the first request about such a run takes longer.

    With a remote, `remote` is `degraded` while a push fails; runs continue, so the answer stays
    200.
    """
    places = places_of(request.scope)
    checks = check_health(context)
    is_healthy = not any(check.detail and check.is_vital for check in checks.values())
    if not is_healthy:
        response.status_code = 503
    listed = _nodes(context)
    return HealthAnswer(
        status="healthy" if is_healthy else "unhealthy",
        checks={
            name: CheckAnswer(status=_status(check), detail=check.detail)
            for name, check in checks.items()
        }
        | _catching_up(listed),
        projects={
            name: CheckAnswer(
                status="degraded" if name in places.problems else "ok",
                detail=places.problems.get(name),
            )
            for name, _ in places.names_for(context.caller)
        },
        nodes=listed,
    )


def _catching_up(listed: list[NodeAnswer]) -> dict[str, CheckAnswer]:
    """Say so while this node catches up; it answers rightly, so this is not a failure."""
    left = next((node.unseen_runs for node in listed if node.is_this), 0)
    if not left:
        return {}
    return {"node": CheckAnswer(status="ok", detail=f"catching up: {left} runs to look at")}


def _nodes(context: AppContext) -> list[NodeAnswer]:
    """Return the nodes; none while the database does not answer, which `checks` says."""
    try:
        return list_nodes(context)
    except OUTAGES:
        return []


def _status(check: Check) -> Literal["ok", "failed", "degraded"]:
    if check.detail is None:
        return "ok"
    return "failed" if check.is_vital else "degraded"


@router.get("/health/live", responses=problems(), summary="Check that the process runs")
async def live() -> LiveAnswer:
    """Does not use the database, nor wait for a thread."""
    return LiveAnswer(status="alive")
