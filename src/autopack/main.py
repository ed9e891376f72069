"""The application: connects the HTTP API, the dashboard and the resources behind them."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from types import FrameType
from typing import Final

import anyio
import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from . import __version__
from .api import (
    attention,
    branches,
    ci,
    events,
    issues,
    keys,
    metrics,
    monitoring,
    nodes,
    phases,
    project,
    projects,
    reports,
    results,
    runs,
    service,
    webhooks,
    work,
)
from .api.access import AccessMiddleware
from .api.answers import describe_answers
from .api.bodies import BodyReader
from .api.credentials import LOOKUPS
from .api.csv_text import describe_csv
from .api.docs import mount_docs
from .api.errors import install_error_handlers
from .api.guard import describe_access
from .api.head import HeadLimits
from .api.json_text import JsonLimits, Limit
from .api.mcp.endpoint import McpEndpoint, mount_mcp
from .api.monitoring import TraceMiddleware, Traffic, TrafficMiddleware
from .api.places import FurtherPlace, Places, ProjectDoor
from .api.turns import Turns
from .api.wire import WireProtocol, connections_within, protocol_with, raise_file_limit
from .background import begin_work
from .config import MEGABYTE, Settings, load_settings
from .contexts import as_node, open_context
from .dashboard.live import Boards
from .dashboard.mount import mount_dashboard
from .domain.errors import UnavailableError
from .domain.limits import CallerLimits, Rates
from .logs import configure_logging, trace
from .migrating import DatabaseError
from .services.context import AppContext
from .services.feed import Feed
from .services.keys import Keyring
from .services.oidc import IssuerKeys, TokenVerifier
from .services.projects import OpenProject

# The modules of the HTTP API, in the order of OpenAPI.
OPERATIONS: Final = (
    service,
    attention,
    runs,
    events,
    phases,
    issues,
    results,
    ci,
    branches,
    project,
    work,
    metrics,
    monitoring,
    reports,
    keys,
    webhooks,
    projects,
    nodes,
)


def create_app(
    settings: Settings | None = None,
    opened: AppContext | None = None,
    *,
    is_answering_only: bool = False,
) -> FastAPI:
    """Create the application; nothing is opened before its lifespan begins.

    With `opened`, a context whose node the caller has registered, it opens none of its own.
    `is_answering_only`: one of several processes of a service, whose `first_process` does the rest.
    """
    settings = settings or load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            trace(settings, stack)
            context = await run_in_threadpool(_start, settings, opened, stack)
            if not is_answering_only:
                await run_in_threadpool(begin_work, context, stack)
            app.state.verifier = _verifier(settings)
            app.state.lookups = anyio.CapacityLimiter(LOOKUPS)
            app.state.opening = _opening
            # A stream keeps its connection, so some connections are reserved for other requests.
            most = settings.max_connections or connections_within(raise_file_limit())
            streams = min(settings.max_streams, most * 3 // 4)
            async with _serving(app.state, context, streams):
                serve = partial(_serve_further, app.state, streams, is_answering_only)
                app.state.places = Places(app, serve)
                await app.state.places.refresh()
                try:
                    async with _ending_streams(app.state.places):
                        yield
                finally:
                    await app.state.places.close()
            await run_in_threadpool(stack.close)

    app = FastAPI(
        title="Autopack Supervisor",
        version=__version__,
        description=service.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        # Not `include_router`: it builds each route a second time, for every application, and each
        # request would look through the routes by way of their routers.
        routes=[route for module in OPERATIONS for route in module.router.routes],
    )
    configure_logging(settings)
    app.state.settings = settings
    app.state.traffic = Traffic(is_shared=is_answering_only)
    install_error_handlers(app)
    describe_access(app)
    describe_csv(app)
    describe_answers(app)
    mount_docs(app)
    mount_mcp(app)
    mount_dashboard(app)
    app.add_middleware(ProjectDoor)
    app.add_middleware(
        AccessMiddleware,
        hosts=settings.allowed_hosts,
        auth=settings.auth,
        max_body_bytes=settings.max_body_bytes,
        head_limits=_head_limits(settings),
        stalled_seconds=settings.stalled_seconds,
    )
    app.add_middleware(TraceMiddleware)
    # Outermost, so that refused requests count too.
    app.add_middleware(TrafficMiddleware)
    return app


@asynccontextmanager
async def _serving(state: State, context: AppContext, streams: int) -> AsyncIterator[None]:
    """Put what requests of one project need into a state, while the `with` block runs.

    `streams`: the most event streams at a time.
    """
    state.context = context
    state.settings = context.settings
    state.bodies = BodyReader(_json_limits(context.settings))
    state.turns = Turns()
    state.keyring = Keyring(context)
    state.rates = Rates(clock=time.monotonic)
    state.feed = Feed(context.engine, streams)
    state.boards = Boards()
    state.mcp = McpEndpoint()
    try:
        async with state.mcp.running():
            yield
    finally:
        await state.feed.close()


@asynccontextmanager
async def _serve_further(
    default: State, streams: int, is_answering_only: bool, project: OpenProject
) -> AsyncIterator[FurtherPlace]:
    """Serve a project beside the default one. Raises AutopackError, and what OUTAGES names."""
    place = FurtherPlace()
    for shared in ("places", "lookups", "verifier", "opening", "traffic"):
        setattr(place.state, shared, getattr(default, shared))
    stack = ExitStack()
    try:
        with _as_refusals():
            context = await run_in_threadpool(_open_further, project.settings, stack)
            if not is_answering_only:
                await run_in_threadpool(begin_work, context, stack)
        async with _serving(place.state, context, streams):
            yield place
    finally:
        await run_in_threadpool(stack.close)


def _open_further(settings: Settings, stack: ExitStack) -> AppContext:
    context = stack.enter_context(open_context(settings, is_default=False))
    return stack.enter_context(as_node(context))


@contextmanager
def _opening(settings: Settings) -> Iterator[AppContext]:
    """Open the resources of a further project for a moment. Raises AutopackError."""
    with ExitStack() as stack:
        with _as_refusals():
            context = stack.enter_context(open_context(settings, is_default=False))
        yield context


@contextmanager
def _as_refusals() -> Iterator[None]:
    try:
        yield
    except DatabaseError as error:
        raise UnavailableError(str(error)) from error


def _verifier(settings: Settings) -> TokenVerifier | None:
    if settings.oidc_issuer is None or settings.oidc_audience is None:
        return None
    return TokenVerifier(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        claims={
            settings.project_id: settings.oidc_claims or {},
            **(settings.oidc_project_claims or {}),
        },
        limits=CallerLimits(
            requests_per_minute=settings.key_requests_per_minute,
            streams=settings.key_streams,
            claims=settings.key_claims,
        ),
        keys=IssuerKeys(settings.oidc_issuer),
    )


def wire_protocol(settings: Settings) -> type[WireProtocol]:
    """Return the server's HTTP protocol with the limits of the settings."""
    return protocol_with(
        head_limits=_head_limits(settings),
        stalled_seconds=settings.stalled_seconds,
        max_connections=settings.max_connections,
    )


