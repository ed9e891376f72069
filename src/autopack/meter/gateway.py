"""The gateway's HTTP: accounts by token, known paths, requests to the provider and back.

It keeps no prompt and no answer: bodies are in memory while they are passed on, in no log and no
file. Errors are in the provider's own form, as its clients read no other.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .account import Account, AtCapError, Reserved
from .providers import Upstream
from .wire import (
    Asked,
    Events,
    Format,
    Provider,
    Reading,
    RequestError,
    Usage,
    error_document,
    error_event,
    read_request,
)

T = TypeVar("T")
Headers = Sequence[tuple[bytes, bytes]]
MOST_BYTES: Final = 64 * 2**20  # of a body, either way; the providers accept half of that
# A model may think for minutes before the first byte of an answer that is not a stream.
TIMEOUT: Final = httpx.Timeout(connect=15, read=900, write=60, pool=None)
RETRY_SECONDS: Final = 3_600  # no budget comes back while the command runs
# The provider did not get the request.
_NEVER_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.LocalProtocolError)
_SPENDING: Final[Mapping[str, tuple[Provider, Format]]] = {
    "/v1/chat/completions": (Provider.OPENAI, Format.CHAT),
    "/v1/responses": (Provider.OPENAI, Format.RESPONSES),
    "/v1/responses/compact": (Provider.OPENAI, Format.RESPONSES),
    "/v1/messages": (Provider.ANTHROPIC, Format.MESSAGES),
}
_GENERATE: Final = re.compile(
    r"/v1beta/models/([\w@-][\w.@-]*):(generateContent|streamGenerateContent)", re.ASCII
)
# Free of charge.
_COUNTING: Final = re.compile(
    r"/v1/messages/count_tokens|/v1beta/models/[\w@-][\w.@-]*:countTokens", re.ASCII
)
_MODELS: Final = re.compile(r"/v1(beta)?/models(/[\w:@-][\w.:@-]*)*", re.ASCII)
_READABLE: Final = {"", "identity", "gzip", "deflate"}  # gzip is asked for
# RFC 9110 7.6.1, and what the gateway sets by itself.
_NOT_PASSED_ON: Final = {
    *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate"),
    *(b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host"),
    *(b"content-length", b"expect", b"content-encoding", b"accept-encoding", b"authorization"),
    *(b"x-api-key", b"cookie", b"set-cookie", b"forwarded", b"x-forwarded-for"),
    *(b"x-forwarded-host", b"x-forwarded-proto", b"x-goog-api-key"),
}


class _RefusedError(Exception):
    """The gateway answers with this status instead of asking the provider."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


@dataclass(eq=False, slots=True)
class _Session:
    account: Account
    is_over: bool = False
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)


