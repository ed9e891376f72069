"""`POST /mcp`: Streamable HTTP; the SDK is imported at the first request.

The import of the SDK needs 0.6 s and 30 MB; a service without MCP clients does not pay for it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import anyio
from anyio.abc import TaskGroup, TaskStatus
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from ...services.context import AppContext
from ..bodies import BodyReader, read_body, require_json
from ..turns import Turns

if TYPE_CHECKING:
    from mcp.server.streamable_http_manager import StreamableHTTPSessionManager


PATH: Final = "/mcp"


class McpEndpoint:
    """The ASGI application of one project; `running` is its lifespan."""

    def __init__(self) -> None:
        self._starting = anyio.Lock()
        self._tasks: TaskGroup | None = None
        self._manager: StreamableHTTPSessionManager | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            yield
            tasks.cancel_scope.cancel()
        self._tasks = self._manager = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body with the limits of all bodies, then pass it to the SDK."""
        request = Request(scope, receive)
        require_json(request)
        body = await read_body(request)
        reader: BodyReader = scope["app"].state.bodies
        if body:
            await reader.read(body)
        is_read = False

        async def receive_again() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": body, "more_body": False}

        state = scope["app"].state
        manager = await self._started(state.context, state.turns)
        await manager.handle_request(scope, receive_again, send)

    async def _started(self, context: AppContext, turns: Turns) -> StreamableHTTPSessionManager:
        async with self._starting:
            if self._manager is None:
                assert self._tasks is not None  # noqa: S101 - requests arrive within the lifespan
                self._manager = await self._tasks.start(_serve, context, turns)
            return self._manager


class _OfProject:
    """Passes a request to the endpoint of the project that answers."""

    path = PATH

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self  # by whose path requests are counted; Starlette's own sets none
        endpoint: McpEndpoint = scope["app"].state.mcp
        await endpoint(scope, receive, send)


def mount_mcp(app: FastAPI) -> None:
    """Serve `/mcp`, by the endpoint in the state of the project that answers."""
    # A route, not a mount: a wrong method stays 405, and paths below /mcp stay 404.
    app.router.routes.append(Route(PATH, _OfProject(), methods=["POST"], include_in_schema=False))


async def _serve(
    context: AppContext, turns: Turns, *, task_status: TaskStatus[StreamableHTTPSessionManager]
) -> None:
    manager = await run_in_threadpool(_make_manager, context, turns)
    async with manager.run():
        task_status.started(manager)
        await anyio.sleep_forever()


def _make_manager(context: AppContext, turns: Turns) -> StreamableHTTPSessionManager:
    from .server import make_manager

    return make_manager(context, turns)
