"""Traces by OpenTelemetry: which request, CI run and push belong together (docs/watching.md).

A traceparent (W3C Trace Context) that a client sends is taken over and kept in the events of its
request, with or without the extra `otel`. Spans are made and sent only after `start`. No span has
text of a prompt, a patch, a note or a key: only names of runs and phases, routes and statuses.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from threading import Thread
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from opentelemetry.trace import Span as Span
    from opentelemetry.trace import Tracer

logger = structlog.get_logger(__name__)

ENDPOINT_VARIABLE: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
SEND_SECONDS: Final = 5
_TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")

# The span that what happens now is a part of. Threads that a request starts have a copy.
_current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_tracer: Tracer | None = None
_NOTHING: Final = nullcontext()

Attributes = Mapping[str, str | int]


def current() -> str | None:
    """Return the traceparent of what happens now, if there is one."""
    return _current.get()


def is_on() -> bool:
    """Return whether spans are made."""
    return _tracer is not None


def read_traceparent(value: bytes) -> str | None:
    """Return a client's traceparent; None where it is not exactly of the form of version 00."""
    return value.decode() if _TRACEPARENT.fullmatch(value) else None


def start(endpoint: str, service: str) -> Callable[[], None]:
    """Send spans to an OTLP/HTTP endpoint from now on; return what sends the last ones and ends it.

    Without the extra it only says so, since a service must not fail for want of its traces.
    """
    global _tracer
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning(
            "tracing_unavailable",
            detail=f"{ENDPOINT_VARIABLE} is set; for traces: pip install 'autopack[otel]'",
        )
        return lambda: None
    resource = Resource.create({"service.name": service})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = provider.get_tracer("autopack")

    def stop() -> None:
        global _tracer
        _tracer = None
        # A collector that hangs is tried for each batch that waits; the end of a service is not.
        ending = Thread(target=provider.shutdown, name="traces", daemon=True)
        ending.start()
        ending.join(SEND_SECONDS)

    return stop


@contextmanager
def span(
    name: str, attributes: Attributes | None = None, *, parent: str | None = None
) -> Iterator[Span | None]:
    """Make what happens in the block one span, a child of `parent` or else the first of a trace.

    Without spans the parent itself is what later ones belong to.
    """
    made = None if _tracer is None else _begin(_tracer, name, attributes, parent)
    before = _current.set(parent if made is None else _traceparent_of(made))
    try:
        yield made
    except BaseException as error:
        if made is not None:
            _note_failure(made, error)
        raise
    finally:
        _current.reset(before)
        if made is not None:
            made.end()


def step(name: str) -> AbstractContextManager[object]:
    """Make the block a part of the current span; free while none is made."""
    return _NOTHING if _tracer is None or _current.get() is None else _step(_tracer, name)


@contextmanager
def _step(tracer: Tracer, name: str) -> Iterator[None]:
    made = _begin(tracer, name, None, _current.get())
    try:
        yield
    except BaseException as error:
        _note_failure(made, error)
        raise
    finally:
        made.end()


def begin_trace() -> str:
    """Return the traceparent of a new trace that has no span yet."""
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"


def _note_failure(made: Span, error: BaseException) -> None:
    from opentelemetry.trace import Status, StatusCode

    # The type alone: a message may quote what a client sent.
    made.set_attribute("error.type", type(error).__name__)
    made.set_status(Status(StatusCode.ERROR))


def _begin(tracer: Tracer, name: str, attributes: Attributes | None, parent: str | None) -> Span:
    from opentelemetry.context import Context
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        TraceFlags,
        set_span_in_context,
    )

    context = Context()
    if parent is not None:
        _, trace, caller, flags = parent.split("-")
        remote = SpanContext(
            int(trace, 16), int(caller, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
        )
        context = set_span_in_context(NonRecordingSpan(remote), context)
    return tracer.start_span(
        name,
        context=context,
        attributes=dict(attributes or {}),
        record_exception=False,
        set_status_on_exception=False,
    )


def _traceparent_of(made: Span) -> str:
    context = made.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
