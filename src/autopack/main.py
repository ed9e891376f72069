"""The application: the only module that connects all packages."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from types import FrameType
from typing import Final

import anyio
import structlog
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import State

from . import __version__, tracing
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
from .api.json_text import JsonLimits, Limit
from .api.mcp.endpoint import McpEndpoint, mount_mcp
from .api.monitoring import TraceMiddleware, Traffic, TrafficMiddleware
from .api.places import REFRESH_SECONDS, FurtherPlace, Places, ProjectDoor
from .api.turns import Turns
from .api.wire import WireProtocol, connections_within, protocol_with, raise_file_limit
from .config import MEGABYTE, Settings, SettingsError, load_settings
from .dashboard.live import Boards
from .dashboard.mount import mount_dashboard
from .database import Database, DatabaseClock, open_database
from .domain.access import Caller
from .domain.errors import UnavailableError
from .domain.keys import without_keys
from .domain.limits import Limits, Rates
from .domain.printable import lines_of
from .gitrepo import Repository
from .jobs.worker import Queue, Workers
from .migrating import DatabaseError, one_line_errors
from .mirror import Mirror
from .services import pushes

# What the command line does beside the database, it imports from here.
from .services.audit import first_broken_entry as first_broken_entry
from .services.audit import last_deeds as last_deeds
from .services.availability import OUTAGES
from .services.baseline import MEASURE_BASE_TASK, NOTE_BASE_TASK, measure_base, record_base
from .services.ci import BEGIN_TASK, TAKE_TASK, begin_ci_run, record_ci_outcome, run_ci
from .services.context import AppContext as AppContext  # the command line names it
from .services.deliveries import QUEUE as WEBHOOK_QUEUE
from .services.deliveries import TASK as WEBHOOK_TASK
from .services.deliveries import deliver_webhook
from .services.feed import Feed
from .services.keys import Keyring
from .services.keys import create_key as create_key
from .services.keys import list_keys as list_keys
from .services.keys import revoke_key as revoke_key
from .services.keys import rotate_key as rotate_key
from .services.nodes import NodePlace, ServedElsewhereError, require_history
from .services.notifications import tell_webhooks
from .services.oidc import IssuerKeys, TokenVerifier
from .services.projects import OpenProject as OpenProject
from .services.projects import list_open, settings_of
from .services.projects import list_open_in as list_open_in
from .services.pushes import push_branch, resume_pushes
from .services.retention import Retention
from .services.retention import retain as retain
from .services.settling import CI_QUEUE, CI_TASK
from .services.upkeep import UPKEEP_QUEUE, keep_up, start_up

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
_logger = structlog.get_logger(__name__)
UPKEEP_SECONDS = 5
RETENTION_SECONDS = 50  # how often it is seen whether a pass is due
PUSH_WORKERS = 3
# A receiver that hangs keeps one of them for some seconds at a time.
WEBHOOK_WORKERS = 4


def create_app(
    settings: Settings | None = None,
    opened: AppContext | None = None,
    *,
    is_beside: bool = False,
) -> FastAPI:
    """Create the application; nothing is opened before its lifespan begins.

    With `opened`, a context whose node the caller has registered, it opens none of its own.
    `is_beside`: of several processes of a service, beside the one of `beside_processes`.
    """
    settings = settings or load_settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            _trace(settings, stack)
            context = await run_in_threadpool(_start, settings, opened, stack)
            if not is_beside:
                await run_in_threadpool(_begin_work, context, stack)
            app.state.verifier = _verifier(settings)
            app.state.lookups = anyio.CapacityLimiter(LOOKUPS)
            app.state.opening = _opening
            # A stream keeps its connection, so some connections are reserved for other requests.
            most = settings.max_connections or connections_within(raise_file_limit())
            streams = min(settings.max_streams, most * 3 // 4)
            async with _serving(app.state, context, streams):
                serve = partial(_serve_further, app.state, streams, is_beside)
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
    _configure_logging(settings)
    app.state.settings = settings
    app.state.traffic = Traffic()
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
        max_header_bytes=settings.max_header_bytes,
        max_header_fields=settings.max_header_fields,
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
    default: State, streams: int, is_beside: bool, project: OpenProject
) -> AsyncIterator[FurtherPlace]:
    """Serve a project beside the default one. Raises AutopackError, and what OUTAGES names."""
    place = FurtherPlace()
    for shared in ("places", "lookups", "verifier", "opening", "traffic"):
        setattr(place.state, shared, getattr(default, shared))
    stack = ExitStack()
    try:
        with _as_refusals():
            context = await run_in_threadpool(_open_further, project.settings, stack)
            if not is_beside:
                await run_in_threadpool(_begin_work, context, stack)
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


def _trace(settings: Settings, stack: ExitStack) -> None:
    if settings.otlp_endpoint is not None:
        stack.callback(tracing.start(settings.otlp_endpoint, "autopack"))


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
        limits=Limits(
            requests_per_minute=settings.key_requests_per_minute,
            streams=settings.key_streams,
            claims=settings.key_claims,
        ),
        keys=IssuerKeys(settings.oidc_issuer),
    )


def wire_protocol(settings: Settings) -> type[WireProtocol]:
    """Return the server's HTTP protocol with the limits of the settings."""
    return protocol_with(
        max_header_bytes=settings.max_header_bytes,
        max_header_fields=settings.max_header_fields,
        stalled_seconds=settings.stalled_seconds,
        max_connections=settings.max_connections,
    )


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


