"""What the gateway of `autopack work --meter` adds to a request, and by how much caps are passed.

    python benchmarks/meter.py [--agents 50] [--requests 12] [--think 1000]

The provider, the agents and the gateway are a process each, on one machine. The provider answers
after some milliseconds of thinking, in one document or in a stream of twenty events. Latencies are
from a request's first byte to its answer's last; each line compares requests straight to the
provider with requests through the gateway, in turns. CPU is that of the gateway's process.

The caps: each agent sends its requests five at once until it is refused, and each request uses all
that its bounds allow, which is the worst case. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Final

from autopack.meter.account import Account
from autopack.meter.providers import providers_of
from autopack.meter.server import GatewayServer

ENOUGH: Final = 10**12
MOST_OUTPUT: Final = 500
AT_ONCE: Final = 5
EVENTS: Final = 20
PATH: Final = "/v1/responses"
ASKED: Final = {"model": "m", "input": "x" * 20_000, "max_output_tokens": MOST_OUTPUT}


async def read_message(reader: asyncio.StreamReader) -> tuple[str, bytes]:
    """Read one HTTP message; returns its first line and its body."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    if "transfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        length = head.partition("content-length: ")[2].partition("\r\n")[0]
        body = await reader.readexactly(int(length or 0))
    return head.partition("\r\n")[0], body


def provide(ready: multiprocessing.Queue[int], think_seconds: float) -> None:
    """Serve the provider on a free port, which goes to the queue."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                _, body = await read_message(reader)
                await asyncio.sleep(think_seconds)
                usage = {"input_tokens": len(body), "output_tokens": MOST_OUTPUT}
                kind, text = "application/json", json.dumps({"usage": usage})
                if b'"stream": true' in body:
                    kind = "text/event-stream"
                    delta = {"type": "response.output_text.delta", "delta": "some words "}
                    last = {"type": "response.completed", "response": {"usage": usage}}
                    events = [delta] * EVENTS + [last]
                    text = "".join(f"data: {json.dumps(each)}\n\n" for each in events)
                head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(text)}"
                writer.write(f"{head}\r\n\r\n{text}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def serve() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(serve())


def message(token: str, *, is_stream: bool) -> bytes:
    body = json.dumps(ASKED | {"stream": is_stream})
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def ask(
    port: int, request: bytes, go_on: Callable[[int], bool], wait_seconds: float = 0
) -> list[float]:
    """Send a request again and again on one connection; returns the milliseconds of each."""
    await asyncio.sleep(wait_seconds)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took: list[float] = []
    status = 200
    while status == 200 and go_on(len(took)):
        start = time.perf_counter()
        writer.write(request)
        line, _ = await read_message(reader)
        took.append(1_000 * (time.perf_counter() - start))
        status = int(line.split()[1])
    writer.close()
    return took


def agents(port: int, tokens: list[str], requests: int, is_stream: bool) -> list[float]:
    """Let one agent a token send so many requests, one after the other each."""

    async def run() -> list[float]:
        work = [
            # Spread over a second, as agents do not start together.
            ask(
                port,
                message(token, is_stream=is_stream),
                lambda done: done < requests,
                number / len(tokens),
            )
            for number, token in enumerate(tokens)
        ]
        return [each for took in await asyncio.gather(*work) for each in took]

    return asyncio.run(run())


def spenders(port: int, tokens: list[str]) -> None:
    """Let each agent send five requests at once until all five are refused."""

    async def run() -> None:
        each = [message(token, is_stream=True) for token in tokens] * AT_ONCE
        await asyncio.gather(*(ask(port, request, lambda done: True) for request in each))

    asyncio.run(run())


def report_latency(
    name: str,
    pool: ProcessPoolExecutor,
    ports: tuple[int, int],
    tokens: list[str],
    requests: int,
    *,
    is_stream: bool,
) -> None:
    took: dict[int, list[float]] = {port: [] for port in ports}
    cpu = 0.0
    for turn in range(5):
        for port in ports:
            start = time.process_time()
            some = pool.submit(agents, port, tokens, requests // 4 or 1, is_stream).result()
            if turn:  # the first warms up
                took[port] += some
                cpu += time.process_time() - start if port == ports[1] else 0
    straight, through = (sorted(took[port]) for port in ports)
    medians = statistics.median(straight), statistics.median(through)
    p99 = (each[int(len(each) * 0.99)] for each in (straight, through))
    added = medians[1] - medians[0]
    print(
        f"{name:28}{len(through):9}{medians[0]:10.1f}{medians[1]:9.1f}{added:8.1f}"
        f"{next(p99):9.1f}{next(p99):9.1f}{1_000 * cpu / len(through):9.2f}"
    )


def report_caps(gateway: GatewayServer, pool: ProcessPoolExecutor, port: int, number: int) -> None:
    """Let each agent use up another cap, and print how far it was passed."""
    bound = len(json.dumps(ASKED | {"stream": True})) + MOST_OUTPUT
    accounts: dict[str, tuple[int, Account]] = {}
    for each in range(number):
        cap = 5 * bound + each * bound // number
        token, account = gateway.open(cap, None, {}, lambda: None)
        accounts[token] = cap, account
    pool.submit(spenders, port, list(accounts)).result()
    over = [(account.spent.usage.tokens - cap) / bound for cap, account in accounts.values()]
    requests = sum(account.spent.requests for _, account in accounts.values())
    print(
        f"\ncaps: {number} agents, {AT_ONCE} requests at once each, {requests} passed on."
        f" Over the cap, in requests: median {statistics.median(over):.2f}, most {max(over):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--agents", type=int, default=50)
    parser.add_argument("--requests", type=int, default=12, help="of each agent")
    parser.add_argument("--think", type=float, default=1000, help="milliseconds of the provider")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ready: multiprocessing.Queue[int] = context.Queue()
    provider = context.Process(target=provide, args=(ready, options.think / 1_000), daemon=True)
    provider.start()
    straight = ready.get()
    environment = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": f"http://127.0.0.1:{straight}/v1"}
    try:
        with (
            ProcessPoolExecutor(1, mp_context=context) as pool,
            GatewayServer(providers_of(environment)) as gateway,
        ):
            through = int(gateway.url.rpartition(":")[2])
            tokens = [
                gateway.open(ENOUGH, None, {}, lambda: None)[0] for _ in range(options.agents)
            ]
            print(
                f"{'milliseconds':28}{'requests':>9}{'straight':>10}{'through':>9}{'added':>8}"
                f"{'p99':>9}{'p99':>9}{'CPU':>9}"
            )
            for some in (tokens[:1], tokens):
                for is_stream in (False, True):
                    name = f"{len(some)} at once, {'stream' if is_stream else 'document'}"
                    report_latency(
                        name, pool, (straight, through), some, options.requests, is_stream=is_stream
                    )
            report_caps(gateway, pool, through, options.agents)
    finally:
        provider.terminate()
        provider.join()


if __name__ == "__main__":
    main()
