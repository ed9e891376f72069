"""Who is answered: known hosts, no foreign pages, and callers on this machine. (SECURITY.md)"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import SECURITY_HEADERS, problem_response

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
FORWARDING = ("forwarded", "x-real-ip", "x-forwarded-")  # the last: whatever begins so


class AccessMiddleware:
    """Pure ASGI: it refuses before a body is read, and sets the headers every answer has.

    It also counts the body as it is read: a larger one is refused as everything else is.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        is_loopback_only: bool,
        max_body_bytes: int,
    ) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.is_loopback_only = is_loopback_only
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = MutableHeaders(raw=message["headers"])
                for name, value in SECURITY_HEADERS.items():
                    present.setdefault(name, value)
                message["headers"] = present.raw
            await send(message)

        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                raise HTTPException(413, too_large_detail(self.max_body_bytes))
            return message

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive_within_limit, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if "*" not in self.hosts and _name(host) not in self.hosts:
            return problem_response(
                421,
                "unknown_host",
                f"this service does not answer to Host {host[:100]!r}; "
                "AUTOPACK_ALLOWED_HOSTS names those it does",
            )
        if self.is_loopback_only and not _is_local(scope, headers):
            return problem_response(
                401,
                "not_local",
                "only callers on this very machine are answered, without a proxy between; "
                "AUTOPACK_AUTH=disabled answers everybody",
                headers={"WWW-Authenticate": "Autopack"},
            )
        origin = headers.get("origin")
        if origin is not None and _is_guarded(scope, headers) and not _is_own(origin, host):
            return problem_response(
                403,
                "foreign_origin",
                f"a page of {origin[:100]!r} may not change or follow anything here",
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_body_bytes:
            return problem_response(413, "too_large", too_large_detail(self.max_body_bytes))
        return None


def too_large_detail(limit: int) -> str:
    return f"the body is larger than {limit} bytes (AUTOPACK_MAX_BODY_BYTES)"


def _name(host: str) -> str:
    """Return a Host header's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_local(scope: Scope, headers: Headers) -> bool:
    """A caller is local by its socket's address; one behind a proxy is not."""
    if any(name.startswith(FORWARDING) for name in headers):
        return False
    client = scope.get("client")
    if client is None:  # a Unix socket: its permissions decide
        return True
    try:
        address = ipaddress.ip_address(client[0].partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _is_guarded(scope: Scope, headers: Headers) -> bool:
    """Tell whether a page of elsewhere is kept from this: changes and streams."""
    if scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS:
        return True
    return "text/event-stream" in headers.get("accept", "") or scope["path"].endswith("/stream")


def _is_own(origin: str, host: str) -> bool:
    """A page is our own when its origin is exactly what the browser asked for."""
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and authority.lower() == host.lower()
