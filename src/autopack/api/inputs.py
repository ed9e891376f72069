"""Parameters in paths, queries and headers, and the cursors of pages."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import Depends, Header, Path, Query, Request
from pydantic import Field

from ..domain.errors import InvalidError
from ..domain.values import MAX_COUNT, Identifier
from ..services.context import AppContext
from .guard import caller_of


async def _context(request: Request) -> AppContext:
    # A coroutine, as all dependencies that wait for nothing: FastAPI gives others a thread.
    context: AppContext = request.app.state.context
    return context.for_caller(caller_of(request.scope))


Context = Annotated[AppContext, Depends(_context)]
# `openapi_examples`, since Swagger UI fills in only those, not a schema's `examples`.
RunId = Annotated[
    Identifier,
    Path(description="The run's id.", openapi_examples={"guide": {"value": "docs-001"}}),
]
PhaseId = Annotated[
    Identifier,
    Path(description="The phase's id.", openapi_examples={"guide": {"value": "P1.1"}}),
]
KEY_MEANING = (
    "The same request with the same key has one effect and one answer; a new key is a new request."
)
CLAIM_KEY_MEANING = (
    "The same claim with the same key gets its lease again, as long as that lasts. Take a random "
    "key, and a new one after each item."
)
KeyText = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\x21-\x7e]+$")]
IdempotencyKey = Annotated[KeyText | None, Header(alias="Idempotency-Key", description=KEY_MEANING)]
ClaimKey = Annotated[KeyText | None, Header(alias="Idempotency-Key", description=CLAIM_KEY_MEANING)]
PageLimit = Annotated[int, Query(ge=1, le=1_000, description="Highest number of items in a page.")]
Cursor = Annotated[
    str | None,
    Query(max_length=500, description="`next_cursor` of the page before."),
]


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class InvalidCursorError(InvalidError):
    code = "invalid_cursor"


def encode_cursor(*position: str | int) -> str:
    """Encode a position in a list as an opaque cursor."""
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> list[Any]:
    """Decode a cursor of `encode_cursor`: its numbers are counts. Raises InvalidCursorError."""
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (binascii.Error, ValueError):
        position = None
    if (
        not isinstance(position, list)
        or len(position) != len(kinds)
        or not all(type(part) is kind for part, kind in zip(position, kinds, strict=True))
        or any(isinstance(part, int) and not 0 <= part <= MAX_COUNT for part in position)
    ):
        raise InvalidCursorError("cursor: is not a next_cursor of this list")
    return position


def encode_moment(moment: datetime, key: int) -> str:
    """Encode a position in a list that is ordered by time."""
    return encode_cursor((moment - _EPOCH) // _MICROSECOND, key)


def decode_moment(cursor: str) -> tuple[datetime, int]:
    """Decode a cursor of `encode_moment`. Raises InvalidCursorError."""
    microseconds, key = decode_cursor(cursor, int, int)
    return _EPOCH + microseconds * _MICROSECOND, key