@contextmanager
def open_context(settings: Settings, *, is_default: bool = True) -> Iterator[AppContext]:
    """Open the context of all use cases, its database at head.

    `is_default`: of the project of the service's settings, not of one beside it.
    """
    # First, since it refuses a home that a repository tracks, before a Postgres starts in it.
    repository = Repository.open(settings)
    with open_database(settings, is_further=not is_default) as database:
        if not settings.testing:
            database.migrate()
        mirror = Mirror(settings.autonomous_runs_dir, beside=repository.objects.folder)
        yield AppContext(
            settings,
            database.engine,
            database.autocommit,
            repository,
            mirror,
            now=DatabaseClock(database.autocommit),
            is_default=is_default,
            node_id=repository.node_identity().node_id,
        )


@contextmanager
def as_node(
    context: AppContext, *, address: str | None = None, has_ci_alone: bool = False
) -> Iterator[AppContext]:
    """Make this process a part of its node; yields the context with the node's id.

    A process for CI alone has no branches and files. Raises DatabaseError where the database has
    runs of another repository.
    """
    try:
        if has_ci_alone:
            require_history(context)
        place = None if has_ci_alone else NodePlace(context, address)
    except ServedElsewhereError as error:
        raise DatabaseError(error.detail) from error
    try:
        yield context if place is None else place.context
    finally:
        if place is not None:
            place.close()


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


def _begin_work(context: AppContext, stack: ExitStack) -> None:
    """Roll forward what a killed service has left, and begin the background work."""
    start_up(context)
    if context.repository.remote is not None:
        resume_pushes(context)
    if context.settings.jobs == "inside":
        stack.enter_context(working(context, queues_of(context)))


@contextmanager
def beside_processes(settings: Settings) -> Iterator[None]:
    """Do what the processes of a service that answer leave to one: roll forward, work.

    Without workers of its own the service only rolls forward. Raises DatabaseError.
    """
    if settings.jobs == "inside":
        with jobs_process(settings, (), None):
            yield
        return
    with ExitStack() as stack:
        context = stack.enter_context(open_context(settings))
        context = stack.enter_context(as_node(context))
        _begin_work(context, stack)
        yield


@contextmanager
def beside_database(
    settings: Settings, name: str, project: str | None = None
) -> Iterator[AppContext]:
    """Open the service's data without a service; `name` is who works on them.

    `project`: those of a project, which is the default one if it is None. Raises
    ProjectNotFoundError, ProjectClosedError.
    """
    with (
        of_project(settings, project) as its,
        open_context(its.settings, is_default=its.is_default) as context,
    ):
        yield context.for_caller(Caller(name=name))


@dataclass(frozen=True, slots=True)
class ChosenProject:
    """A project's settings; `beside`: the open database that lists it, None for the default one."""

    settings: Settings
    beside: Database | None = None

    @property
    def is_default(self) -> bool:
        return self.beside is None


@contextmanager
def of_project(
    settings: Settings, project: str | None, *, may_be_closed: bool = False
) -> Iterator[ChosenProject]:
    """Find a project of the service's settings, and migrate nothing; None: the default one.

    While the `with` block runs, the embedded Postgres does. Raises ProjectNotFoundError,
    ProjectClosedError unless `may_be_closed`, RepositoryTakenError, DatabaseError.
    """
    if project is None or project == settings.project_id:
        yield ChosenProject(settings)
        return
    with open_database(settings) as database:
        with one_line_errors(database.engine):
            its = settings_of(settings, database.engine, project, may_be_closed=may_be_closed)
        yield ChosenProject(its, database)


@contextmanager
def jobs_process(
    settings: Settings, names: Collection[str], concurrency: int | None
) -> Iterator[list[str]]:
    """Run a process for background work only, of all projects; yields the names of its queues.

    Raises SettingsError for a queue that is not worked on with these settings.
    """
    _configure_logging(settings)
    with ExitStack() as stack:
        _trace(settings, stack)
        context = stack.enter_context(open_context(settings))
        known = [queue.name for queue in queues_of(context)]
        missing = sorted(set(names) - set(known))
        if missing:
            raise SettingsError(
                f"no work for the queue {missing[0]!r}; with these settings there are: "
                f"{', '.join(known)}"
            )
        worked = _work_on(context, names, concurrency, stack)
        further = _FurtherJobs(context, names, concurrency)
        stack.callback(further.stop)
        yield worked


