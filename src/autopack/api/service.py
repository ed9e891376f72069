"""The service about itself."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response

from .. import __version__
from ..services.health import Check, check_health
from ..views.service import CheckAnswer, HealthAnswer, LiveAnswer, ServiceAnswer
from .errors import problems
from .inputs import Context

DESCRIPTION = "Steers zero-intervention autonomous builds: a plan in, a judged branch out."

router = APIRouter(tags=["service"])


@router.get("/", responses=problems(), summary="What this is")
async def root() -> ServiceAnswer:
    """Name, version and where to go on."""
    return ServiceAnswer(
        service="Autopack Supervisor",
        version=__version__,
        description=DESCRIPTION,
        links={
            "documentation": "/docs",
            "reference": "/redoc",
            "openapi": "/openapi.json",
            "health": "/health",
            "runs": "/runs",
        },
    )


@router.get(
    "/health",
    responses={503: {"model": HealthAnswer, "description": "Unhealthy"}, **problems()},
    summary="Is everything there?",
)
def health(context: Context, response: Response) -> HealthAnswer:
    """Database, repository, storage, runs directory, background jobs; 503 names what failed.

    `storage` is the room in our home and in the repository's object store.

    Where branches are pushed to a remote, `remote` is `degraded` while a push fails; that stops
    nothing, so the answer stays 200.
    """
    checks = check_health(context)
    is_healthy = not any(check.detail and check.is_vital for check in checks.values())
    if not is_healthy:
        response.status_code = 503
    return HealthAnswer(
        status="healthy" if is_healthy else "unhealthy",
        checks={
            name: CheckAnswer(status=_status(check), detail=check.detail)
            for name, check in checks.items()
        },
    )


def _status(check: Check) -> Literal["ok", "failed", "degraded"]:
    if check.detail is None:
        return "ok"
    return "failed" if check.is_vital else "degraded"


@router.get("/health/live", responses=problems(), summary="Is the process alive?")
async def live() -> LiveAnswer:
    """Never touches the database, nor waits for a thread."""
    return LiveAnswer(status="alive")
