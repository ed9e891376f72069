"""The guard of each operation: which roles it takes, enforced before a body is read."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from inspect import isasyncgenfunction, iscoroutinefunction, isfunction
from typing import Any, Final

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.types import Scope

from ..domain.access import PUBLIC, ROLES_OF, Caller
from .openapi import Schema, amend

Handler = Callable[[Request], Coroutine[Any, Any, Response]]

SCHEMES: Final = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key, `ap_…`, or a token of the service's issuer. Asked for where"
        " AUTOPACK_AUTH is `required`. The entries of an operation are the roles of which the"
        " caller needs one.",
    },
    "header": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "The same, where `Authorization` is for a proxy.",
    },
}


def caller_of(scope: Scope) -> Caller:
    """Return who sent a request, as AccessMiddleware has found."""
    caller: Caller = scope["caller"]
    return caller


def in_one_thread(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return a plain endpoint as a coroutine, which runs it in a thread.

    FastAPI checks the answer of a plain function in a second thread. Going to a thread and back
    takes 0.05 ms of CPU, and under load another wait for Python's lock.
    """
    if not isfunction(endpoint) or iscoroutinefunction(endpoint) or isasyncgenfunction(endpoint):
        return endpoint

    @wraps(endpoint)
    async def run(**values: Any) -> Any:
        return await run_in_threadpool(endpoint, **values)

    return run


class GuardedRoute(APIRoute):
    """A route that lets in callers with a role for it; one that no role is named for is an error.

    A subclass handles what was let in by `inner_handler`.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **settings: Any) -> None:
        super().__init__(path, in_one_thread(endpoint), **settings)

    @property
    def operation(self) -> str:
        (method,) = self.methods or set()
        return f"{method} {self.path_format}"

    def get_route_handler(self) -> Handler:
        handle, operation = self.inner_handler(), self.operation
        if operation in PUBLIC:
            return handle
        if operation not in ROLES_OF:
            raise LookupError(f"domain/access.py names no role for {operation}")

        async def handle_guarded(request: Request) -> Response:
            request.scope["caller"] = caller_of(request.scope).acting(operation)
            return await handle(request)

        return handle_guarded

    def inner_handler(self) -> Handler:
        return super().get_route_handler()


def describe_access(app: FastAPI) -> None:
    """Let OpenAPI tell the roles of each operation, and how a key is sent."""
    amend(app, _add_roles)


def _add_roles(schema: Schema) -> None:
    schema["components"]["securitySchemes"] = SCHEMES
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            # Alternatives: a list within one entry would ask for all of its roles.
            operation["security"] = [
                {scheme: [role]}
                for role in ROLES_OF.get(f"{method.upper()} {path}", ())
                for scheme in SCHEMES
            ]
