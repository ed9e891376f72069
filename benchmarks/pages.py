"""What a page of the dashboard costs, and what it costs to keep many open.

    python benchmarks/pages.py [--pages 100] [--events 20]

The run has 25 phases and 2,000 events. First each page is requested alone: CPU is that of the
service and of Postgres together, from /proc, so other load has little effect; wall is the median.
Then one event after the other happens, with nobody listening, with so many open streams of the run,
and with so many browsers that show the run's page. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import psutil
from lists import cpu_seconds, plan, service
from sqlalchemy import text
from streams import Reader, until

from autopack.config import Settings
from autopack.database import init_db, make_engine
from autopack.embedded_postgres import EmbeddedPostgres

PAGES = ("", "/runs", "/runs/run-0", "/runs/run-0?phase=P0", "/issues", "/figures", "/ruleset")
EVENTS = 2_000
REQUESTS = 20
# At most one picture of a page a second, so that each event is drawn.
PAUSE_SECONDS = 1.2
FILL = text(
    "INSERT INTO events (run_pk, sequence, at, actor, kind, phase_id, tier_id, data, previous_hash,"
    " hash) SELECT run_pk, sequence + n, at, actor, 'TokensCounted', 'P0', 'T0',"
    ' \'{"tokens": 3, "cost_usd": "0.000100"}\', \'\', md5(n::text)'
    " FROM events, generate_series(1, :events) n WHERE id = (SELECT max(id) FROM events)"
)
COUNT = text("UPDATE runs SET event_sequence = (SELECT max(sequence) FROM events)")


def look_at(client: httpx.Client, processes: Sequence[psutil.Process]) -> None:
    """Request each page alone."""
    print(f"{'page':24}{'CPU ms':>8}{'wall ms':>9}{'kB':>7}")
    for path in PAGES:
        client.get(f"/dashboard{path}").raise_for_status()
        before, walls, size = cpu_seconds(processes), [], 0
        for _ in range(REQUESTS):
            began = time.perf_counter()
            size = len(client.get(f"/dashboard{path}").content)
            walls.append(time.perf_counter() - began)
        cpu = (cpu_seconds(processes) - before) / REQUESTS * 1e3
        wall = statistics.median(walls) * 1e3
        print(f"/dashboard{path:14}{cpu:8.0f}{wall:9.0f}{size / 1e3:7.0f}")


async def keep_open(
    client: httpx.Client,
    processes: Sequence[psutil.Process],
    path: str | None,
    count: int,
    events: int,
) -> float:
    """Return the CPU in ms that each event costs while so many readers are there."""
    readers = [Reader(client.base_url.port or 0, path) for _ in range(count)] if path else []
    tasks = [asyncio.create_task(each.run()) for each in readers]
    await until(lambda: all(each.seen for each in readers))
    await asyncio.sleep(2 * PAUSE_SECONDS)
    before = cpu_seconds(processes)
    for number in range(events):
        seen = [each.seen for each in readers]
        issue = {"issue_key": f"{count}-{path}-{number}"[-90:], "source": "test", "category": "x"}
        answer = await asyncio.to_thread(
            client.post, "/runs/run-0/phases/P0/record_issue", json=issue
        )
        answer.raise_for_status()
        await asyncio.sleep(PAUSE_SECONDS)
        await until(
            lambda seen=seen: all(
                each.seen > last for each, last in zip(readers, seen, strict=True)
            )
        )
    cost = (cpu_seconds(processes) - before) / events * 1e3
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--pages", type=int, default=100)
    parser.add_argument("--events", type=int, default=20)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="autopack-pages-") as name,
        EmbeddedPostgres(Path(name) / "postgres") as server,
    ):
        init_db(Settings(_env_file=None, database_url=server.url.replace("+psycopg2", "")))
        engine = make_engine(server.url, 60)
        with service(Path(name), server.url) as (client, process):
            postmaster = (Path(name) / "postgres" / "data" / "postmaster.pid").read_text()
            processes = [process, psutil.Process(int(postmaster.split("\n", 1)[0]))]
            client.post("/runs/start", json=plan("run-0", 25)).raise_for_status()
            with engine.begin() as connection:
                connection.execute(FILL, {"events": EVENTS})
                connection.execute(COUNT)
            look_at(client, processes)
            kinds = {
                "nobody": (None, 0),
                f"{options.pages} streams of the run": ("/runs/run-0/events", options.pages),
                "1 page of the run": ("/dashboard/stream?page=run&run=run-0&phase=P0", 1),
                f"{options.pages} pages of the run": (
                    "/dashboard/stream?page=run&run=run-0&phase=P0",
                    options.pages,
                ),
            }
            print("\nCPU ms of an event, its request included, while there are")
            for words, (path, count) in kinds.items():
                cost = asyncio.run(keep_open(client, processes, path, count, options.events))
                print(f"{words:28}{cost:8.0f}")
        engine.dispose()


if __name__ == "__main__":
    main()
