"""The service about itself."""

from __future__ import annotations

from typing import Literal

from . import Shape


class ServiceAnswer(Shape):
    service: Literal["Autopack Supervisor"]
    version: str
    description: str
    links: dict[str, str]


class CheckAnswer(Shape):
    status: Literal["ok", "failed", "degraded"]
    detail: str | None = None


class HealthAnswer(Shape):
    """`projects` has each open project that the caller may see, with why one is not served."""

    status: Literal["healthy", "unhealthy"]
    checks: dict[str, CheckAnswer]
    projects: dict[str, CheckAnswer]


class LiveAnswer(Shape):
    status: Literal["alive"]
