"""The application: the only place that wires things together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from . import __version__
from .api import (
    branches,
    ci,
    issues,
    metrics,
    phases,
    project,
    reports,
    results,
    runs,
    service,
    work,
)
from .api.access import AccessMiddleware
from .api.docs import mount_docs
from .api.errors import install_error_handlers
from .api.mcp.endpoint import mount_mcp
from .config import Settings, load_settings
from .database import open_database
from .gitrepo import Repository
from .jobs.periodic import Periodic
from .jobs.workers import Workers
from .mirror import Mirror
from .services.house import House
from .services.pushes import push_next, take_up_pushes
from .services.upkeep import keep_up, start_up

UPKEEP_SECONDS = 5.0
PUSH_WORKERS = 3


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; nothing is opened before its lifespan begins."""
    settings = settings or load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            app.state.house = await run_in_threadpool(_open, settings, stack)
            async with mcp.running():
                yield
            await run_in_threadpool(stack.close)

    app = FastAPI(
        title="Autopack Supervisor",
        version=__version__,
        description=service.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    _configure_logging(settings)
    app.state.settings = settings
    install_error_handlers(app)
    for module in (
        service,
        runs,
        phases,
        issues,
        results,
        ci,
        branches,
        project,
        work,
        metrics,
        reports,
    ):
        app.include_router(module.router)
    mount_docs(app)
    mcp = mount_mcp(app)
    app.add_middleware(
        AccessMiddleware,
        hosts=settings.allowed_hosts,
        is_loopback_only=settings.auth == "loopback",
        max_body_bytes=settings.max_body_bytes,
    )
    return app


def _open(settings: Settings, stack: ExitStack) -> House:
    database = stack.enter_context(open_database(settings))
    if not settings.testing:
        database.migrate()
    repository = Repository.open(settings)
    stack.callback(repository.close)
    house = House(settings, database.engine, repository, Mirror(settings.autonomous_runs_dir))
    start_up(house)
    upkeep = Periodic(lambda: keep_up(house), UPKEEP_SECONDS, house.pulse)
    upkeep.start()
    stack.callback(upkeep.stop)
    _push_branches(house, stack)
    if settings.auth == "disabled":
        structlog.get_logger(__name__).warning(
            "auth_disabled", detail="everybody who reaches this address is answered"
        )
    return house


def _push_branches(house: House, stack: ExitStack) -> None:
    """Let the remote follow from now on, where there is one."""
    remote = house.repository.remote
    if remote is None:
        return
    take_up_pushes(house)
    workers = Workers("push", lambda: push_next(house, remote), house.push_bell, PUSH_WORKERS)
    workers.start()
    stack.callback(workers.stop)
    stack.callback(remote.stop)  # first, or a slow remote would hold up the end


def _configure_logging(settings: Settings) -> None:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def __getattr__(name: str) -> FastAPI:
    """Make `app` when a server asks for it: importing this module reads no environment."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
