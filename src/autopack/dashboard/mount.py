"""Adds the dashboard to the application."""

from __future__ import annotations

from fastapi import FastAPI

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


def mount_dashboard(app: FastAPI) -> None:
    """Serve the pages below `/dashboard`."""
    for module in (
        sign_in,
        pages,
        run_page,
        figures_page,
        issues_page,
        keys_page,
        ruleset_page,
        live,
        actions,
    ):
        app.include_router(module.router)
    app.add_api_route(
        f"{HOME}/static/{{digest}}/{{name}}", pages.static_file, include_in_schema=False
    )
    app.add_api_route(f"{HOME}/{{path:path}}", pages.nowhere, include_in_schema=False)
