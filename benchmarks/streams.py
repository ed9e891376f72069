"""The delay of one event to many open streams, and the resources of these streams.

    python benchmarks/streams.py [--streams 500] [--events 20]

Half of the streams follow all runs, half one run. Every event is the answer to one request; its
delay is from when that request was sent until the last stream has it. Connections are those that
the service has to Postgres, as Postgres lists them, while the streams are open and nothing happens.
The readers are in this process and share the cores with the service. `src/autopack` must be
importable.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import httpx
import psutil
from lists import cpu_seconds, plan, service
from sqlalchemy import text

from autopack.config import Settings
from autopack.database import init_db, make_engine
from autopack.embedded_postgres import EmbeddedPostgres

CONNECTIONS = text(
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND application_name LIKE 'autopack%' AND pid <> pg_backend_pid()"
)


class Reader:
    """One stream, read with minimal work, and the time of its last event."""

    def __init__(self, port: int, path: str) -> None:
        self.port = port
        self.path = path
        self.seen = 0
        self.at = 0.0

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        request = (
            f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n"
        )
        writer.write(request.encode())
        while line := await reader.readline():
            if line.startswith(b"data: "):
                self.seen += 1
                self.at = time.perf_counter()


async def until(is_so: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise SystemExit("the events did not come")
        await asyncio.sleep(0.002)


async def measure(
    client: httpx.Client, process: psutil.Process, count: int, events: int, connections: object
) -> None:
    port = client.base_url.port or 0
    client.post("/runs/start", json=plan("run-0", 5)).raise_for_status()
    empty = process.memory_info().rss
    readers = [
        Reader(port, "/events/stream?after=0" if n % 2 else "/runs/run-0/events")
        for n in range(count)
    ]
    tasks = [asyncio.create_task(each.run()) for each in readers]
    await until(lambda: all(each.seen for each in readers))
    full = process.memory_info().rss
    await asyncio.sleep(1)
    print(f"{count} streams: {(full - empty) / count / 1000:.0f} kB each,", end=" ")
    print(f"{connections()} connections to Postgres")  # type: ignore[operator]
    delays, costs = [], []
    for number in range(events):
        seen = readers[0].seen
        before, began = cpu_seconds([process]), time.perf_counter()
        issue = {"issue_key": f"issue-{number}", "source": "test", "category": "test_failure"}
        path = "/runs/run-0/phases/P0/record_issue"
        answer = await asyncio.to_thread(client.post, path, json=issue)
        answer.raise_for_status()
        await until(lambda seen=seen: all(each.seen > seen for each in readers))
        delays.append((max(each.at for each in readers) - began) * 1e3)
        costs.append((cpu_seconds([process]) - before) * 1e3)
    print(
        f"an event is with all of them after {statistics.median(delays):.0f} ms"
        f" (worst {max(delays):.0f}), its request included; CPU of the service"
        f" {statistics.mean(costs):.0f} ms"
    )
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--events", type=int, default=20)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="autopack-streams-") as name,
        EmbeddedPostgres(Path(name) / "postgres") as server,
    ):
        init_db(Settings(_env_file=None, database_url=server.url.replace("+psycopg2", "")))
        engine = make_engine(server.url, 60)

        def connections() -> int:
            with engine.connect() as connection:
                return int(connection.execute(CONNECTIONS).scalar_one())

        with service(Path(name), server.url) as (client, process):
            print(f"no stream: {connections()} connections to Postgres")
            asyncio.run(measure(client, process, options.streams, options.events, connections))
        engine.dispose()


if __name__ == "__main__":
    main()
