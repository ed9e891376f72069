"""Throughput and latency of requests with several clients, compared with the floor.

    python benchmarks/load.py [--requests 400] [--clients 1 8 32] [--soak 20000]
                               [--processes 2]

Each client has its own run. All report issues of the same ten keys, then each of a key of its own:
the difference is the wait for each other's entries of the backlog. For each hot request: requests a
second, and the milliseconds within which half, 95 and 99 of a hundred are answered. The clients
share the machine with the servers, which take turns, as a machine may change its speed within
seconds.
`--soak` then sends so many requests of all kinds from eight clients, and prints the memory of the
servers before and after. `--processes` are those of the service that answer; the floor has one.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpx
from servers import Server, Work, both

SOAK_CLIENTS = 8
TURNS = 4
SOAK_TURNS = 10
Requests = Callable[[Work, int], list[httpx.Request]]
OPERATIONS: dict[str, Requests] = {
    "GET /runs/{id}": Work.reads,
    "update_status": Work.statuses,
    "record_issue": Work.issues,
    "with own keys": Work.own_issues,
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


@dataclass
class Figures:
    """The seconds of all turns together, and the milliseconds of each of their requests."""

    seconds: float = 0.0
    walls: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        walls = sorted(self.walls)
        within = [walls[min(int(len(walls) * part), len(walls) - 1)] for part in (0.5, 0.95, 0.99)]
        return f"{len(walls) / self.seconds:8.0f}" + "".join(f"{wall:9.1f}" for wall in within)

    def drive(self, server: Server, batches: Sequence[Sequence[httpx.Request]]) -> None:
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
            self.walls += itertools.chain.from_iterable(pool.map(send, batches))
        self.seconds += time.perf_counter() - began


def in_turns(
    works: Mapping[str, Sequence[Work]], make: Requests, each: int, turns: int
) -> dict[str, Figures]:
    """Let the clients of each server send so many requests in so many turns."""
    figures = {name: Figures() for name in works}
    for _ in range(turns):
        for name, clients in works.items():
            batches = [make(work, max(each // turns, 1)) for work in clients]
            figures[name].drive(clients[0].server, batches)
    return figures


def mixed(work: Work, count: int) -> list[httpx.Request]:
    """Make so many requests of all kinds, in turns."""
    twenties = []
    for _ in range(count // 20):
        twenties += [request for make, number in MIX for request in make(work, number)]
    return twenties


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

        def clients(prefix: str, count: int) -> dict[str, list[Work]]:
            return {
                name: [Work(server, f"{prefix}-{number}") for number in range(count)]
                for name, server in named.items()
            }

        print(f"{'':18}{'clients':>8}{'':8}{'a second':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}")
        for (name, make), count in itertools.product(OPERATIONS.items(), options.clients):
            works = clients(f"{name[:3]}-{count}", count)
            in_turns(works, make, 1, 1)  # warm
            each = max(options.requests // count, TURNS)
            for whose, figures in in_turns(works, make, each, TURNS).items():
                print(f"{name:18}{count:>8}  {whose:6}{figures}", flush=True)
        if options.soak:
            works = clients("soak", SOAK_CLIENTS)
            in_turns(works, mixed, 40, 1)  # warm
            before = [server.memory() for server in servers]
            soaked = in_turns(works, mixed, options.soak // SOAK_CLIENTS, SOAK_TURNS)
            for whose, least in zip(named, before, strict=True):
                grown = f"{least} MB, {named[whose].memory()} MB"
                print(f"{'mixed':18}{SOAK_CLIENTS:>8}  {whose:6}{soaked[whose]}  {grown}")
        failures = sum(server.failures for server in servers)
    print(f"{failures} requests failed")


if __name__ == "__main__":
    main()