def _work_on(
    context: AppContext, names: Collection[str], concurrency: int | None, stack: ExitStack
) -> list[str]:
    """Work on a project's queues of these names, on all if there are none; return their names."""
    of_node = {queue.name for queue in queues_of(context)} - {CI_QUEUE}
    if names:
        of_node &= set(names)
    context = stack.enter_context(as_node(context, has_ci_alone=not of_node))
    chosen = [
        replace(queue, concurrency=concurrency or queue.concurrency)
        for queue in queues_of(context)
        if not names or queue.name in names
    ]
    if UPKEEP_QUEUE in of_node:
        start_up(context)
    if pushes.QUEUE in of_node and context.repository.remote is not None:
        resume_pushes(context)
    stack.enter_context(working(context, chosen))
    return [queue.name for queue in chosen]


class _FurtherJobs:
    """Works on the queues of the projects beside the default one, as they come and go."""

    def __init__(
        self, context: AppContext, names: Collection[str], concurrency: int | None
    ) -> None:
        self._context = context
        self._names = names
        self._concurrency = concurrency
        self._open: dict[str, tuple[datetime, ExitStack]] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="further-jobs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow({each.name: each for each in list_open(self._context)})
            except OUTAGES as error:
                _logger.warning("projects_not_read", why=type(error).__name__)
            self._stopping.wait(REFRESH_SECONDS)
        self._follow({})

    def _follow(self, wanted: Mapping[str, OpenProject]) -> None:
        for name, (changed_at, stack) in [*self._open.items()]:
            if name not in wanted or wanted[name].changed_at != changed_at:
                del self._open[name]
                stack.close()
        for name, each in wanted.items():
            if name in self._open or self._stopping.is_set():
                continue
            try:
                with ExitStack() as stack:
                    context = stack.enter_context(open_context(each.settings, is_default=False))
                    _work_on(context, self._names, self._concurrency, stack)
                    self._open[name] = each.changed_at, stack.pop_all()
            except Exception as error:  # one project must not stop the others
                _logger.warning("project_not_worked_on", project=name, why=str(error))


def queues_of(context: AppContext) -> list[Queue]:
    """Return the queues of background work."""
    queues = [
        # More than one, so that no job waits for a slow upkeep.
        Queue(
            name=UPKEEP_QUEUE,
            concurrency=3,
            every={
                "keep_up": (UPKEEP_SECONDS, partial(keep_up, context)),
                "retain": (RETENTION_SECONDS, Retention(context)),
            },
            tasks={
                BEGIN_TASK: partial(begin_ci_run, context),
                TAKE_TASK: partial(record_ci_outcome, context),
                NOTE_BASE_TASK: partial(record_base, context),
            },
        ),
    ]
    ci_workers = context.settings.ci_workers or max(1, (os.cpu_count() or 1) // 2)
    queues.append(
        Queue(
            name=CI_QUEUE,
            concurrency=ci_workers,
            tasks={
                CI_TASK: partial(run_ci, context),
                MEASURE_BASE_TASK: partial(measure_base, context),
            },
        )
    )
    queues.append(
        Queue(
            name=WEBHOOK_QUEUE,
            concurrency=WEBHOOK_WORKERS,
            every={"tell_webhooks": (UPKEEP_SECONDS, partial(tell_webhooks, context))},
            tasks={WEBHOOK_TASK: partial(deliver_webhook, context)},
        )
    )
    remote = context.repository.remote
    if remote is not None:
        queues.append(
            Queue(
                name=pushes.QUEUE,
                concurrency=PUSH_WORKERS,
                tasks={pushes.TASK: partial(push_branch, context, remote)},
            )
        )
    return queues


@contextmanager
def working(context: AppContext, queues: Sequence[Queue]) -> Iterator[None]:
    """Run the background workers while the `with` block runs."""
    workers = Workers(context.engine, queues)
    workers.start()
    try:
        yield
    finally:
        context.stopping.set()
        if context.repository.remote is not None:
            context.repository.remote.stop()  # else a slow job would delay the end
        workers.stop()


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


class _Output:
    """Writes log lines; ignores write errors (a closed pipe, a full disk), so that work goes on."""

    def msg(self, message: str) -> None:
        with suppress(OSError, ValueError):
            sys.stdout.write(f"{lines_of(without_keys(message))}\n")
            sys.stdout.flush()

    debug = info = warning = error = critical = exception = msg


def _configure_logging(settings: Settings) -> None:
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if settings.log_format == "json"
        else structlog.dev.ConsoleRenderer(colors=False, repr_native_str=True)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        logger_factory=lambda *_: _Output(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )


def __getattr__(name: str) -> FastAPI:
    """Create `app` at its first access, so that importing this module reads no environment."""
    if name == "app":
        return create_app()
    raise AttributeError(name)
