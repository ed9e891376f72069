"""A gateway on loopback, and a provider in this process that answers as a test says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx
import pytest

from autopack.meter.account import Account
from autopack.meter.providers import providers_of
from autopack.meter.server import GatewayServer

Json = dict[str, Any]
REAL_KEY = "sk-real-key"
MODEL = "stand-in-1"
PRICES = {MODEL: {"input": "1", "cached": "0.1", "output": "10"}}
Answer = Callable[[httpx.Request], httpx.Response]


def sse(*documents: Json | str, named: bool = False) -> list[bytes]:
    """Write the events of a stream."""
    events = []
    for each in documents:
        name = f"event: {each['type']}\n" if named and isinstance(each, dict) else ""
        text = each if isinstance(each, str) else json.dumps(each)
        events.append(f"{name}data: {text}\n\n".encode())
    return events


class Parts(httpx.AsyncByteStream):
    """A body in parts. `then` is raised, or awaited, after the last of them."""

    def __init__(self, parts: list[bytes], then: Any = None) -> None:
        self._parts, self._then = parts, then
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part
        if isinstance(self._then, Exception):
            raise self._then
        if self._then is not None:
            await self._then()

    async def aclose(self) -> None:
        self.is_closed = True


def stream(*parts: bytes, then: Any = None) -> httpx.Response:
    headers = {"content-type": "text/event-stream; charset=utf-8", "x-request-id": "req_1"}
    return httpx.Response(200, headers=headers, stream=Parts(list(parts), then))


@dataclass
class Provider(httpx.AsyncBaseTransport):
    """The stand-in: `answer` may be replaced, `requests` are those that reached it."""

    answer: Callable[[httpx.Request], Any] = lambda request: httpx.Response(200, json={})
    requests: list[httpx.Request] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await request.aread()
        self.requests.append(request)
        answer = self.answer(request)
        found: httpx.Response = answer if isinstance(answer, httpx.Response) else await answer
        return found


@dataclass
class Bench:
    """A gateway with one account, and a client that has its token."""

    provider: Provider
    server: GatewayServer
    client: httpx.Client
    account: Account
    token: str

    def post(self, path: str, body: Json, **more: Any) -> httpx.Response:
        return self.client.post(path, json=body, **more)


@dataclass
class Benches:
    server: GatewayServer
    provider: Provider
    stack: ExitStack

    def __call__(self, tokens: int = 1_000_000, cost: str | None = None) -> Bench:
        cap = Decimal(cost) if cost else None
        token, account = self.server.open(tokens, cap, PRICES, lambda: None)
        headers = {"authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=self.server.url, headers=headers, trust_env=False)
        return Bench(self.provider, self.server, self.stack.enter_context(client), account, token)


@pytest.fixture(scope="module")
def _gateway() -> Iterator[tuple[GatewayServer, Provider]]:
    provider = Provider()
    environment = {"OPENAI_API_KEY": REAL_KEY, "ANTHROPIC_API_KEY": REAL_KEY}
    environment |= {"GEMINI_API_KEY": REAL_KEY}
    with GatewayServer(providers_of(environment), provider) as server:
        yield server, provider


@pytest.fixture
def bench(_gateway: tuple[GatewayServer, Provider]) -> Iterator[Benches]:
    """Opens accounts: the gateway is the module's, the provider is as new."""
    server, provider = _gateway
    provider.answer = lambda request: httpx.Response(200, json={})
    provider.requests = []
    with ExitStack() as stack:
        yield Benches(server, provider, stack)
