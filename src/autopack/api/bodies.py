"""How a request's body is read: JSON as the standard has it, and not deeper than allowed."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

# A string as a whole, or one bracket: strings are skipped, brackets counted. A string that never
# ends is skipped too: to look for another one at each of its quotes would take hours.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
# What is smaller is read in less time than it takes to hand it to a thread.
_LARGE_BYTES = 65_536


class BodyRefusedError(HTTPException):
    """A body that is no JSON we take. Raised where FastAPI lets only its own kind through."""

    def __init__(self, detail: str) -> None:
        super().__init__(422, detail)


class StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        depth = self.app.state.house.settings.max_json_depth
        if len(body) < _LARGE_BYTES:
            return parse(body, depth)
        return await run_in_threadpool(parse, body, depth)


class StrictRoute(APIRoute):
    """A route whose body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        takes_body = self.body_field is not None

        async def handle_strictly(request: Request) -> Response:
            if takes_body:
                require_json(request)
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


def require_json(request: Request) -> None:
    """Refuse a body of another kind; no body at all is for the endpoint to judge."""
    headers = request.headers
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    is_json = kind.startswith("application/") and kind.endswith(("/json", "+json"))
    has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if has_body and not is_json:
        shown = f"not {kind[:100]!r}" if kind else "which is missing"
        raise HTTPException(415, f"the body must come with Content-Type: application/json, {shown}")


def parse(body: bytes, depth: int) -> Any:
    """Read JSON as RFC 8259 has it, in UTF-8 alone. Raises BodyRefusedError."""
    check_depth(body, depth)
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise BodyRefusedError(
            f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except UnicodeDecodeError:
        raise BodyRefusedError("the body is not UTF-8") from None
    except ValueError:
        raise BodyRefusedError("the body holds a number of thousands of digits") from None


def check_depth(body: bytes, limit: int) -> None:
    """Refuse brackets nested deeper than `limit`, before any parser recurses into them."""
    depth = 0
    for match in _STRUCTURE.finditer(body):
        sign = match.group()
        if sign in (b"[", b"{"):
            depth += 1
            if depth > limit:
                raise BodyRefusedError(f"the body is nested deeper than {limit} levels")
        elif sign in (b"]", b"}"):
            depth -= 1


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that comes twice in one object: readers disagree which of them counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise BodyRefusedError(f"the body has {twice[:100]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise BodyRefusedError(f"the body holds {name}, which is no JSON number")
