"""Throughput and latency of requests with several clients, compared with the floor.

    python benchmarks/load.py [--requests 400] [--clients 1 8 32] [--soak 20000]
                               [--processes 2]

Each client has its own run. For each hot request: requests a second, and the milliseconds within
which half, 95 and 99 of a hundred are answered. The clients share the machine with the servers.
`--soak` then sends so many requests of all kinds from eight clients, and prints the memory of the
servers before and after. `--processes` are those of the service that answer; the floor has one.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
from servers import Server, Work, both

SOAK_CLIENTS = 8
Requests = Callable[[Work, int], list[httpx.Request]]
OPERATIONS: dict[str, Requests] = {
    "GET /runs/{id}": Work.reads,
    "update_status": Work.statuses,
    "record_issue": Work.issues,
    "builder_result": Work.results,
}
# Of twenty requests: mostly reads and issues, as agents and a dashboard make them.
MIX: tuple[tuple[Requests, int], ...] = (
    (Work.reads, 8),
    (Work.issues, 5),
    (Work.statuses, 4),
    (Work.results, 2),
    (Work.starts, 1),
)


@dataclass(frozen=True)
class Figure:
    rate: float
    p50: float
    p95: float
    p99: float

    def __str__(self) -> str:
        return f"{self.rate:8.0f}{self.p50:9.1f}{self.p95:9.1f}{self.p99:9.1f}"


def drive(server: Server, batches: Sequence[Sequence[httpx.Request]]) -> Figure:
    """Send each batch from its own client, all in parallel."""

    def send(batch: Sequence[httpx.Request]) -> list[float]:
        walls = []
        for request in batch:
            began = time.perf_counter()
            server.send("load", request)
            walls.append((time.perf_counter() - began) * 1e3)
        return walls

    began = time.perf_counter()
    with ThreadPoolExecutor(len(batches)) as pool:
        walls = sorted(itertools.chain.from_iterable(pool.map(send, batches)))
    seconds = time.perf_counter() - began

    def within(share: float) -> float:
        return walls[min(int(len(walls) * share), len(walls) - 1)]

    return Figure(len(walls) / seconds, within(0.5), within(0.95), within(0.99))


def mixed(work: Work, count: int) -> list[httpx.Request]:
    """Make so many requests of all kinds, in turns."""
    twenties = []
    for _ in range(count // 20):
        twenties += [request for make, number in MIX for request in make(work, number)]
    return twenties


def soak(server: Server, count: int) -> tuple[Figure, int, int]:
    """Send many requests in a few rounds; return the figures and the memory before and after."""
    works = [Work(server, f"soak-{number}") for number in range(SOAK_CLIENTS)]
    drive(server, [mixed(work, 40) for work in works])  # warm
    before = server.memory()
    figure = drive(server, [mixed(work, count // SOAK_CLIENTS) for work in works])
    return figure, before, server.memory()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=400, help="requests of a kind")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--soak", type=int, default=0, help="mixed requests after that")
    parser.add_argument("--processes", type=int, default=1, help="of the service")
    options = parser.parse_args()
    with both(AUTOPACK_PROCESSES=str(options.processes)) as servers:
        named = dict(zip(("ours", "floor"), servers, strict=True))
        print(f"{'':18}{'clients':>8}{'':8}{'a second':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
        for (name, make), clients in itertools.product(OPERATIONS.items(), options.clients):
            for whose, server in named.items():
                works = [Work(server, f"{name[:3]}-{clients}-{n}") for n in range(clients)]
                for work in works:
                    server.client.send(make(work, 1)[0])  # warm
                each = max(options.requests // clients, 5)
                figure = drive(server, [make(work, each) for work in works])
                print(f"{name:18}{clients:>8}  {whose:6}{figure}", flush=True)
        if options.soak:
            for whose, server in named.items():
                figure, before, after = soak(server, options.soak)
                print(f"{'mixed':18}{SOAK_CLIENTS:>8}  {whose:6}{figure}  {before} MB, {after} MB")
        failures = sum(server.failures for server in servers)
    print(f"{failures} requests failed")


if __name__ == "__main__":
    main()
