"""Adds the dashboard to the application."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, FastAPI

from . import (
    actions,
    figures_page,
    issues_page,
    keys_page,
    live,
    pages,
    ruleset_page,
    run_page,
    sign_in,
)
from .rendering import HOME

_others: Final = APIRouter(include_in_schema=False)
_others.add_api_route(f"{HOME}/static/{{digest}}/{{name}}", pages.static_file)
_others.add_api_route(f"{HOME}/{{path:path}}", pages.nowhere)  # last, as every path fits it
_ROUTERS: Final = (
    sign_in.router,
    pages.router,
    run_page.router,
    figures_page.router,
    issues_page.router,
    keys_page.router,
    ruleset_page.router,
    live.router,
    actions.router,
    _others,
)


def mount_dashboard(app: FastAPI) -> None:
    """Serve the pages below `/dashboard`."""
    # Not `include_router`: it builds each route a second time, for every application.
    app.router.routes += [route for router in _ROUTERS for route in router.routes]
