"""Which requests are answered: of known hosts, own pages, and known callers. (SECURITY.md)"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Collection
from typing import Literal

from fastapi import HTTPException
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..domain.access import Caller
from .credentials import Credentials
from .errors import RETRY_AFTER, SECURITY_HEADERS, problem_response
from .head import HeadLimits
from .places import enter_project

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Headers that proxies add: a local caller that sends one passes a request of another caller on.
FORWARDING = frozenset(
    {
        "cf-connecting-ip",
        "cf-connecting-ipv6",
        "fastly-client-ip",
        "forwarded",
        "true-client-ip",
        "via",
        "x-client-ip",
        "x-cluster-client-ip",
        "x-original-forwarded-for",
        "x-real-ip",
    }
)
FORWARDING_PREFIX = "x-forwarded"
# A body with less progress than this within the stall timeout counts as stalled.
MIN_PROGRESS_BYTES = 1_000
# How many bodies of the largest size may be in memory at a time. More are answered 503.
MAX_BODIES_HELD = 10


class AccessMiddleware:
    """Pure ASGI: it refuses before a body is read, and sets the headers every answer has.

    It also counts the body while it is read, and refuses one that is too large or stalls.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str],
        auth: Literal["loopback", "disabled", "required"],
        max_body_bytes: int,
        head_limits: HeadLimits,
        stalled_seconds: float,
    ) -> None:
        self.app = app
        self.hosts = frozenset(hosts)
        self.auth = auth
        self.max_body_bytes = max_body_bytes
        self.head_limits = head_limits
        self.stalled_seconds = stalled_seconds
        self._held_bytes = 0
        self._credentials = Credentials()
        self._local = Caller(host=socket.gethostname())

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

        enter_project(scope)
        body = _Body(self, receive)
        try:
            answer = await self._refusal(scope) or self.app
            await answer(scope, body.receive, send_with_headers)
        finally:
            self._held_bytes -= body.received

    def hold(self, count: int) -> None:
        """Count the memory of a request's body. Raises HTTPException when bodies need too much."""
        self._held_bytes += count
        if self._held_bytes > MAX_BODIES_HELD * self.max_body_bytes:
            raise HTTPException(503, "too many large bodies at a time; try again", RETRY_AFTER)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return why a request is refused; `scope["caller"]` is then who sends the others."""
        if problem := self._head_problem(scope):
            return problem_response(431, "headers_too_large", problem)
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if "*" not in self.hosts and _name(host) not in self.hosts:
            return problem_response(
                421,
                "unknown_host",
                f"this service does not answer to Host {host[:100]!r}; "
                "AUTOPACK_ALLOWED_HOSTS lists the accepted names",
            )
        caller = await self._caller(scope, headers)
        if isinstance(caller, Response):
            return caller
        scope["caller"] = caller
        origin = headers.get("origin")
        if origin is not None and _is_guarded(scope, headers) and not _is_own(origin, host):
            return problem_response(
                403,
                "foreign_origin",
                f"a page of {origin[:100]!r} may not send changes or read streams here",
            )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self.max_body_bytes:
            return problem_response(413, "too_large", too_large_detail(self.max_body_bytes))
        return None

    async def _caller(self, scope: Scope, headers: Headers) -> Caller | Response | None:
        """Return who calls, the refusal, or None for a page that needs no caller."""
        if self.auth == "required":
            return await self._credentials.caller_of(scope, headers)
        if self.auth == "loopback" and not _is_local(scope, headers):
            return problem_response(
                401,
                "not_local",
                "only callers on this machine are answered, and without a proxy; "
                "AUTOPACK_AUTH=required answers callers with an API key, disabled every caller",
                headers={"WWW-Authenticate": "Autopack"},
            )
        return self._local

    def _head_problem(self, scope: Scope) -> str | None:
        fields = scope["headers"]
        size = len(scope.get("raw_path") or b"") + len(scope["query_string"])
        size += sum(len(name) + len(value) for name, value in fields)
        return self.head_limits.problem(size=size, fields=len(fields))


class _Body:
    """Counts a request's body and checks its progress while it is read."""

    def __init__(self, access: AccessMiddleware, receive: Receive) -> None:
        self.received = 0
        self._access = access
        self._receive = receive
        self._is_whole = False
        # The deadline of the next check, and the bytes at the last one.
        self._window: tuple[float, int] | None = None

    async def receive(self) -> Message:
        """Read the next message. Raises HTTPException for a body that is too large or stalls."""
        if self._is_whole:  # the only message after the body is the client's disconnect
            return await self._receive()
        loop = asyncio.get_running_loop()
        if self._window is None or self.received - self._window[1] >= MIN_PROGRESS_BYTES:
            self._window = loop.time() + self._access.stalled_seconds, self.received
        try:
            async with asyncio.timeout_at(self._window[0]):
                message = await self._receive()
        except TimeoutError:
            self._is_whole = True
            raise HTTPException(
                408,
                f"less than {MIN_PROGRESS_BYTES} bytes of the body arrived in "
                f"{self._access.stalled_seconds:g} seconds (AUTOPACK_STALLED_SECONDS)",
                {"Connection": "close"},
            ) from None
        self._is_whole = not message.get("more_body", False)
        count = len(message.get("body", b""))
        self.received += count
        self._access.hold(count)
        if self.received > self._access.max_body_bytes:
            raise HTTPException(413, too_large_detail(self._access.max_body_bytes))
        return message


def too_large_detail(limit: int) -> str:
    return f"the body is larger than {limit} bytes (AUTOPACK_MAX_BODY_BYTES)"


def _name(host: str) -> str:
    """Return a Host header's name without its port."""
    if host.startswith("["):
        return host.partition("]")[0].lower() + "]"
    return host.partition(":")[0].lower()


def _is_local(scope: Scope, headers: Headers) -> bool:
    """Return whether a caller is local by its socket's address; behind a proxy it is not."""
    if any(_is_forwarding(name.replace("_", "-")) for name in headers):
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


def _is_forwarding(name: str) -> bool:
    return name in FORWARDING or name.startswith(FORWARDING_PREFIX)


def _is_guarded(scope: Scope, headers: Headers) -> bool:
    """Return whether pages of other origins are refused here: for changes and streams."""
    if scope["type"] == "websocket" or scope["method"] not in SAFE_METHODS:
        return True
    return "text/event-stream" in headers.get("accept", "") or scope["path"].endswith("/stream")


def _is_own(origin: str, host: str) -> bool:
    """Return whether a page's origin is exactly the address that the browser requested."""
    scheme, separator, authority = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and authority.lower() == host.lower()
