"""What an agent's model client meets at the gateway. (docs/worker.md, Measured spend)"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autopack.meter.account import Account
from autopack.meter.gateway import Gateway
from autopack.meter.providers import providers_of
from autopack.meter.wire import Format, Reading, Usage, read_request

from .conftest import MODEL, PRICES, REAL_KEY, Json, Provider, sse, stream

if TYPE_CHECKING:
    from .conftest import Benches

pytestmark = pytest.mark.integration

ASKED = {"model": MODEL, "messages": [], "max_tokens": 50}
CHAT_USAGE = {
    "prompt_tokens": 120,
    "prompt_tokens_details": {"cached_tokens": 20},
    "completion_tokens": 30,
    "completion_tokens_details": {"reasoning_tokens": 7},
}
RESPONSES_USAGE = {
    "input_tokens": 120,
    "input_tokens_details": {"cached_tokens": 20},
    "output_tokens": 30,
    "output_tokens_details": {"reasoning_tokens": 7},
}
MESSAGES_USAGE = {
    "input_tokens": 60,
    "cache_creation_input_tokens": 40,
    "cache_read_input_tokens": 20,
    "output_tokens": 30,
}
MEASURED = Usage(input_tokens=100, output_tokens=30, cached_tokens=20, reasoning_tokens=7)
COST = Decimal("0.000402")  # 100 at 1, 20 at 0.1, 30 at 10 USD a million
DELTA = {"choices": [{"index": 0, "delta": {"content": "Hello"}}], "usage": None}
CHAT = sse(DELTA, {"choices": [], "usage": CHAT_USAGE, "model": MODEL}, "[DONE]")
RESPONSES = sse(
    {"type": "response.output_text.delta", "delta": "Hello"},
    {"type": "response.completed", "response": {"usage": RESPONSES_USAGE}},
    named=True,
)
MESSAGES = sse(
    {"type": "message_start", "message": {"usage": MESSAGES_USAGE | {"output_tokens": 1}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 30}},
    {"type": "message_stop"},
    named=True,
)
FORMATS = pytest.mark.parametrize(
    ("path", "usage", "events", "address"),
    [
        ("/v1/chat/completions", CHAT_USAGE, CHAT, "https://api.openai.com/v1/chat/completions"),
        ("/v1/responses", RESPONSES_USAGE, RESPONSES, "https://api.openai.com/v1/responses"),
        ("/v1/messages", MESSAGES_USAGE, MESSAGES, "https://api.anthropic.com/v1/messages"),
    ],
)


# A request of which each token of the bound is used.
BOUNDED: Json = {"model": MODEL, "input": "Work.", "max_output_tokens": 100}


async def use_all(request: httpx.Request) -> httpx.Response:
    """Answer later than all requests of the moment have come, and use what the bounds allow."""
    for _ in range(3):
        await asyncio.sleep(0)
    usage = {"input_tokens": len(request.content), "output_tokens": 100}
    return httpx.Response(200, json={"usage": usage})


def spent(path: str) -> Usage:
    """Return the same usage as a provider tells it: Anthropic does not tell its reasoning."""
    return MEASURED if "messages" not in path else Usage(100, 30, 20)


@FORMATS
def test_an_answer_is_passed_on_and_measured(
    bench: Benches, path: str, usage: Json, events: list[bytes], address: str
) -> None:
    it = bench()
    document = {"model": MODEL, "text": "Grüße", "usage": usage}
    packed = gzip.compress(json.dumps(document).encode())
    it.provider.answer = lambda request: httpx.Response(
        200, content=packed, headers={"content-encoding": "gzip", "x-request-id": "req_1"}
    )
    answer = it.post(path, ASKED, headers={"connection": "keep-alive, x-hop", "x-hop": "1"})
    assert answer.json() == document
    assert answer.headers["x-request-id"] == "req_1"
    (request,) = it.provider.requests
    assert str(request.url) == address
    assert json.loads(request.content) == ASKED
    assert REAL_KEY in (request.headers.get("x-api-key") or request.headers["authorization"])
    assert it.token not in str(request.headers)
    assert "x-hop" not in request.headers
    assert it.account.spent.usage == spent(path)
    assert it.account.spent.cost_usd == COST
    assert it.account.spent.model == MODEL


@FORMATS
def test_a_stream_is_passed_on_as_it_comes_and_measured(
    bench: Benches, path: str, usage: Json, events: list[bytes], address: str
) -> None:
    it = bench()
    whole = b"".join(events)
    it.provider.answer = lambda request: stream(
        *(whole[i : i + 7] for i in range(0, len(whole), 7))
    )
    options = {"stream_options": {"include_usage": True}} if "chat" in path else {}
    answer = it.post(path, ASKED | {"stream": True} | options)
    assert answer.content == whole
    assert json.loads(it.provider.requests[0].content) == ASKED | {"stream": True} | options
    assert it.account.spent.usage == spent(path)
    assert it.account.spent.estimated == 0


def test_a_usage_that_the_client_did_not_ask_for_is_asked_for_and_hidden(bench: Benches) -> None:
    it = bench()
    it.provider.answer = lambda request: stream(*CHAT)
    answer = it.post("/v1/chat/completions", ASKED | {"stream": True})
    assert json.loads(it.provider.requests[0].content)["stream_options"] == {"include_usage": True}
    assert answer.content == CHAT[0] + CHAT[2]
    assert it.account.spent.usage == MEASURED


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_a_stream_that_breaks_off_ends_with_an_error_and_is_estimated(
    bench: Benches, path: str
) -> None:
    it = bench()
    begun = {"chat": CHAT, "resp": RESPONSES, "mess": MESSAGES}[path[4:8]][:1]
    it.provider.answer = lambda request: stream(*begun, then=httpx.ReadError("gone"))
    answer = it.post(path, ASKED | {"stream": True})
    assert answer.content.startswith(begun[0])
    assert "broke off" in answer.text.splitlines()[-2]
    assert it.account.spent.estimated == 1
    tokens = it.account.spent.usage
    # Anthropic tells the input at the start; of the others it is estimated from the size.
    assert tokens.input_tokens == (100 if "messages" in path else pytest.approx(30, abs=15))
    assert tokens.output_tokens >= 1


def test_a_client_that_leaves_a_stream_ends_it_and_what_it_used_counts(bench: Benches) -> None:
    it = bench()
    forever = asyncio.Event
    it.provider.answer = lambda request: stream(*MESSAGES[:2], then=lambda: forever().wait())
    with it.client.stream("POST", "/v1/messages", json=ASKED | {"stream": True}) as answer:
        assert next(answer.iter_bytes())
    it.server.close(it.token)
    assert it.account.spent.estimated == 1
    assert it.account.spent.usage == Usage(100, 5, 20)  # 15 bytes of the one delta


def test_a_request_in_flight_at_the_end_of_the_command_is_estimated(bench: Benches) -> None:
    it = bench()
    asked = threading.Event()

    async def hang(request: httpx.Request) -> httpx.Response:
        asked.set()
        await asyncio.Event().wait()
        raise AssertionError

    it.provider.answer = hang
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(it.post, "/v1/messages", ASKED, timeout=60)
        assert asked.wait(60)
        it.server.close(it.token, patience_seconds=0)
        assert waiting.result().status_code == 503
    assert it.account.spent.requests == it.account.spent.estimated == 1
    assert it.post("/v1/messages", ASKED).status_code == 401


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/chat/completions", "insufficient_quota"),
        ("/v1/responses", "insufficient_quota"),
        ("/v1/messages", "rate_limit_error"),
    ],
)
@pytest.mark.parametrize("budget", [{"tokens": 150}, {"cost": "0.0004"}])
def test_at_the_cap_a_request_gets_the_providers_own_rate_limit(
    bench: Benches, path: str, kind: str, budget: Any
) -> None:
    it = bench(**budget)
    usage = CHAT_USAGE | RESPONSES_USAGE
    it.provider.answer = lambda request: httpx.Response(
        200, json={"usage": MESSAGES_USAGE if "messages" in path else usage}
    )
    assert it.post(path, ASKED).status_code == 200
    refused = it.post(path, ASKED)
    assert refused.status_code == 429
    assert refused.json()["error"]["type"] == kind
    assert "The budget of this task is used up" in refused.json()["error"]["message"]
    assert int(refused.headers["retry-after"]) > 0
    assert refused.headers["x-should-retry"] == "false"
    assert len(it.provider.requests) == 1
    assert it.account.refusal is not None


@pytest.mark.parametrize("cap", ["tokens", "cost"])
def test_requests_sent_at_once_pass_the_cap_by_one_at_most(bench: Benches, cap: str) -> None:
    """Each uses what its bounds allow, all are sent at once: the sum passes the cap by one."""
    it = bench(tokens=1_000) if cap == "tokens" else bench(cost="0.003")
    together = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal together, most
        together += 1
        most = max(most, together)
        await asyncio.sleep(0)
        together -= 1
        used = {"input_tokens": len(request.content), "output_tokens": 50}
        return httpx.Response(200, json={"usage": used})

    it.provider.answer = answer
    bound = len(httpx.Request("POST", "http://x", json=ASKED).content) + 50
    with ThreadPoolExecutor(20) as pool:
        codes = list(pool.map(lambda _: it.post("/v1/messages", ASKED).status_code, range(20)))
    used = it.account.spent.usage.tokens
    if cap == "tokens":
        assert 1_000 <= used < 1_000 + bound
    else:
        spent = it.account.spent.cost_usd
        assert Decimal("0.003") <= spent < Decimal("0.003") + spent / codes.count(200)
    assert codes.count(200) == used // bound
    assert codes.count(429) == 20 - used // bound


def test_no_answer_waits_for_an_acknowledgement(bench: Benches) -> None:
    """asyncio sets TCP_NODELAY only on connections of a listener that names its protocol."""
    assert bench.server._listener.proto == socket.IPPROTO_TCP


def test_no_part_of_a_usage_is_more_than_its_whole() -> None:
    reading = Reading(read_request(Format.RESPONSES, json.dumps(BOUNDED).encode()))
    told = {
        "input_tokens": 10,
        "input_tokens_details": {"cached_tokens": 50},
        "output_tokens": 20,
        "output_tokens_details": {"reasoning_tokens": 30},
    }
    reading.document(json.dumps({"usage": told}).encode())
    assert reading.usage == Usage(0, 20, cached_tokens=10, reasoning_tokens=20)


def test_requests_that_together_fit_exactly_do_not_wait_for_each_other() -> None:
    asked = read_request(Format.RESPONSES, json.dumps(BOUNDED).encode())
    assert asked.most_input is not None
    both = 2 * (asked.most_input + asked.most_output)
    cost = 2 * (asked.most_input * 1 + asked.most_output * 10) / Decimal(1_000_000)

    async def run() -> None:
        account = Account(both, cost, PRICES)
        async with asyncio.timeout(60):
            await account.reserve(asked)
            await account.reserve(asked)  # the first one is still under way

    asyncio.run(run())


def test_fifty_agents_at_once_pass_their_caps_by_one_request_each_at_most() -> None:
    """Each sends five requests at once; a cap is used up by the second or the third of them."""
    provider = Provider(use_all)
    gateway = Gateway(providers_of({"OPENAI_API_KEY": REAL_KEY}), provider)
    caps = {f"token-{number}": 200 + 7 * number for number in range(50)}
    accounts = {token: Account(cap, None, PRICES) for token, cap in caps.items()}
    transport = httpx.ASGITransport(gateway)

    async def send(client: httpx.AsyncClient, token: str) -> int:
        headers = {"authorization": f"Bearer {token}"}
        return (await client.post("/v1/responses", json=BOUNDED, headers=headers)).status_code

    async def run() -> list[int]:
        for token, account in accounts.items():
            gateway.open(token, account)
        async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
            codes = await asyncio.gather(*(send(client, token) for token in [*caps] * 5))
        await gateway.aclose()
        return codes

    codes = asyncio.run(run())
    most = len(json.dumps(BOUNDED)) + BOUNDED["max_output_tokens"]
    over = [account.spent.usage.tokens - caps[token] for token, account in accounts.items()]
    assert all(0 <= each < most for each in over)
    assert max(over) > 0
    assert codes.count(200) == len(provider.requests)
    assert codes.count(429) == 5 * 50 - len(provider.requests)


def test_an_error_of_the_provider_is_passed_on_without_the_key_and_costs_nothing(
    bench: Benches,
) -> None:
    it = bench()
    it.provider.answer = lambda request: httpx.Response(
        429, json={"error": {"message": f"too much for {REAL_KEY}"}}, headers={"retry-after": "7"}
    )
    answer = it.post("/v1/chat/completions", ASKED)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "7")
    assert answer.json()["error"]["message"] == "too much for ***"
    assert it.account.spent.usage == Usage()
    assert it.account.refusal is None


@pytest.mark.parametrize(
    ("error", "status", "is_estimated"),
    [
        (httpx.ConnectError("no"), 502, False),
        (httpx.ReadTimeout("late"), 504, True),
        (httpx.RemoteProtocolError("cut"), 502, True),
    ],
)
def test_a_provider_that_does_not_answer_is_an_error_in_its_own_form(
    bench: Benches, error: Exception, status: int, is_estimated: bool
) -> None:
    it = bench()

    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    it.provider.answer = fail
    answer = it.post("/v1/messages", ASKED)
    assert answer.status_code == status
    assert answer.json()["type"] == "error"
    assert (it.account.spent.estimated == 1) is is_estimated


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/embeddings"),
        ("POST", "/v1/batches"),
        ("GET", "/v1/responses/resp_1"),
        ("GET", "/v1/models/../files"),
        ("GET", "/v1/models/%2e%2e/files"),
        ("GET", "/"),
        ("DELETE", "/v1/models/x"),
    ],
)
def test_a_path_that_could_spend_unseen_is_refused(bench: Benches, method: str, path: str) -> None:
    it = bench()
    answer = it.client.request(method, it.server.url + path)
    assert answer.status_code == 404
    assert "does not serve" in answer.json()["error"]["message"]
    assert it.provider.requests == []


def test_paths_without_cost_are_passed_on(bench: Benches) -> None:
    it = bench(tokens=0)
    for header, path in (
        ({}, "/v1/models"),
        ({"anthropic-version": "2023-06-01"}, "/v1/models/claude-1?limit=2"),
    ):
        assert it.client.get(path, headers=header).status_code == 200
    assert it.post("/v1/messages/count_tokens?beta=true", ASKED).status_code == 200
    assert [str(request.url) for request in it.provider.requests] == [
        "https://api.openai.com/v1/models",
        "https://api.anthropic.com/v1/models/claude-1?limit=2",
        "https://api.anthropic.com/v1/messages/count_tokens?beta=true",
    ]
    assert it.account.spent.requests == 0


def test_only_the_token_opens_the_gateway(bench: Benches) -> None:
    it = bench()
    for headers in ({"authorization": "Bearer x"}, {"authorization": ""}, {"x-api-key": REAL_KEY}):
        headers = {"authorization": ""} | headers
        assert it.post("/v1/messages", ASKED, headers=headers).status_code == 401
    as_anthropic = {"authorization": "", "x-api-key": it.token}
    assert it.post("/v1/messages", ASKED, headers=as_anthropic).status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b"[" * 100_000, {}, 400),
        (json.dumps(ASKED | {"background": True}).encode(), {}, 400),
        (b"no gzip", {"content-encoding": "gzip"}, 400),
        (b"{}", {"content-encoding": "br"}, 415),
        (gzip.compress(bytes(65 * 2**20), mtime=0), {"content-encoding": "gzip"}, 413),
        (gzip.compress(json.dumps(ASKED).encode(), mtime=0), {"content-encoding": "gzip"}, 200),
        (json.dumps(ASKED | {"system": "x" * 5_000_000}).encode(), {}, 200),
    ],
)
def test_bodies_are_read_within_limits(
    bench: Benches, body: bytes, headers: dict[str, str], status: int
) -> None:
    it = bench()
    answer = it.client.post("/v1/responses", content=body, headers=headers)
    assert answer.status_code == status
    assert len(it.provider.requests) == (status == 200)


def test_a_model_without_a_price_leaves_the_cost_unknown(bench: Benches) -> None:
    it = bench()
    it.provider.answer = lambda request: httpx.Response(
        200, json={"model": "other-2026", "usage": MESSAGES_USAGE}
    )
    it.post("/v1/messages", ASKED | {"model": "other"})
    it.post("/v1/messages", ASKED)
    assert it.account.spent.unpriced == ("other-2026",)
    assert it.account.spent.cost_usd == COST


def test_no_prompt_and_no_answer_is_logged(
    bench: Benches, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    it = bench()
    it.provider.answer = lambda request: stream(
        *sse({"choices": [{"delta": {"content": "SECRET"}}]}), then=RuntimeError("a fault")
    )
    said: list[Any] = [{"role": "user", "content": "SECRET"}]
    with pytest.raises(httpx.HTTPError):
        it.post("/v1/chat/completions", ASKED | {"messages": said, "stream": True})
    it.server.close(it.token)
    out = capfd.readouterr()
    assert "SECRET" not in out.out + out.err + caplog.text
    assert REAL_KEY not in out.out + out.err + caplog.text
