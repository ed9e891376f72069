"""The cost of a request, as a multiple of a floor in the same benchmark.

    python benchmarks/endpoints.py [--requests 200] [--auth]

`--auth` compares two services instead, of which one needs an API key: blocks of both in turn, and
of each the block that took the least CPU, as noise only adds.

The floor (floor.py) is a bare FastAPI application that only does the indispensable durable work.
CPU is that of all server processes, with Postgres and git, from /proc; the two alternate, so that
noise affects both equally. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import httpx
from servers import Server, Work, both, with_and_without_keys

BLOCK = 50
# Requests of a block that one server answers before it is the other's turn: a machine that others
# share changes its speed within seconds.
TURN = 10


@dataclass(frozen=True)
class Operation:
    name: str
    requests: Callable[[Work, int], list[httpx.Request]]
    goal: float
    floor: str = ""  # the floor's operation to compare with, if its name differs

    @property
    def has_floor(self) -> bool:
        """Return whether the floor has this operation."""
        return not self.floor


READ = "GET /runs/{id}, 25 phases"
OPERATIONS = (
    Operation(READ, Work.reads, 1.4),
    Operation("get_run by MCP, 25 phases", Work.reads_by_mcp, math.inf, floor=READ),
    Operation("update_status", Work.statuses, 2.0),
    Operation("record_issue", Work.issues, 2.2),
    Operation("POST /runs/start, 25 phases", Work.starts, 2.1),
    Operation("builder_result with a patch", Work.results, 1.8),
)


KEYED = (Operation("GET /whoami", Work.callers, 0), *OPERATIONS, Operation("claim", Work.claims, 0))
MAX_KEY_MS = 0.3


def compare_keys(free: Server, keyed: Server, requests: int) -> None:
    """Print the CPU of each operation without and with an API key, and the difference."""
    works = Work(free), Work(keyed)
    print(f"{'CPU ms a request':32}{'no key':>8}{'key':>8}{'more':>8}{'at most':>9}")
    for operation in KEYED:
        for work in works:
            for request in operation.requests(work, 10):  # warm
                work.server.client.send(request)
        taken: dict[str, list[float]] = {"free": [], "keyed": []}
        for number in range(max(2, requests // BLOCK)):
            order = list(zip(taken.values(), works, strict=True))
            for times, work in order if number % 2 else reversed(order):
                block = operation.requests(work, BLOCK)
                before = work.server.cpu_seconds()
                for request in block:
                    work.server.send(operation.name, request)
                times.append((work.server.cpu_seconds() - before) / BLOCK * 1e3)
        without, with_key = (min(times) for times in taken.values())
        verdict = "" if with_key - without <= MAX_KEY_MS else "  over"
        print(
            f"{operation.name:32}{without:8.2f}{with_key:8.2f}{with_key - without:8.2f}"
            f"{MAX_KEY_MS:9.1f}{verdict}"
        )


def measure(ours: Server, floor: Server, requests: int) -> None:
    works = [Work(ours), Work(floor)]
    for operation in OPERATIONS:
        used = [work for work in works if work.server is ours or operation.has_floor]
        for work in used:
            for request in operation.requests(work, 5):  # warm
                work.server.client.send(request)
        for _ in range(max(1, requests // BLOCK)):
            blocks = [(work.server, operation.requests(work, BLOCK)) for work in used]
            for first in range(0, BLOCK, TURN):
                for server, block in blocks:
                    server.block(operation.name, block[first : first + TURN])


def report(ours: Server, floor: Server, requests: int) -> None:
    print(
        f"{'CPU ms a request':32}{'ours':>8}{'floor':>8}{'ratio':>8}{'goal':>7}"
        f"{'':4}{'wall ms: ours':>14}{'floor':>8}"
    )
    count = max(1, requests // BLOCK) * BLOCK
    for operation in OPERATIONS:
        name = operation.floor or operation.name
        own = ours.cpu[operation.name] / count * 1e3
        least = floor.cpu[name] / count * 1e3
        verdict = "" if own <= operation.goal * least else "  over"
        print(
            f"{operation.name:32}{own:8.2f}{least:8.2f}{own / least:8.2f}{operation.goal:7.1f}"
            f"{verdict:6}{statistics.median(ours.wall[operation.name]):12.1f}"
            f"{statistics.median(floor.wall[name]):8.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--auth", action="store_true", help="compare calls with and without a key")
    given = parser.parse_args()
    requests = given.requests
    if given.auth:
        with with_and_without_keys() as (free, keyed):
            compare_keys(free, keyed, requests)
            print(f"{free.failures + keyed.failures} requests failed")
        return
    with both() as (ours, floor):
        measure(ours, floor, requests)
        report(ours, floor, requests)
        failures = ours.failures + floor.failures
    print(f"{failures} requests failed")


if __name__ == "__main__":
    main()