class Gateway:
    """The ASGI application. Its methods are for the thread of its event loop."""

    def __init__(
        self,
        providers: Mapping[Provider, Upstream],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._providers = providers
        self._sessions: dict[str, _Session] = {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self._client = httpx.AsyncClient(transport=transport, timeout=TIMEOUT, limits=limits)

    def open(self, token: str, account: Account) -> None:
        """Accept requests with this token, on this account."""
        self._sessions[token] = _Session(account)

    async def close(self, token: str, patience_seconds: float) -> None:
        """Refuse this token from now on; end its requests, estimating those that are cut short."""
        session = self._sessions.pop(token, None)
        if session is None:
            return
        session.is_over = True  # also for requests that were let in before
        if not session.tasks:
            return
        _, left = await asyncio.wait(session.tasks, timeout=patience_seconds)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the connections to the providers."""
        await self._client.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["type"] == "http":
            request = Request(scope, receive)
            provider = _provider(request)
            try:
                await self._answer(request, provider, send)
            except _RefusedError as error:
                document = error_document(provider, error.status, str(error))
                response = JSONResponse(document, error.status, error.headers)
                await response(scope, receive, send)
            except ClientDisconnect:
                return

    async def _answer(self, request: Request, provider: Provider, send: Send) -> None:
        session = self._sessions.get(_token(request))
        if session is None:
            raise _RefusedError(401, "This token is not, or no longer, valid for the gateway.")
        path, method = request.scope["path"], request.method
        spending = _SPENDING.get(path) if method == "POST" else None
        if method == "POST" and _GENERATE.fullmatch(path):
            spending = Provider.GOOGLE, Format.GENERATE
        free = {"POST": _COUNTING, "GET": _MODELS}.get(method)
        is_free = free is not None and free.fullmatch(path) is not None
        if spending is None and not is_free:
            raise _RefusedError(404, f"The gateway does not serve {method} {path[:200]}.")
        if provider not in self._providers:
            raise _RefusedError(404, f"The gateway has no key for {provider}.")
        body = await _body(request)
        if spending is None:
            work = self._pass_on(request, provider, body)
            response: Response | None = await self._follow(request, session, work, ends=True)
        else:
            response = await self._spend(request, provider, spending[1], body, session, send)
        if response is not None:
            await response(request.scope, request.receive, send)

    async def _spend(
        self,
        request: Request,
        provider: Provider,
        kind: Format,
        body: bytes,
        session: _Session,
        send: Send,
    ) -> Response | None:
        """Reserve a request, pass it on, book what it used. Returns None after a stream.

        A provider ends a stream that its client has left, and charges what it has written. An
        answer that is not a stream it finishes: that is read to its end, to know what it cost.
        """
        generated = _GENERATE.fullmatch(request.scope["path"])
        model, verb = generated.groups() if generated else ("", "")
        is_stream = verb.startswith("stream")
        if is_stream and request.query_params.get("alt") != "sse":
            raise _RefusedError(400, "The gateway reads streams of events alone: ask with alt=sse.")
        try:
            asked = read_request(kind, body, model=model, is_stream=is_stream)
        except RequestError as error:
            raise _RefusedError(400, f"The gateway refused the request: {error}.") from None
        outgoing = self._request(request, provider, asked.body)
        try:
            held = await self._follow(request, session, session.account.reserve(asked), ends=True)
        except AtCapError as error:
            headers = {"retry-after": str(RETRY_SECONDS), "x-should-retry": "false"}
            raise _RefusedError(429, str(error), headers) from None
        if session.is_over:  # while it waited for its turn
            session.account.release(held)
            raise _over()
        work = _Exchange(asked, session.account, held).run(outgoing, self, provider, send)
        return await self._follow(request, session, work, ends=asked.is_stream)

    async def _follow(
        self, request: Request, session: _Session, work: Coroutine[Any, Any, T], *, ends: bool
    ) -> T:
        """Do work of a session, until the session is closed.

        Where `ends` is set, the client's disconnection ends it too. Raises ClientDisconnect.
        """
        if session.is_over:
            work.close()
            raise _over()
        task = asyncio.ensure_future(work)
        session.tasks.add(task)
        task.add_done_callback(session.tasks.discard)
        gone = asyncio.ensure_future(_gone(request)) if ends else None
        try:
            await asyncio.wait({task, *([gone] if gone else [])}, return_when="FIRST_COMPLETED")
        except asyncio.CancelledError:  # the server stops
            task.cancel()
            raise
        finally:
            if gone is not None:
                gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            return task.result()
        if ends:
            raise ClientDisconnect
        raise _over()

    async def _pass_on(self, request: Request, provider: Provider, body: bytes) -> Response:
        outgoing = self._request(request, provider, body)
        try:
            answer = await self.send(outgoing)
            try:
                return self.whole(answer, await read_whole(answer), provider)
            finally:
                await answer.aclose()
        except httpx.HTTPError as error:
            raise _RefusedError(*_failure(error)) from None

    def _request(self, request: Request, provider: Provider, body: bytes) -> httpx.Request:
        """Return the request to the provider: its address, and a path of the known ones.

        Nothing is read from the URL that the framework makes of the path and the Host header.
        """
        upstream = self._providers[provider]
        path = request.scope["path"]
        if provider is Provider.OPENAI:
            path = path.removeprefix("/v1")
        if provider is Provider.GOOGLE:  # nothing else: a key may be there
            is_sse = request.query_params.get("alt") == "sse"
            request.scope["query_string"] = b"alt=sse" if is_sse else b""
        query = quote(request.scope["query_string"], safe="!$%&'()*+,/:;=?@[]~")
        headers = [
            *_passed_on(request.headers.raw),
            (b"accept-encoding", b"gzip, identity"),
            *((name.encode(), value.encode()) for name, value in upstream.headers.items()),
        ]
        try:
            return self._client.build_request(
                request.method,
                f"{upstream.base_url}{path}{'?' if query else ''}{query}",
                headers=headers,
                content=body if request.method == "POST" else None,
            )
        except httpx.InvalidURL as error:
            raise _RefusedError(400, f"The address is not a URL: {error}.") from None

    async def send(self, request: httpx.Request) -> httpx.Response:
        """Ask the provider; returns when the answer's headers are here. Raises httpx.HTTPError."""
        return await self._client.send(request, stream=True)

    def whole(self, answer: httpx.Response, body: bytes, provider: Provider) -> Response:
        """Return an answer that is complete, without the key if the provider repeats it."""
        response = Response(self.without_key(body, provider), answer.status_code)
        response.raw_headers += self.answer_headers(answer, provider)
        return response

    def answer_headers(
        self, answer: httpx.Response, provider: Provider
    ) -> list[tuple[bytes, bytes]]:
        """Return the headers of an answer that are for the client, without the key."""
        return [
            (name, self.without_key(value, provider))
            for name, value in _passed_on(answer.headers.raw)
        ]

    def without_key(self, text: bytes, provider: Provider) -> bytes:
        """Return a text of the provider with stars in place of the key."""
        for secret in self._providers[provider].secrets:
            text = text.replace(secret.encode(), b"***")
        return text


class _Exchange:
    """One request that spends tokens, from its reservation to the booking of what it used."""

    def __init__(self, asked: Asked, account: Account, held: Reserved) -> None:
        self._asked = asked
        self._account = account
        self._held: Reserved | None = held
        self._reading = Reading(asked)
        self._may_cost = False  # whether the provider has, or may have, begun to work

    async def run(
        self, request: httpx.Request, gateway: Gateway, provider: Provider, send: Send
    ) -> Response | None:
        """Pass the request on and its answer back. What it used is booked in every case."""
        answer: httpx.Response | None = None
        try:
            self._may_cost = True
            answer = await gateway.send(request)
            self._may_cost = answer.is_success
            kind = answer.headers.get("content-type", "").lower()
            if answer.is_success and kind.startswith("text/event-stream"):
                headers = gateway.answer_headers(answer, provider)
                hide = partial(gateway.without_key, provider=provider)
                await self._relay(answer, headers, hide, send)
                return None
            body = await read_whole(answer)
            if answer.is_success:
                self._reading.document(body)
            return gateway.whole(answer, body, provider)
        except httpx.HTTPError as error:
            if isinstance(error, _NEVER_SENT):
                self._may_cost = False
            raise _RefusedError(*_failure(error)) from None
        finally:
            self._book()
            if answer is not None:
                await answer.aclose()

    async def _relay(
        self,
        answer: httpx.Response,
        headers: Headers,
        hide: Callable[[bytes], bytes],
        send: Send,
    ) -> None:
        """Pass a stream on, event by event."""
        _require_readable(answer)
        start = {"type": "http.response.start", "status": answer.status_code, "headers": headers}
        await send(start)
        events = Events()
        try:
            async for part in answer.aiter_bytes():
                whole = events.split(part)
                seen = b"".join(event for event in whole if self._reading.event(event))
                if events.size > MOST_BYTES:
                    raise httpx.DecodingError("an event is too large")
                if seen:
                    body = {"type": "http.response.body", "body": hide(seen), "more_body": True}
                    await send(body)
            last = events.rest()
            end = hide(last) if last and self._reading.event(last) else b""
        except httpx.HTTPError as error:
            # The status is sent already: the client learns of it by an event.
            end = error_event(self._asked.format, _failure(error)[1])
        self._book()  # before the end, so that a client that has it finds it counted
        await send({"type": "http.response.body", "body": end, "more_body": False})

    def _book(self) -> None:
        if self._held is None:
            return
        held, self._held = self._held, None
        usage = self._reading.usage
        is_estimate = usage is None and self._may_cost
        self._account.book(
            held,
            self._asked,
            self._reading.estimate() if self._may_cost else Usage(),
            self._reading.model,
            is_estimate=is_estimate,
        )


async def read_whole(answer: httpx.Response) -> bytes:
    """Read an answer that is not a stream. Raises httpx.HTTPError."""
    _require_readable(answer)
    body = bytearray()
    async for part in answer.aiter_bytes():
        body += part
        if len(body) > MOST_BYTES:
            raise httpx.DecodingError("the answer is too large")
    return bytes(body)


def _require_readable(answer: httpx.Response) -> None:
    """Refuse an encoding that was not asked for: its bytes would be taken for text.

    Raises httpx.DecodingError.
    """
    encodings = answer.headers.get("content-encoding", "").lower().split(",")
    if not {each.strip() for each in encodings} <= _READABLE:
        raise httpx.DecodingError("an encoding that was not asked for")


async def _body(request: Request) -> bytes:
    """Read a request's body, unpacked. Raises _RefusedError."""
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise _RefusedError(415, "The gateway reads bodies as they are, or in gzip.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BYTES:
            raise _RefusedError(413, f"The body has more than {MOST_BYTES} bytes.")
    if encoding == "identity":
        return bytes(body)
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(bytes(body), MOST_BYTES + 1)
    except zlib.error:
        raise _RefusedError(400, "The body is not gzip.") from None
    if len(text) > MOST_BYTES:
        raise _RefusedError(413, f"The body has more than {MOST_BYTES} bytes.")
    return text


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _provider(request: Request) -> Provider:
    """Return whose path it is; two have `/v1/models`, where Anthropic's clients name a version."""
    path = request.scope["path"]
    if path.startswith("/v1beta/"):
        return Provider.GOOGLE
    is_messages = path == "/v1/messages" or path.startswith("/v1/messages/")
    is_anthropic = is_messages or "anthropic-version" in request.headers
    return Provider.ANTHROPIC if is_anthropic else Provider.OPENAI


def _token(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    headers = request.headers
    return headers.get("x-api-key") or headers.get("x-goog-api-key", "")


def _passed_on(headers: Headers) -> list[tuple[bytes, bytes]]:
    """Return the headers that are for the other end, not for this connection, byte for byte."""
    lower = [(name.lower(), value) for name, value in headers]
    named = {
        each.strip().lower()
        for name, value in lower
        if name == b"connection"
        for each in value.split(b",")
    }
    return [each for each in lower if each[0] not in _NOT_PASSED_ON and each[0] not in named]


def _over() -> _RefusedError:
    return _RefusedError(503, "The command that has this token is over.")


def _failure(error: httpx.HTTPError) -> tuple[int, str]:
    """Return status and message of a provider that did not answer. Its address is not told."""
    if isinstance(error, httpx.TimeoutException):
        return 504, "The provider did not answer in time."
    if isinstance(error, httpx.ConnectError):
        return 502, "The provider cannot be reached."
    if isinstance(error, httpx.DecodingError):
        return 502, "The provider's answer cannot be decoded, or is too large."
    return 502, f"The provider's answer broke off ({type(error).__name__})."
