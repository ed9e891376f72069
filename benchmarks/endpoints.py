"""What a request costs, as a multiple of a floor in the same run.

    python benchmarks/endpoints.py [--requests 200]

The floor is a bare FastAPI application that does by psycopg2 the indispensable SQL alone, on tables
with the same columns as our answer has fields, writes as many files of the same sizes (temporary
file, fsync, rename) and starts the same git plumbing. It checks nothing, decides nothing and keeps
no chain of events. CPU is that of all server processes, Postgres and git included, from /proc; the
two take turns, so that noise meets both alike. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apply
import httpx
import psutil
import psycopg2
import uvicorn
from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse
from psycopg2.extras import Json, RealDictCursor, execute_values
from psycopg2.pool import ThreadedConnectionPool

from autopack.embedded_postgres import EmbeddedPostgres

PHASES = 25
FILES = 2_000
BLOCK = 50
AT_ONCE = 8
Row = dict[str, Any]


# The floor: what cannot be left out.


def column_type(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "bigint"
        case list() | dict():
            return "jsonb"
    return "text"


def stored(row: Row) -> Row:
    return {
        name: Json(value) if isinstance(value, list | dict) else value
        for name, value in row.items()
        if name not in ("tiers", "phases")
    }


class Floor:
    """The bare application. `shape` is an answer of ours to take the columns from."""

    def __init__(self, url: str, shape: Row, sizes: dict[str, int], folder: Path) -> None:
        self.pool = ThreadedConnectionPool(1, 40, url)
        self.folder = folder
        self.sizes = sizes
        self.runs = folder / "runs"
        self.run_row = stored(shape)
        self.tier_row = stored(shape["tiers"][0])
        self.phase_row = stored(shape["tiers"][0]["phases"][0])
        self.repository = folder / "repository"
        self.base = apply.git(self.repository, "rev-parse", "main")
        self.step = apply.by_bare_plumbing(self.repository, folder, "refs/heads/floor")
        self._make_tables(shape)

    def _make_tables(self, shape: Row) -> None:
        tier = shape["tiers"][0]
        with self.transaction() as cursor:
            for table, row in (("runs", shape), ("tiers", tier), ("phases", tier["phases"][0])):
                columns = ", ".join(
                    f'"{name}" {column_type(value)}'
                    for name, value in row.items()
                    if name not in ("tiers", "phases")
                )
                parent = "" if table == "runs" else "run_pk bigint, "
                cursor.execute(
                    f"CREATE TABLE {table} (pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                    f" {parent}{columns})"
                )
            cursor.execute("CREATE UNIQUE INDEX ON runs (run_id)")
            cursor.execute("ALTER TABLE runs ADD mirrored bigint DEFAULT 0")
            for table in ("tiers", "phases"):
                cursor.execute(f"CREATE INDEX ON {table} (run_pk)")
            for table in ("events", "submissions", "issues", "replies"):
                cursor.execute(
                    f"CREATE TABLE {table} (pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                    " run_pk bigint, kind text, data jsonb, content bytea)"
                )

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        connection = self.pool.getconn()
        try:
            with connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
                yield cursor
        finally:
            self.pool.putconn(connection)

    def read(self, run_id: str) -> Row:
        with self.transaction() as cursor:
            cursor.execute("SELECT * FROM runs WHERE run_id = %s", (run_id,))
            run = dict(cursor.fetchone())
            cursor.execute("SELECT * FROM tiers WHERE run_pk = %s ORDER BY pk", (run["pk"],))
            tiers = {tier["tier_id"]: dict(tier, phases=[]) for tier in cursor.fetchall()}
            cursor.execute("SELECT * FROM phases WHERE run_pk = %s ORDER BY pk", (run["pk"],))
            for phase in cursor.fetchall():
                tiers[phase["tier_id"]]["phases"].append(phase)
        return {**run, "tiers": list(tiers.values())}

    def start(self, plan: Row) -> Row:
        run_id = plan["run"]["run_id"]
        with self.transaction() as cursor:
            row = {**self.run_row, "run_id": run_id}
            names = ", ".join(f'"{name}"' for name in row)
            marks = ", ".join(["%s"] * len(row))
            cursor.execute(
                f"INSERT INTO runs ({names}) VALUES ({marks}) RETURNING pk", list(row.values())
            )
            key = cursor.fetchone()["pk"]
            for table, template, given in (
                ("tiers", self.tier_row, plan["tiers"]),
                ("phases", self.phase_row, plan["phases"]),
            ):
                names = ", ".join(f'"{name}"' for name in template)
                rows = [(key, *{**template, **one}.values()) for one in given]
                execute_values(cursor, f"INSERT INTO {table} (run_pk, {names}) VALUES %s", rows)
            self._add(cursor, "events", key)
        update = f"update refs/heads/autonomous/{run_id} {self.base} {'0' * 40}\n"
        apply.git(self.repository, "update-ref", "--stdin", stdin=update.encode())
        count = len(plan["phases"]) + len(plan["tiers"])
        self._write(run_id, ["phase"] * count + ["summary", "index"])
        self._mirrored(key)
        return {"run_id": run_id, **plan}

    def status(self, run_id: str, phase_id: str, state: str) -> Row:
        with self.transaction() as cursor:
            key, phase = self._lock(cursor, run_id, phase_id)
            self._change(cursor, key, phase["pk"], state)
        self._write(run_id, ["phase", "tier", "summary"])
        self._mirrored(key)
        return {**phase, "state": state}

    def result(self, run_id: str, phase_id: str, number: int) -> Row:
        patch, changed = apply.patch_of(FILES, number)
        with self.transaction() as cursor:
            key, phase = self._lock(cursor, run_id, phase_id)
            self.step(patch, changed)
            self._change(cursor, key, phase["pk"], "COMPLETE")
            for table in ("submissions", "submissions", "replies", "events", "events"):
                self._add(cursor, table, key, patch)
        self._write(run_id, ["phase", "tier", "summary"])
        self._mirrored(key)
        return phase

    def _lock(self, cursor: Any, run_id: str, phase_id: str) -> tuple[int, Row]:
        cursor.execute("SELECT * FROM runs WHERE run_id = %s FOR UPDATE", (run_id,))
        key = cursor.fetchone()["pk"]
        cursor.execute("SELECT * FROM phases WHERE run_pk = %s ORDER BY pk", (key,))
        phases = {phase["phase_id"]: phase for phase in cursor.fetchall()}
        return key, dict(phases[phase_id])

    def _change(self, cursor: Any, key: int, phase_key: int, state: str) -> None:
        cursor.execute("UPDATE phases SET state = %s WHERE pk = %s", (state, phase_key))
        cursor.execute("UPDATE runs SET tokens_used = tokens_used + 1 WHERE pk = %s", (key,))
        self._add(cursor, "events", key)

    def _add(self, cursor: Any, table: str, key: int, content: bytes | None = None) -> None:
        cursor.execute(
            f"INSERT INTO {table} (run_pk, kind, data, content) VALUES (%s, %s, %s, %s)",
            (key, "Something", Json({"reason": "a few words"}), content),
        )

    def _mirrored(self, key: int) -> None:
        with self.transaction() as cursor:
            cursor.execute("UPDATE runs SET mirrored = mirrored + 1 WHERE pk = %s", (key,))

    def _write(self, run_id: str, kinds: Sequence[str]) -> None:
        folder = self.runs / run_id
        folder.mkdir(parents=True, exist_ok=True)
        for number, kind in enumerate(kinds):
            path = folder / f"{kind}{number}"
            with (folder / f".{path.name}").open("wb") as file:
                file.write(b"x" * self.sizes[kind])
                file.flush()
                os.fsync(file.fileno())
            (folder / f".{path.name}").rename(path)
        descriptor = os.open(folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def serve_floor(url: str, shape: Row, sizes: dict[str, int], folder: Path, port: int) -> None:
    floor = Floor(url, shape, sizes, folder)
    app = FastAPI()

    @app.get("/runs/{run_id}")
    def read(run_id: str) -> JSONResponse:
        return JSONResponse(floor.read(run_id))

    @app.post("/runs/start")
    def start(plan: Row = Body()) -> JSONResponse:
        return JSONResponse(floor.start(plan))

    @app.post("/runs/{run_id}/phases/{phase_id}/update_status")
    def status(run_id: str, phase_id: str, change: Row = Body()) -> JSONResponse:
        return JSONResponse(floor.status(run_id, phase_id, change["state"]))

    @app.post("/runs/{run_id}/phases/{phase_id}/builder_result")
    def result(run_id: str, phase_id: str, report: Row = Body()) -> JSONResponse:
        return JSONResponse(floor.result(run_id, phase_id, report["tokens_used"]))

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


# Both of them, and what is asked of them.


@dataclass
class Server:
    client: httpx.Client
    process: psutil.Process
    postgres: psutil.Process
    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    failures: int = 0

    def cpu_seconds(self) -> float:
        total = 0.0
        for root in (self.process, self.postgres):
            for process in (root, *root.children(recursive=True)):
                try:
                    times = process.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                total += sum(times[:4])  # its own, and that of children that have ended
        return total

    def send(self, name: str, request: httpx.Request) -> httpx.Response:
        began = time.perf_counter()
        response = self.client.send(request)
        self.wall.setdefault(name, []).append((time.perf_counter() - began) * 1e3)
        if not response.is_success:
            self.failures += 1
            print(f"{name}: {response.status_code} {response.text[:300]}", file=sys.stderr)
        return response

    def block(self, name: str, requests: Sequence[httpx.Request]) -> None:
        before = self.cpu_seconds()
        for request in requests:
            self.send(name, request)
        self.cpu[name] = self.cpu.get(name, 0.0) + self.cpu_seconds() - before


def plan(run_id: str) -> Row:
    return {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": f"T{n}", "tier_index": n, "name": f"Tier {n}"} for n in range(2)],
        "phases": [
            {
                "phase_id": f"P{n}",
                "phase_index": n,
                "tier_id": f"T{n * 2 // PHASES}",
                "name": f"Phase {n}",
                "description": "Do what the plan asks for, and leave all else as it is.",
            }
            for n in range(PHASES)
        ],
    }


class Work:
    """The requests of each operation, the same for both servers."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.numbers = itertools.count()
        self.steps = itertools.count(1)
        self.run, self.phase, self.touched = "", PHASES, set[str]()

    def new_run(self) -> str:
        run_id = f"bench-{next(self.numbers)}"
        self.server.client.post("/runs/start", json=plan(run_id)).raise_for_status()
        return run_id

    def post(self, path: str, body: Row) -> httpx.Request:
        return self.server.client.build_request("POST", path, json=body)

    def reads(self, count: int) -> list[httpx.Request]:
        run_id = self.new_run()
        return [self.server.client.build_request("GET", f"/runs/{run_id}")] * count

    def reads_by_mcp(self, count: int) -> list[httpx.Request]:
        call = {"name": "get_run", "arguments": {"run_id": self.new_run()}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        request = self.post("/mcp", message)
        request.headers["Accept"] = "application/json, text/event-stream"
        return [request] * count

    def starts(self, count: int) -> list[httpx.Request]:
        return [self.post("/runs/start", plan(f"start-{next(self.numbers)}")) for _ in range(count)]

    def statuses(self, count: int) -> list[httpx.Request]:
        path = f"/runs/{self.new_run()}/phases/P0/update_status"
        states = itertools.cycle(["EXECUTING", "QUEUED"])
        return [self.post(path, {"state": next(states), "tokens_used": 1}) for _ in range(count)]

    def issues(self, count: int) -> list[httpx.Request]:
        path = f"/runs/{self.new_run()}/phases/P0/record_issue"
        return [
            self.post(path, {"issue_key": f"k{n % 10}", "source": "test", "category": "tests"})
            for n in range(count)
        ]

    def results(self, count: int) -> list[httpx.Request]:
        return [self.result() for _ in range(count)]

    def result(self) -> httpx.Request:
        """The next patch, in a run whose earlier patches left its files alone."""
        if self.phase == PHASES:
            self.run, self.phase, self.touched = self.new_run(), 0, set()
        while True:
            number = next(self.steps)
            patch, changed = apply.patch_of(FILES, number)
            paths = {each.path for each in changed}
            if not paths & self.touched:
                break
        self.touched |= paths
        path = f"/runs/{self.run}/phases/P{self.phase}/builder_result"
        self.phase += 1
        body = {"status": "success", "patch_content": patch.decode(), "tokens_used": number}
        return self.post(path, body)


@dataclass(frozen=True)
class Operation:
    name: str
    requests: Callable[[Work, int], list[httpx.Request]]
    floor: str  # the operation of the floor that it is compared with
    goal: float

    @property
    def has_floor(self) -> bool:
        """Say whether the floor does the same."""
        return self.floor == self.name


OPERATIONS = (
    Operation("GET /runs/{id}, 25 phases", Work.reads, "GET /runs/{id}, 25 phases", 1.5),
    Operation(
        "get_run by MCP, 25 phases", Work.reads_by_mcp, "GET /runs/{id}, 25 phases", math.inf
    ),
    Operation("update_status", Work.statuses, "update_status", 2.0),
    Operation("record_issue", Work.issues, "update_status", 2.5),
    Operation("POST /runs/start, 25 phases", Work.starts, "POST /runs/start, 25 phases", 1.6),
    Operation("builder_result with a patch", Work.results, "builder_result with a patch", 1.5),
)


def measure(ours: Server, floor: Server, requests: int) -> None:
    works = [Work(ours), Work(floor)]
    for operation in OPERATIONS:
        for work in works:
            if work.server is ours or operation.has_floor:
                for request in operation.requests(work, 5):  # warm
                    work.server.client.send(request)
        for _ in range(max(1, requests // BLOCK)):
            for work in works:
                if work.server is ours or operation.has_floor:
                    work.server.block(operation.name, operation.requests(work, BLOCK))


def at_once(server: Server, count: int) -> tuple[float, float, int]:
    """Return requests a second, one at a time and eight at a time on eight runs."""
    server.failures = 0

    def drive(works: list[Work], each: int) -> float:
        batches = [work.issues(each) for work in works]
        began = time.perf_counter()
        with ThreadPoolExecutor(len(works)) as pool:
            list(pool.map(lambda batch: [server.send("at once", one) for one in batch], batches))
        return sum(map(len, batches)) / (time.perf_counter() - began)

    shared = Work(server)
    shared.numbers = itertools.count(1_000_000)
    alone = drive([shared], count)
    together = drive([shared] * AT_ONCE, count // AT_ONCE)
    return alone, together, server.failures


def report(ours: Server, floor: Server, requests: int) -> None:
    print(
        f"{'CPU ms a request':32}{'ours':>8}{'floor':>8}{'ratio':>8}{'goal':>7}"
        f"{'':4}{'wall ms: ours':>14}{'floor':>8}"
    )
    count = max(1, requests // BLOCK) * BLOCK
    for operation in OPERATIONS:
        own = ours.cpu[operation.name] / count * 1e3
        least = floor.cpu[operation.floor] / count * 1e3
        verdict = "" if own <= operation.goal * least else "  over"
        print(
            f"{operation.name:32}{own:8.2f}{least:8.2f}{own / least:8.2f}{operation.goal:7.1f}"
            f"{verdict:6}{statistics.median(ours.wall[operation.name]):12.1f}"
            f"{statistics.median(floor.wall[operation.floor]):8.1f}"
        )


# Processes.


@contextmanager
def running(command: Sequence[str], log: Path, environment: Row, path: str) -> Iterator[Any]:
    """Run a server on a free port until it is done with; `{port}` is put into the command."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as output:
        process = subprocess.Popen(
            [word.replace("{port}", str(port)) for word in command],
            env={**os.environ, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False)
        deadline = time.monotonic() + 120
        while True:
            try:
                client.get(path)
                break
            except httpx.TransportError:
                if time.monotonic() > deadline or process.poll() is not None:
                    raise SystemExit(f"it did not start:\n{log.read_text()}") from None
                time.sleep(0.05)
        yield client, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=60)


def postmaster(folder: Path) -> psutil.Process:
    (found,) = folder.rglob("postmaster.pid")
    return psutil.Process(int(found.read_text().split()[0]))


def sizes_of(run: Path) -> dict[str, int]:
    """Return how long the pages are that ours writes for a run."""
    samples = {"phase": "phases/*_P0.md", "tier": "tiers/*.md", "summary": "run_summary.md"}
    sizes = {kind: next(run.glob(name)).stat().st_size for kind, name in samples.items()}
    return {**sizes, "index": 200}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--floor", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.floor:
        url, folder, port = options.floor
        shape = json.loads(Path(folder, "shape.json").read_text())
        serve_floor(url, shape["run"], shape["sizes"], Path(folder), int(port))
        return
    with tempfile.TemporaryDirectory(prefix="autopack-http-") as name:
        bench(Path(name), options.requests)


def bench(top: Path, requests: int) -> None:
    folders = [top / "ours", top / "floor"]
    for folder in folders:
        folder.mkdir()
        apply.make_repository(folder / "repository", FILES, 0)
        apply.git(folder / "repository", "branch", "floor")
    (folders[0] / "runs").mkdir()
    rule = {"max_builder_attempts": 100}
    ruleset = {"project_id": "Autopack", "categories": {"default": rule}, "aliases": {}}
    (folders[0] / "runs/project_ruleset_Autopack.json").write_text(json.dumps(ruleset))
    with EmbeddedPostgres(top / "postgres") as postgres:
        url = postgres.url.replace("+psycopg2", "")
        connection = psycopg2.connect(url)
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE floor")
        connection.close()
        environment = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "DATABASE_URL": url,
            "AUTOPACK_REPO_PATH": str(folders[0] / "repository"),
            "AUTOPACK_HOME": str(folders[0] / "home"),
            "AUTONOMOUS_RUNS_DIR": str(folders[0] / "runs"),
        }
        command = [sys.executable, "-m", "autopack", "serve", "--port", "{port}"]
        with running(command, top / "ours.log", environment, "/health/live") as (client, process):
            ours = Server(client, process, postmaster(top))
            client.post("/runs/start", json=plan("shape")).raise_for_status()
            shape = client.get("/runs/shape").json()
            document = {"run": shape, "sizes": sizes_of(folders[0] / "runs/shape")}
            (folders[1] / "shape.json").write_text(json.dumps(document))
            floor_url = psycopg2.extensions.make_dsn(url, dbname="floor")
            command = [sys.executable, __file__, "--floor", floor_url, str(folders[1]), "{port}"]
            with running(command, top / "floor.log", environment, "/") as (client, process):
                floor = Server(client, process, postmaster(top))
                measure(ours, floor, requests)
            alone, together, failures = at_once(ours, requests)
    report(ours, floor, requests)
    print(
        f"\nrecord_issue, requests a second: {alone:.0f} one at a time, {together:.0f} of"
        f" {AT_ONCE} runs at once, {failures} failures"
    )


if __name__ == "__main__":
    main()
