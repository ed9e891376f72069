"""An agent that attacks the gateway, and a provider that is not as it should be.

The agent has the token, and the machine's network. It must not reach anything but the provider's
known paths, spend beside its account, or stop the gateway. (docs/worker.md, Measured spend)
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import zlib
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest

from autopack.meter.account import Account
from autopack.meter.gateway import Gateway
from autopack.meter.providers import providers_of
from autopack.meter.wire import Usage

from .conftest import MODEL, PRICES, REAL_KEY, Json, Parts, Provider, sse, stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Bench, Benches

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

ASKED: Json = {"model": MODEL, "messages": [], "max_tokens": 50}
USAGE = {"input_tokens": 100, "output_tokens": 30}
BODY = json.dumps(ASKED).encode()


def raw(it: Bench, *lines: bytes, body: bytes = b"", host: bytes | None = b"127.0.0.1") -> bytes:
    """Send bytes that no HTTP client would send; return all that comes back."""
    parts = urlsplit(it.server.url)
    own = [b"Authorization: Bearer " + it.token.encode(), b"Connection: close"]
    hosts = [] if host is None else [b"Host: " + host]
    with socket.create_connection((parts.hostname, parts.port), timeout=120) as connection:
        connection.sendall(b"\r\n".join([lines[0], *hosts, *own, *lines[1:], b"", b""]) + body)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


def addresses(it: Bench) -> list[str]:
    return [str(request.url) for request in it.provider.requests]


def works(it: Bench) -> None:
    """Require that the account is as usable as before: a leaked reservation would block it."""
    it.provider.answer = lambda request: httpx.Response(200, json={"usage": USAGE})
    assert it.post("/v1/messages", ASKED | {"max_tokens": 10**9}, timeout=120).status_code == 200


HOSTS = [
    b"evil.example",
    b"evil.example/v1/models?x=",
    b"evil.example/v1/messages#",
    b"[",
    b"u:p@evil.example",
    b"\xff",
    b"",
    None,
]


@pytest.mark.parametrize("host", HOSTS)
def test_the_host_header_chooses_nothing(bench: Benches, host: bytes | None) -> None:
    it = bench()
    refused = raw(it, b"POST /v1/embeddings HTTP/1.1", sized(BODY), body=BODY, host=host)
    assert status(refused) in (400, 404)
    assert it.provider.requests == []
    found = raw(it, b"GET /v1/models HTTP/1.1", host=host)
    assert (status(found), addresses(it)) in (
        (200, ["https://api.openai.com/v1/models"]),
        (400, []),
    )


@pytest.mark.parametrize(
    "line",
    [
        b"GET http://evil.example/v1/models HTTP/1.1",
        b"GET https://evil.example:444/v1/models HTTP/1.0",
        b"GET //evil.example/v1/models HTTP/1.1",
        b"CONNECT evil.example:443 HTTP/1.1",
        b"CONNECT /v1/models HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"TRACE /v1/models HTTP/1.1",
        b"GET /v1//models HTTP/1.1",
        b"GET /v1/models/ HTTP/1.1",
        b"GET /v1/models/./../files HTTP/1.1",
        b"GET /v1/models/%2e%2e/files HTTP/1.1",
        b"GET /v1/models/..%2ffiles HTTP/1.1",
        b"GET /v1/models/%252e%252e/files HTTP/1.1",
        b"GET /v1/models/x;/../../files HTTP/1.1",
        b"GET /v1/models\\..\\files HTTP/1.1",
        b"GET /v1/models/x%00 HTTP/1.1",
        b"GET /v1/models/x%0d%0aX-A:%20b HTTP/1.1",
        b"GET /v1/models/\xff HTTP/1.1",
        b"GET /v1/models?\xff HTTP/1.1",
        b"GET /v1/models%3f/../files HTTP/1.1",
        b"GET /v1/models HTTP/2.0",
        b"PRI * HTTP/2.0",
        b"nonsense",
    ],
)
def test_no_request_line_reaches_anything_but_the_known_paths(bench: Benches, line: bytes) -> None:
    it = bench()
    answer = raw(it, line)
    assert addresses(it) in (
        [],
        ["https://api.openai.com/v1/models"],
        ["https://api.openai.com/v1/models?%FF"],
    )
    assert b"500 Internal" not in answer
    works(it)


@pytest.mark.parametrize(
    ("headers", "body", "statuses"),
    [
        ([b"Content-Length: 3", sized(BODY)], BODY, {400}),
        ([sized(BODY), b"Transfer-Encoding: chunked"], b"0\r\n\r\n", {400}),
        ([b"Transfer-Encoding: chunked"], b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY), {200}),
        ([b"Transfer-Encoding: chunked"], b"zz\r\n" + BODY, {400}),
        ([b"Content-Length: -1"], BODY, {400}),
        ([b"Content-Length: 99999999999999999999999"], b"", {400, 413}),
        ([sized(BODY), b"Content-Encoding: gzip, gzip"], BODY, {415}),
        ([sized(BODY), b"X-Text: Gr\xfc\xdfe"], BODY, {200}),
        ([sized(BODY), b"X-Twice: a", b"X-Twice: b"], BODY, {200}),
        ([sized(BODY), b"Upgrade: websocket", b"Sec-WebSocket-Key: x"], BODY, {200, 400}),
        ([sized(BODY), b"Expect: 100-continue"], BODY, {100, 200}),
    ],
)
def test_odd_framing_and_headers_are_read_once_or_refused(
    bench: Benches, headers: list[bytes], body: bytes, statuses: set[int]
) -> None:
    it = bench()
    answer = raw(it, b"POST /v1/messages HTTP/1.1", *headers, body=body)
    assert status(answer) in statuses
    assert [json.loads(each.content) for each in it.provider.requests] in ([], [ASKED])
    assert bool(it.provider.requests) is bool(statuses & {100, 200})
    works(it)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "background": true, "background": false}',
        b'{"model": "m", "max_tokens": 9, "max_tokens": 100000}',
        b'{"model": "m", "stream": true, "stream_options": {"a": 1, "a": 2}}',
        b'{"a":' * 900 + b"1" + b"}" * 900,
    ],
)
def test_a_body_that_two_readers_may_read_differently_is_refused(
    bench: Benches, body: bytes
) -> None:
    it = bench()
    answer = it.client.post("/v1/chat/completions", content=body)
    assert answer.status_code in (200, 400)
    if answer.status_code == 200:  # deep, but read
        assert body.startswith(b'{"a"')
    else:
        assert it.provider.requests == []
    works(it)


@pytest.mark.parametrize(
    ("path", "limits"),
    [
        ("/v1/responses", {"max_tokens": 1, "max_completion_tokens": 1}),
        ("/v1/messages", {"max_output_tokens": 1, "max_completion_tokens": 1}),
        ("/v1/chat/completions", {"max_output_tokens": 1}),
        ("/v1/messages", {"max_tokens": True}),
        ("/v1/messages", {"max_tokens": 0.5}),
    ],
)
def test_a_limit_that_the_provider_would_ignore_bounds_nothing(
    bench: Benches, path: str, limits: Json
) -> None:
    """Twenty requests at once, each of which uses more than the limit it pretends to have."""
    accounts = Account(1_000, None, PRICES)
    provider = Provider(
        lambda request: httpx.Response(
            200,
            json={
                "usage": {
                    **dict.fromkeys(("input_tokens", "prompt_tokens"), 0),
                    **dict.fromkeys(("output_tokens", "completion_tokens"), 900),
                }
            },
        )
    )
    gateway = Gateway(providers_of({"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": "x"}), provider)

    async def run() -> list[int]:
        gateway.open("t", accounts)
        headers = {"x-api-key": "t"}
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(gateway), base_url="http://gateway", headers=headers
        ) as client:
            asked = {"model": MODEL, "messages": [], **limits}
            answers = await asyncio.gather(*(client.post(path, json=asked) for _ in range(20)))
        await gateway.aclose()
        return [answer.status_code for answer in answers]

    assert asyncio.run(run()).count(200) == 2
    assert accounts.spent.usage.tokens == 1_800


async def _late(tasks: list[asyncio.Task[Any]]) -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_nothing_is_spent_after_the_command_has_ended() -> None:
    """Two requests wait for their turn, one sends its body slowly: none reaches the provider."""
    freed = asyncio.Event()

    async def answer(request: httpx.Request) -> httpx.Response:
        await freed.wait()
        return httpx.Response(200, json={"usage": USAGE})

    async def slow() -> Any:
        yield BODY[:5]
        await ended.wait()
        yield BODY[5:]

    ended = asyncio.Event()
    provider = Provider(answer)
    gateway = Gateway(providers_of({"ANTHROPIC_API_KEY": REAL_KEY}), provider)
    account = Account(1_000, None, PRICES)

    async def run() -> list[int]:
        gateway.open("t", account)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(gateway),
            base_url="http://gateway",
            headers={"x-api-key": "t"},
        ) as client:
            large = ASKED | {"max_tokens": 10**6}
            posts = [
                asyncio.ensure_future(client.post("/v1/messages", json=large)) for _ in range(3)
            ]
            await _late(posts)
            posts.append(asyncio.ensure_future(client.post("/v1/messages", content=slow())))
            await _late(posts)
            closing = asyncio.ensure_future(gateway.close("t", 600))
            await _late(posts)
            freed.set()
            async with asyncio.timeout(60):
                await closing  # each that waits gets its turn to be refused
            figures = account.spent
            ended.set()
            answers = await asyncio.gather(*posts)
            assert account.spent == figures
        await gateway.aclose()
        return [each.status_code for each in answers]

    assert asyncio.run(run()) == [200, 503, 503, 503]
    assert len(provider.requests) == account.spent.requests == 1


# The provider


def packed(encoding: str) -> httpx.Response:
    text = json.dumps({"model": MODEL, "usage": USAGE}).encode()
    pack: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
    body = pack[encoding](text) if encoding in pack else text
    return httpx.Response(200, headers={"content-encoding": encoding}, stream=Parts([body]))


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", ""])
def test_a_packed_answer_is_measured(bench: Benches, encoding: str) -> None:
    it = bench()
    it.provider.answer = lambda request: packed(encoding)
    assert it.post("/v1/messages", ASKED).json()["model"] == MODEL
    assert it.account.spent.usage == Usage(100, 30)


@pytest.mark.parametrize("encoding", ["x-secret", "gzip, x-secret", "compress"])
def test_an_answer_that_cannot_be_unpacked_is_an_error_and_counts(
    bench: Benches, encoding: str
) -> None:
    it = bench()
    it.provider.answer = lambda request: packed(encoding)
    answer = it.post("/v1/messages", ASKED)
    assert answer.status_code == 502
    assert "cannot be decoded" in answer.json()["error"]["message"]
    assert it.account.spent.estimated == 1


def test_a_packed_stream_is_measured(bench: Benches) -> None:
    it = bench()
    events = sse(
        {"type": "response.output_text.delta", "delta": "Hello"},
        {"type": "response.completed", "response": {"usage": USAGE}},
    )
    whole = gzip.compress(b"".join(events))
    headers = {"content-type": "Text/Event-Stream", "content-encoding": "gzip"}
    parts = [whole[i : i + 9] for i in range(0, len(whole), 9)]
    it.provider.answer = lambda request: httpx.Response(200, headers=headers, stream=Parts(parts))
    answer = it.post("/v1/responses", ASKED | {"stream": True})
    assert answer.content == b"".join(events)
    assert it.account.spent.usage == Usage(100, 30)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"input_tokens": -5, "output_tokens": 3},
        {"input_tokens": 5, "output_tokens": "3"},
        {"input_tokens": 5, "output_tokens": 3.5},
        {"input_tokens": 5, "output_tokens": True},
        {"input_tokens": 2**60, "output_tokens": 3},
        {"input_tokens": 0, "output_tokens": 0},
    ],
)
def test_a_usage_that_cannot_be_true_is_estimated(bench: Benches, usage: Any) -> None:
    it = bench()
    it.provider.answer = lambda request: httpx.Response(
        200, json={"text": "a" * 90, "usage": usage}
    )
    assert it.post("/v1/messages", ASKED).status_code == 200
    assert it.account.spent.estimated == 1
    assert 30 < it.account.spent.usage.tokens < 200


def test_more_reasoning_than_output_is_no_more_than_the_output(bench: Benches) -> None:
    """The service refuses a result with more of it."""
    it = bench()
    told = USAGE | {"output_tokens_details": {"reasoning_tokens": 31}}
    it.provider.answer = lambda request: httpx.Response(200, json={"usage": told})
    it.post("/v1/responses", ASKED)
    assert it.account.spent.usage == Usage(100, 30, 0, 30)


@pytest.mark.parametrize("model", ["m\x1b[2J", "m\n", "m" * 10_000, "a b", "\u202em", 7, None])
def test_a_models_name_is_a_name_or_not_known(bench: Benches, model: Any) -> None:
    it = bench()
    it.provider.answer = lambda request: httpx.Response(200, json={"usage": USAGE, "model": model})
    it.post("/v1/messages", ASKED | {"model": model})
    assert it.account.spent.model is None
    assert it.account.spent.unpriced == ("",)


def test_a_key_that_the_provider_repeats_is_not_passed_on(bench: Benches) -> None:
    it = bench()
    headers = {
        b"x-echo": f"Bearer {REAL_KEY}".encode(),
        b"x-text": "Gr\u00fc\u00dfe".encode("latin-1"),
    }
    it.provider.answer = lambda request: httpx.Response(
        200, headers=headers, json={"key": REAL_KEY, "usage": USAGE}
    )
    answer = it.post("/v1/messages", ASKED)
    assert REAL_KEY not in answer.text + str(answer.headers)
    (event,) = sse({"type": "message_delta", "key": REAL_KEY, "usage": USAGE})
    it.provider.answer = lambda request: httpx.Response(
        200,
        headers=headers | {b"content-type": b"text/event-stream"},
        stream=Parts([event[:30], event[30:]]),
    )
    answer = it.post("/v1/messages", ASKED | {"stream": True})
    assert answer.status_code == 200
    assert REAL_KEY not in answer.text + str(answer.headers)
    assert it.account.spent.usage == Usage(200, 60)


def test_an_event_with_deep_json_does_not_end_the_stream(bench: Benches) -> None:
    it = bench()
    deep = b'data: {"type": "x", "delta": ' + b"[" * 800 + b"]" * 800 + b"}\n\n"
    last = sse({"type": "message_delta", "usage": USAGE})
    it.provider.answer = lambda request: stream(deep, *last)
    answer = it.post("/v1/messages", ASKED | {"stream": True})
    assert answer.content == deep + last[0]
    assert it.account.spent.usage == Usage(100, 30)
