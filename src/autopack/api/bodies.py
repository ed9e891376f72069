"""How a request's body is read: limits, then JSON, then the model that its route takes.

A large body is read in a thread, one at a time: parsed, it may need ten times its size, and the
event loop must stay free for other requests.
"""

from __future__ import annotations

from typing import Any

import anyio
from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from ..domain.values import Problems
from .csv_text import as_csv, rows_field, wants_csv
from .guard import GuardedRoute, Handler
from .json_text import (
    SMALL_BYTES,
    JsonError,
    JsonLimits,
    TextTooLongError,
    TooManyItemsError,
    read_json,
)
from .turns import Turns, run_of

# POST endpoints that change no run.
TRIALS = frozenset({"/runs/{run_id}/patch_check", "/strategy/dry_run", "/strategy/backtest"})


class BodyRefusedError(HTTPException):
    """A body that is not JSON in the accepted form."""

    def __init__(self, detail: str) -> None:
        super().__init__(422, detail)


class BodyReader:
    """Reads bodies within limits."""

    def __init__(self, limits: JsonLimits) -> None:
        self._limits = limits
        self._one_at_a_time = anyio.CapacityLimiter(1)

    async def read(self, body: bytes, model: type[BaseModel] | None = None) -> Any:
        """Return a body's value: an instance of the model, or plain values without a model.

        Raises BodyRefusedError, RequestValidationError.
        """
        if len(body) < SMALL_BYTES:
            return self._read(body, model)
        return await anyio.to_thread.run_sync(self._read, body, model, limiter=self._one_at_a_time)

    def _read(self, body: bytes, model: type[BaseModel] | None) -> Any:
        try:
            value = read_json(body, self._limits)
        except JsonError as error:
            raise BodyRefusedError(f"the body {error}") from None
        except TextTooLongError as error:
            raise HTTPException(413, f"the body {error}") from None
        except TooManyItemsError as error:
            loc = ("body", *error.path)
            problem = {"type": "too_many_items", "loc": loc, "msg": str(error)}
            raise RequestValidationError([problem]) from None
        if model is None:
            return value
        try:
            return model.model_validate(value, context=Problems())
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            raise RequestValidationError(
                [{**problem, "loc": ("body", *problem["loc"])} for problem in found]
            ) from None


class ReadRequest(Request):
    """A request whose body has been read; FastAPI gets the value from it."""

    def __init__(self, request: Request, value: Any, *, is_empty: bool) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value
        self._is_empty = is_empty

    async def body(self) -> bytes:
        """Return a placeholder for a body. The bytes are gone: they would double the memory."""
        return b"" if self._is_empty else b"null"

    async def json(self) -> Any:
        return self._value


class StrictRoute(GuardedRoute):
    """A route whose body is read by a `BodyReader`. A change of a run waits (turns.py).

    A list is CSV for a client that prefers it.
    """

    def inner_handler(self) -> Handler:
        handle = super().inner_handler()
        takes_body = self.body_field is not None
        is_safe = (self.methods or set()) <= {"GET", "HEAD"}
        is_trial = self.path_format in TRIALS
        model = _model_of(self)
        rows = rows_field(self.response_model) if is_safe else None

        async def handle_strictly(request: Request) -> Response:
            value = None
            if takes_body:
                require_json(request)
                body = await read_body(request)
                reader: BodyReader = request.app.state.bodies
                if body:
                    value = await reader.read(body, model)
                request = ReadRequest(request, value, is_empty=not body)
                del body
            if is_safe:
                answer = await handle(request)
                if rows is not None and wants_csv(request.headers.get("accept", "")):
                    return as_csv(request, answer, rows)
                return answer
            turns: Turns = request.app.state.turns
            async with turns.take(None if is_trial else run_of(request.path_params, value)):
                return await handle(request)

        return handle_strictly


async def read_body(request: Request) -> bytes:
    """Return a body's bytes without caching them. Raises HTTPException on a disconnect."""
    try:
        return b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect:
        raise HTTPException(400, "the client disconnected before its body was complete") from None


def require_json(request: Request) -> None:
    """Refuse a body of another media type; the endpoint decides about an empty body."""
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind.startswith("application/") and kind.endswith(("/json", "+json"))
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and not is_json:
        shown = f"not {kind[:100]!r}" if kind else "which is missing"
        raise HTTPException(415, f"the body must come with Content-Type: application/json, {shown}")
    if has_body and headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "the body must come without a Content-Encoding")


def _model_of(route: APIRoute) -> type[BaseModel] | None:
    """Return the model of the body; None for a body that may be any object."""
    for parameter in route.dependant.body_params:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            return annotation
    return None
