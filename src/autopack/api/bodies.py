"""How a request's body is read: JSON as the standard has it, and not deeper than allowed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import HTTPException, Request, Response
from fastapi.routing import APIRoute

# A string as a whole, or one bracket: strings are skipped, brackets counted.
_STRUCTURE = re.compile(rb'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)


class BodyRefusedError(HTTPException):
    """A body that is no JSON we take. Raised where FastAPI lets only its own kind through."""

    def __init__(self, detail: str) -> None:
        super().__init__(422, detail)


class StrictRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        check_depth(body, self.app.state.house.settings.max_json_depth)
        try:
            return json.loads(body, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise BodyRefusedError(
                f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
            ) from None
        except UnicodeDecodeError:
            raise BodyRefusedError("the body is not UTF-8") from None
        except ValueError as error:  # a number of thousands of digits
            raise BodyRefusedError(f"the body holds a number that is too long: {error}") from None


class StrictRoute(APIRoute):
    """A route whose body is read by `StrictRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(StrictRequest(request.scope, request.receive))

        return handle_strictly


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


def _refuse_constant(name: str) -> NoReturn:
    raise BodyRefusedError(f"the body holds {name}, which is no JSON number")
