"""The service about itself."""

from __future__ import annotations

from fastapi import APIRouter, Response

from .. import __version__
from ..services.health import check_health
from .errors import problems
from .inputs import InHouse
from .schemas.service import CheckAnswer, HealthAnswer, LiveAnswer, ServiceAnswer

DESCRIPTION = "Steers zero-intervention autonomous builds: a plan in, a judged branch out."

router = APIRouter(tags=["service"])


@router.get("/", responses=problems(), summary="What this is")
def root() -> ServiceAnswer:
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
def health(house: InHouse, response: Response) -> HealthAnswer:
    """Database, repository and runs directory; 503 names what failed."""
    failures = check_health(house)
    is_healthy = not any(failures.values())
    if not is_healthy:
        response.status_code = 503
    return HealthAnswer(
        status="healthy" if is_healthy else "unhealthy",
        checks={
            name: CheckAnswer(status="failed" if failure else "ok", detail=failure)
            for name, failure in failures.items()
        },
    )


@router.get("/health/live", responses=problems(), summary="Is the process alive?")
def live() -> LiveAnswer:
    """Never touches the database."""
    return LiveAnswer(status="alive")
