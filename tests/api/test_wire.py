"""What clients do before a request is whole: too much, too slowly, or nothing."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from autopack.api.access import AccessMiddleware
from autopack.api.head import HeadLimits
from autopack.api.wire import (
    IDLE_SECONDS,
    STEP_BYTES,
    WireProtocol,
    connections_within,
    protocol_with,
    raise_file_limit,
)

pytestmark = pytest.mark.integration

MAX_HEAD = 4_000
HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST / HTTP/1.1\r\nHost: localhost\r\n"


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body that came."""
    if scope["type"] == "lifespan":
        return
    body, is_whole = b"", False
    while not is_whole:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message.get("body", b"")
        is_whole = not message.get("more_body", False)
    length = str(len(body)).encode()
    headers = [(b"content-length", length)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def served(
    *, stalled_seconds: float = 60, idle_seconds: float = IDLE_SECONDS, connections: int = 50
) -> AsyncIterator[Any]:
    """Serve `echo` behind our protocol; yield what connects."""
    protocol = protocol_with(
        head_limits=HeadLimits(max_bytes=MAX_HEAD, max_fields=10),
        stalled_seconds=stalled_seconds,
        idle_seconds=idle_seconds,
        max_connections=connections,
    )
    config = uvicorn.Config(echo, http=protocol, log_level="critical", lifespan="off")
    config.load()
    state = uvicorn.Server(config).server_state
    made: list[WireProtocol] = []

    def make() -> WireProtocol:
        made.append(protocol(config, state, {}))
        return made[-1]

    server = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", port)

    connect.made = made  # type: ignore[attr-defined]
    try:
        yield connect
    finally:
        server.close()
        for each in made:
            if each.transport is not None:
                each.transport.abort()


def story(tell: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        async def within_reason() -> None:
            async with asyncio.timeout(60):  # a hang is told from slowness by this alone
                await tell()

        asyncio.run(within_reason())

    test.__name__ = tell.__name__
    return test


async def answer_to(connect: Any, *pieces: bytes) -> bytes:
    reader, writer = await connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return bytes(await reader.read())
    except ConnectionError:
        return b""
    finally:
        writer.close()


@story
async def test_a_head_grows_no_further_than_its_limit() -> None:
    async with served() as connect:
        for flood in (
            [HEAD, b"X: ", *[b"a" * STEP_BYTES] * 40],
            [b"GET /", *[b"a" * STEP_BYTES] * 40],
            [HEAD, *[b"X: %b\r\n" % (b"a" * 1_000)] * 1_000],
            [HEAD, *[b"X: 1\r\n"] * 11, b"\r\n"],
        ):
            assert (await answer_to(connect, *flood)).startswith(b"HTTP/1.1 431 ")
            fed = connect.made[-1]
            assert sum(len(name) + len(value) for name, value in fed.headers) <= 10 * STEP_BYTES
            assert fed.cycle is None  # no application has seen it


@story
async def test_bytes_between_and_after_the_chunks_of_a_body_are_limited_too() -> None:
    async with served() as connect:
        chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"
        for flood in (b"0\r\nX: ", b"2;x="):
            assert await answer_to(connect, chunked + flood, *[b"a" * STEP_BYTES] * 40) == b""
            assert connect.made[-1].transport.is_closing()


@story
async def test_a_trailer_is_no_header() -> None:
    """A proxy that checks the headers of a request would not see it."""
    async with served() as connect:
        reader, writer = await connect()
        body = b"2\r\n{}\r\n0\r\nX-API-Key: ap_x\r\n\r\n"
        writer.write(POST + b"Transfer-Encoding: chunked\r\n\r\n" + body)
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        names = [name for name, _ in connect.made[-1].headers]
        assert names == [b"host", b"transfer-encoding"]
        writer.close()


@story
async def test_requests_within_the_limits_are_answered_alone_and_in_a_row() -> None:
    async with served() as connect:
        largest = HEAD + b"X: %b\r\n" % (b"a" * 3_000)
        whole = POST + b"Content-Length: 200000\r\n\r\n" + b"b" * 200_000
        last = HEAD + b"Connection: close\r\n\r\n"
        found = await answer_to(connect, (largest + b"\r\n") * 3 + whole + last)
        assert found.count(b"HTTP/1.1 200 OK") == 5
        assert found.count(b"b" * 200_000) == 1


@story
async def test_a_wish_for_another_protocol_is_answered_as_http_and_logged_nowhere() -> None:
    for wish in (b"websocket", b"h2c", b"x" * 2_000):
        async with served() as connect:
            warned: list[str] = []
            head = HEAD + b"Connection: Upgrade, close\r\nUpgrade: %b\r\n" % wish
            logger = logging.getLogger("uvicorn.error")
            logger.setLevel(logging.WARNING)
            catch = logging.Handler()
            catch.emit = lambda record: warned.append(record.getMessage())  # type: ignore[method-assign]  # noqa: B023
            logger.addHandler(catch)
            try:
                answer = await answer_to(connect, head + b"Sec-WebSocket-Version: 13\r\n\r\n")
            finally:
                logger.removeHandler(catch)
            assert answer.startswith(b"HTTP/1.1 200 OK"), answer
            assert warned == []


@story
async def test_a_stalled_head_is_408_and_a_silent_connection_is_closed() -> None:
    async with served(stalled_seconds=0.05) as connect:
        assert (await answer_to(connect, HEAD)).startswith(b"HTTP/1.1 408 ")
        assert await answer_to(connect) == b""


@story
async def test_blank_lines_do_not_keep_a_connection() -> None:
    async with served(idle_seconds=0.05) as connect:
        reader, writer = await connect()
        writer.write(HEAD + b"\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        while not connect.made[0].transport.is_closing():
            writer.write(b"\r\n")
            await asyncio.sleep(0.01)
        writer.close()


@story
async def test_an_idle_connection_stays_longer_than_clients_and_proxies_keep_it() -> None:
    """Else it could be closed just as they send the next request."""
    async with served(stalled_seconds=0.05) as connect:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(HEAD + b"\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
            silent, end = await connect()
            assert await silent.read() == b"", "it has never sent anything, and is closed"
            end.close()
        timer = connect.made[0].timeout_keep_alive_task
        assert timer.when() - asyncio.get_running_loop().time() > 90
        writer.close()


@story
async def test_idle_connections_make_room_the_longest_idle_first() -> None:
    async with served(connections=3) as connect:
        idle = [await connect() for _ in range(3)]
        for number in range(5):
            found = await answer_to(connect, HEAD + b"Connection: close\r\n\r\n")
            assert found.startswith(b"HTTP/1.1 200 OK"), number
            if number == 0:
                assert await idle[0][0].read() == b""
        idle[2][1].write(HEAD + b"Connection: close\r\n\r\n")
        assert (await idle[2][0].read()).startswith(b"HTTP/1.1 200 OK")
        for _, writer in idle:
            writer.close()


@story
async def test_where_no_connection_is_idle_a_new_one_is_told_to_come_later() -> None:
    async with served(connections=2) as connect:
        busy = [await connect() for _ in range(2)]
        for _, writer in busy:
            writer.write(POST + b"Content-Length: 1\r\n\r\n")
        while sum(bool(each.cycle) for each in connect.made) < 2:
            await asyncio.sleep(0.001)
        for each in connect.made:
            each._stop_waiting()  # as if their bodies had come, and they were being answered
        assert (await answer_to(connect)).startswith(b"HTTP/1.1 503 ")
        for _, writer in busy:
            writer.close()


def test_connections_leave_files_for_the_service_itself() -> None:
    assert connections_within(1_024) == 524
    assert connections_within(256) == 64
    soft = raise_file_limit()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == soft
    assert connections_within(soft) < soft


def behind_the_door(stalled_seconds: float) -> AccessMiddleware:
    return AccessMiddleware(
        echo,
        hosts=["*"],
        auth="disabled",
        max_body_bytes=100_000,
        head_limits=HeadLimits(max_bytes=1_000, max_fields=10),
        stalled_seconds=stalled_seconds,
    )


async def post(app: AccessMiddleware, *pieces: bytes | None, **scope: Any) -> list[Any]:
    """Send the pieces of a body, None for one that never comes; return what is sent back."""
    waiting, sent = list(pieces), list[Any]()

    async def receive() -> dict[str, Any]:
        piece = waiting.pop(0)
        if piece is None:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        sent.append(message)

    whole = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [],
        **scope,
    }
    await app(whole, receive, send)
    return sent


@story
async def test_a_stalled_body_is_refused_by_every_server() -> None:
    from fastapi import HTTPException

    app = behind_the_door(0.05)
    for pieces in ([b"a", None], [b"a" * 5_000, b"b", None], [None]):
        with pytest.raises(HTTPException) as refusal:
            await post(app, *pieces)
        assert refusal.value.status_code == 408
    sent = await post(app, *[b"a" * 1_000] * 50)
    assert len(sent[1]["body"]) == 50_000


@story
async def test_large_heads_are_refused_behind_every_server() -> None:
    app = behind_the_door(60)
    for scope in (
        {"headers": [(b"x", b"1")] * 11},
        {"headers": [(b"x", b"a" * 1_000)]},
        {"query_string": b"a" * 1_000},
        {"raw_path": b"a" * 1_001},
    ):
        assert (await post(app, b"", **scope))[0]["status"] == 431


@story
async def test_all_bodies_under_way_together_have_a_limit_and_give_their_room_back() -> None:
    from fastapi import HTTPException

    app = behind_the_door(60)
    app.hold(950_000)
    with pytest.raises(HTTPException) as refusal:
        await post(app, b"a" * 60_000)
    assert refusal.value.status_code == 503
    assert await post(app, b"a" * 50_000)
    assert await post(app, b"a" * 50_000)
