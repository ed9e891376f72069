"""Metrics for Prometheus: the requests of this process, and the state of the database."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import tracing
from ..services import metrics
from ..services.context import AppContext
from .errors import problems
from .guard import GuardedRoute
from .inputs import Context

router = APIRouter(tags=["metrics"], route_class=GuardedRoute)

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Traffic:
    """Counts requests. No label comes from a request, so the number of series is fixed."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "autopack_http_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "autopack_http_request_seconds",
            "Time until an answer begins, by route and method.",
            ["route", "method"],
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.under_way = Gauge(
            "autopack_http_requests_in_flight",
            "Requests under way, open streams included.",
            registry=self.registry,
        )


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
                traffic: Traffic = scope["app"].state.traffic
                traffic.requests.labels(route, method, message["status"]).inc()
                traffic.seconds.labels(route, method).observe(perf_counter() - began)
            await send(message)

        # The door counts a request on for another project.
        traffic: Traffic = scope["app"].state.traffic
        with traffic.under_way.track_inprogress():
            await self.app(scope, receive, send_noted)


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
    """The metrics of one scrape."""

    def __init__(self, traffic: Traffic, context: AppContext) -> None:
        self._traffic = traffic
        self._context = context

    def collect(self) -> Iterator[Metric]:
        yield from self._traffic.registry.collect()
        for gauge, figures in metrics.gauges(self._context):
            family = GaugeMetricFamily(gauge.name, gauge.text, labels=gauge.labels)
            for labels, value in figures.items():
                family.add_metric(labels, value)
            yield family


async def _traffic(request: Request) -> Traffic:
    traffic: Traffic = request.app.state.traffic
    return traffic


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
    request: Request, context: Context, traffic: Annotated[Traffic, Depends(_traffic)]
) -> Response:
    """Prometheus text, or OpenMetrics where that is accepted.

    Requests are those of this process. Runs, phases, leases, jobs and pushes are those of the
    database, and left out while it is unavailable.
    """
    encode, media_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(_Everything(traffic, context)), media_type=media_type)