def _head_limits(settings: Settings) -> HeadLimits:
    return HeadLimits(max_bytes=settings.max_header_bytes, max_fields=settings.max_header_fields)


def _json_limits(settings: Settings) -> JsonLimits:
    """Return the limits of JSON bodies; a list's limit depends only on its name."""
    fields = {
        "phases": "max_plan_phases",
        "tiers": "max_plan_tiers",
        "evidence_refs": "max_evidence_refs",
        "suggested_issues": "max_suggested_issues",
        "issues_found": "max_suggested_issues",
        "resolved_issues": "max_suggested_issues",
        "files_changed": "max_patch_files",
        "files_affected": "max_patch_files",
    }

    def limit(field: str) -> Limit:
        return Limit(getattr(settings, field), Settings.variable(field))

    return JsonLimits(
        depth=settings.max_json_depth,
        values=limit("max_json_values"),
        items=limit("max_list_items"),
        # A patch is the longest text; base64 makes it longer by a third.
        text=Limit(
            max(MEGABYTE, settings.max_patch_bytes * 4 // 3 + 4),
            Settings.variable("max_patch_bytes"),
        ),
        lists={name: limit(field) for name, field in fields.items()},
    )


def _start(settings: Settings, opened: AppContext | None, stack: ExitStack) -> AppContext:
    context = opened
    if context is None:
        context = stack.enter_context(open_context(settings))
        context = stack.enter_context(as_node(context))
    if settings.auth == "disabled":
        structlog.get_logger(__name__).warning(
            "auth_disabled", detail="every caller that reaches this address is answered"
        )
    return context


@asynccontextmanager
async def _ending_streams(places: Places) -> AsyncIterator[None]:
    """End open streams at a stop signal: uvicorn waits for them before the lifespan ends."""
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Callable[[int, FrameType | None], object]] = {}

    def end(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(places.end_streams)
        before[signal.Signals(number)](number, frame)

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            handler = signal.getsignal(number)
            if callable(handler):
                before[number] = handler
                signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def __getattr__(name: str) -> FastAPI:
    """Create `app` at its first access, so that importing this module reads no environment."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
