"""Metrics for Prometheus: the requests of this process, and the state of each project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import tracing
from ..services import metrics
from ..services.context import AppContext
from .errors import problems
from .guard import GuardedRoute, caller_of
from .places import places_of

router = APIRouter(tags=["metrics"], route_class=GuardedRoute)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Traffic:
    """Counts the requests of all projects of a service.

    No label comes from a request, so the number of series is fixed. `is_shared`: by several
    processes. prometheus_client then adds up what they count, in files of one folder.
    """

    def __init__(self, *, is_shared: bool = False) -> None:
        self._is_shared = is_shared
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "autopack_http_requests",
            "Requests by route, method and status.",
            ["project", "route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "autopack_http_request_seconds",
            "Time until an answer begins, by route and method.",
            ["project", "route", "method"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.under_way = Gauge(
            "autopack_http_requests_in_flight",
            "Requests under way, open streams included.",
            ["project"],
            registry=self.registry,
            multiprocess_mode="livesum",
        )

    def collect(self) -> Iterator[Metric]:
        """Yield the counts, and the figures of the operating system of a service's only process."""
        if self._is_shared:
            counted = MultiProcessCollector(None)  # type: ignore[no-untyped-call]  # has no types
            yield from counted.collect()  # type: ignore[no-untyped-call]  # nor has this
            return
        yield from self.registry.collect()
        yield from ProcessCollector(registry=None).collect()


class TrafficMiddleware:
    """Pure ASGI: counts each answer when it begins, for the project that answers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = perf_counter()

        async def send_noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                method = scope["method"] if scope["method"] in METHODS else "other"
                project = _project_of(scope)
                traffic.requests.labels(project, route, method, message["status"]).inc()
                traffic.seconds.labels(project, route, method).observe(perf_counter() - began)
            await send(message)

        # The door counts a request on for another project.
        traffic: Traffic = scope["app"].state.traffic
        with traffic.under_way.labels(_project_of(scope)).track_inprogress():
            await self.app(scope, receive, send_noted)


def _project_of(scope: Scope) -> str:
    """Return the project that answers a request, as the door has found."""
    name: str = scope["app"].state.settings.project_id
    return name


class TraceMiddleware:
    """Pure ASGI: takes the client's trace over, and makes the request a span where they are made.

    A traceparent of a wrong form, or more than one, is as none. A tracestate is not read.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        sent = [value for name, value in scope["headers"] if name == b"traceparent"]
        parent = tracing.read_traceparent(sent[0]) if len(sent) == 1 else None
        if parent is None and not tracing.is_on():
            await self.app(scope, receive, send)
            return
        method = scope["method"] if scope["method"] in METHODS else "other"
        with tracing.span(method, {"http.request.method": method}, parent=parent) as span:
            scope["traceparent"] = tracing.current()  # for tasks that this request does not start
            if span is None:
                await self.app(scope, receive, send)
                return

            async def send_noted(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            try:
                await self.app(scope, receive, send_noted)
            finally:
                route = getattr(scope.get("route"), "path", "none")
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                for name in ("run_id", "phase_id"):
                    if route != "none" and name in scope.get("path_params", {}):
                        span.set_attribute(f"autopack.{name}", scope["path_params"][name])


class _Everything(Collector):
    """The metrics of one scrape; a project that is not served has no context."""

    def __init__(self, traffic: Traffic, contexts: Mapping[str, AppContext | None]) -> None:
        self._traffic = traffic
        self._contexts = contexts

    def collect(self) -> Iterator[Metric]:
        for metric in self._traffic.collect():
            metric.samples = [
                sample
                for sample in metric.samples
                if sample.labels.get("project") in (None, *self._contexts)
            ]
            yield metric
        up = GaugeMetricFamily(
            "autopack_project_up", "1 for a project whose database answers.", labels=["project"]
        )
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for project, context in self._contexts.items():
            found = metrics.gauges(context) if context is not None else []
            up.add_metric([project], float(bool(found)))
            for gauge, figures in found:
                kind = CounterMetricFamily if gauge.is_total else GaugeMetricFamily
                family = families.setdefault(
                    gauge.name, kind(gauge.name, gauge.text, labels=["project", *gauge.labels])
                )
                for labels, value in figures.items():
                    family.add_metric([project, *labels], value)
        yield up
        yield from families.values()


async def _covered(request: Request) -> dict[str, AppContext | None]:
    """Return the projects that an answer covers: the one of path or key, else all."""
    places = places_of(request.scope)
    if request.app is not places.default or request.scope.get("project") is not None:
        return {_project_of(request.scope): request.app.state.context}
    covered: dict[str, AppContext | None] = {}
    for name, _ in places.names_for(caller_of(request.scope)):
        place = places.find(name)
        covered[name] = None if place is None else place.state.context
    return covered


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"description": "Figures", "content": {"text/plain": {"schema": {"type": "string"}}}},
        **problems(),
    },
    summary="Read figures for Prometheus",
)
def prometheus(
    request: Request, contexts: Annotated[dict[str, AppContext | None], Depends(_covered)]
) -> Response:
    """Prometheus text, or OpenMetrics where that is accepted.

    It covers all projects that the caller may see, by the label `project`; below
    `/projects/{project}` that project alone. Requests are those of all processes of this service.
    Runs, phases, leases, jobs, pushes and webhooks are those of each project's database, and left
    out while it is unavailable.
    """
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    everything = _Everything(request.app.state.traffic, contexts)
    return Response(encode(everything), media_type=media_type)
