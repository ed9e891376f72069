"""Events: of a run in pages, and live as a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel

from ..domain.values import MAX_COUNT
from ..services import runs
from ..services.feed import AllView, Feed, RunView, View
from ..views.events import EndOfRun, EventAnswer, EventPage, StreamedEvent
from .credentials import is_still_known
from .errors import problems
from .guard import GuardedRoute, caller_of
from .inputs import Context, Cursor, PageLimit, RunId, decode_cursor, encode_cursor

router = APIRouter(tags=["events"], route_class=GuardedRoute)

MEDIA_TYPE = "text/event-stream"
RETRY_MILLISECONDS = 1_000
# The headers that FastAPI sends with its own streams: no proxy may buffer events.
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_HASH = "0" * 64
_EXAMPLE = (
    'id: 2\ndata: {"actor":"key:codex-3:builder","at":"2026-01-01T12:00:00.000000Z","data":{},'
    f'"from_state":"QUEUED","hash":"{_HASH}","kind":"PhaseStarted","phase_id":"P1.1","previous_hash":"{_HASH}",'
    '"outcome":"working","reason":"claimed by codex","run_id":"run-001",'
    '"sentence":"Building began: claimed by codex.","sequence":2,"tier_id":"T1",'
    '"to_state":"EXECUTING"}\n\n'
    'event: end\ndata: {"run_id": "run-001", "state": "DONE_SUCCESS"}\n\n'
)


def _streamed(*shapes: type[BaseModel]) -> dict[str, Any]:
    """Describe a stream: OpenAPI 3.1 cannot describe its items, only the schema of their data."""
    return {
        MEDIA_TYPE: {
            "schema": {
                "type": "string",
                "contentMediaType": MEDIA_TYPE,
                "contentSchema": {"anyOf": [_schema(shape) for shape in shapes]},
            },
            "example": _EXAMPLE,
        }
    }


def _schema(shape: type[BaseModel]) -> dict[str, Any]:
    schema = shape.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)  # other answers use them too, so they are among the components
    return schema


_STREAM = _streamed(StreamedEvent, EndOfRun)


async def _feed(request: Request) -> Feed:
    feed: Feed = request.app.state.feed
    return feed


async def _wants_stream(request: Request) -> bool:
    return MEDIA_TYPE in request.headers.get("accept", "")


InFeed = Annotated[Feed, Depends(_feed)]
After = Annotated[
    int | None, Query(ge=0, le=MAX_COUNT, description="Only events after this sequence number.")
]
LastEventId = Annotated[
    int | None,
    Header(ge=0, le=MAX_COUNT, description="Sent by browsers to resume; overrides `after`."),
]


@router.get(
    "/runs/{run_id}/events",
    response_model=EventPage,
    responses={
        200: {"description": "A page, or a stream if the client accepts one", "content": _STREAM},
        **problems(404, 422, 503),
    },
    summary="Read a run's events",
)
def list_events(
    request: Request,
    context: Context,
    feed: InFeed,
    run_id: RunId,
    wants_stream: Annotated[bool, Depends(_wants_stream)],
    limit: PageLimit = 100,
    cursor: Cursor = None,
    after: After = None,
    last_event_id: LastEventId = None,
) -> object:
    """The run's events in order; each event contains the hash of the one before it.

    With `Accept: text/event-stream` a live stream, whose ids are the events' sequence numbers. It
    ends with an event named `end` once the run is over.
    """
    if wants_stream:
        feed.require_room(context.caller)
        start = last_event_id if last_event_id is not None else after or 0
        return _stream(request, feed, RunView(context, run_id), start)
    position = decode_cursor(cursor, int)[0] if cursor else after or 0
    page, more = runs.list_events(context, run_id, after=position, limit=limit)
    return EventPage(
        run_id=run_id,
        events=[EventAnswer.model_validate(event) for event in page],
        next_cursor=None if more is None else encode_cursor(more),
    )


@router.get(
    "/events/stream",
    response_class=Response,
    responses={200: {"description": "A stream", "content": _STREAM}, **problems(422, 503)},
    summary="Follow the events of all runs",
)
def stream_events(
    request: Request,
    context: Context,
    feed: InFeed,
    after: After = None,
    last_event_id: LastEventId = None,
) -> EventSourceResponse:
    """Events of all runs from now on, or after an id; each exactly once.

    The ids are positions among the events of all runs, in the order in which streams send them.
    """
    feed.require_room(context.caller)
    start = last_event_id if last_event_id is not None else after
    return _stream(request, feed, AllView(context, feed), start)


def _stream(request: Request, feed: Feed, view: View, start: int | None) -> EventSourceResponse:
    return EventSourceResponse(_lines(request, feed, view, start), headers=_HEADERS)


async def _lines(
    request: Request, feed: Feed, view: View, start: int | None
) -> AsyncIterator[bytes]:
    with feed.counted(caller_of(request.scope)):
        yield format_sse_event(retry=RETRY_MILLISECONDS)
        async with aclosing(feed.follow(view, start)) as events:
            async for event in events:
                if not await is_still_known(request.scope):
                    return
                if event is None:
                    yield KEEPALIVE_COMMENT
                elif isinstance(event, EndOfRun):
                    yield format_sse_event(event="end", data_str=event.model_dump_json())
                else:
                    yield format_sse_event(id=str(view.number(event)), data_str=event.document)
