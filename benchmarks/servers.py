"""The service and the floor (floor.py) as processes, and the requests to both."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apply
import httpx
import psutil
from floor import FILES, Page, Row

from autopack.embedded_postgres import EmbeddedPostgres

PHASES = 25
STATUSES_A_RUN = 150


@dataclass
class Server:
    """A measured server with its own Postgres."""

    client: httpx.Client
    process: psutil.Process
    postgres: psutil.Process
    cpu: dict[str, float] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)
    failures: int = 0

    def cpu_seconds(self) -> float:
        return _seconds(self.process) + _seconds(self.postgres)

    def postgres_seconds(self) -> float:
        """Return the part of `cpu_seconds` that is Postgres'."""
        return _seconds(self.postgres)

    def memory(self) -> int:
        """Return the megabytes that the server's own processes hold."""
        processes = (self.process, *self.process.children(recursive=True))
        return sum(process.memory_info().rss for process in processes) // 10**6

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


def _seconds(root: psutil.Process) -> float:
    """Return the CPU time of a process and those below it, also of ended ones."""
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += sum(times[:4])  # its own CPU time, and that of ended children
    return total


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
    """The requests of each operation, the same for both servers. `name` is its runs' prefix."""

    def __init__(self, server: Server, name: str = "bench") -> None:
        self.server = server
        self.name = name
        self.numbers = itertools.count()
        self.steps = itertools.count(1)
        self.run, self.phase, self.touched = "", PHASES, set[str]()

    def new_run(self) -> str:
        run_id = f"{self.name}-{next(self.numbers)}"
        self.server.client.post("/runs/start", json=plan(run_id)).raise_for_status()
        return run_id

    def post(self, path: str, body: Row) -> httpx.Request:
        return self.server.client.build_request("POST", path, json=body)

    def reads(self, count: int) -> list[httpx.Request]:
        run_id = self.new_run()
        return [self.server.client.build_request("GET", f"/runs/{run_id}")] * count

    def callers(self, count: int) -> list[httpx.Request]:
        return [self.server.client.build_request("GET", "/whoami")] * count

    def reads_by_mcp(self, count: int) -> list[httpx.Request]:
        call = {"name": "get_run", "arguments": {"run_id": self.new_run()}}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        request = self.post("/mcp", message)
        request.headers["Accept"] = "application/json, text/event-stream"
        return [request] * count

    def starts(self, count: int) -> list[httpx.Request]:
        return [
            self.post("/runs/start", plan(f"{self.name}-{next(self.numbers)}"))
            for _ in range(count)
        ]

    def statuses(self, count: int) -> list[httpx.Request]:
        """Start phases and return them to the queue, which uses a try; a phase has a hundred."""
        states = itertools.cycle(["EXECUTING", "QUEUED"])
        requests: list[httpx.Request] = []
        while len(requests) < count:
            path = f"/runs/{self.new_run()}/phases/P0/update_status"
            requests += [
                self.post(path, {"state": next(states), "tokens_used": 1})
                for _ in range(min(count - len(requests), STATUSES_A_RUN))
            ]
        return requests

    def issues(self, count: int) -> list[httpx.Request]:
        path = f"/runs/{self.new_run()}/phases/P0/record_issue"
        return [
            self.post(path, {"issue_key": f"k{n % 10}", "source": "test", "category": "tests"})
            for n in range(count)
        ]

    def own_issues(self, count: int) -> list[httpx.Request]:
        path = f"/runs/{self.new_run()}/phases/P0/record_issue"
        issue = {"issue_key": f"k-{self.name}", "source": "test", "category": "tests"}
        return [self.post(path, issue) for _ in range(count)]

    def claims(self, count: int) -> list[httpx.Request]:
        """Take the first phase of a new run each time."""
        body = {"role": "builder", "agent": "bench@host"}
        return [self.post(f"/runs/{self.new_run()}/claim", body) for _ in range(count)]

    def results(self, count: int) -> list[httpx.Request]:
        return [self.result() for _ in range(count)]

    def result(self) -> httpx.Request:
        """Return the next patch, for a run whose earlier patches did not change its files."""
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


@contextmanager
def running(command: Sequence[str], log: Path, environment: Row, path: str) -> Iterator[Any]:
    """Run a server on a free port during the block; `{port}` in the command is replaced."""
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
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            timeout=120,
            # As many as there are clients: else 12 of 32 would connect again each time. The floor
            # closes an idle connection after 5 seconds, just when a client may use it again.
            limits=httpx.Limits(keepalive_expiry=2),
            trust_env=False,
        )
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


def pages_of(client: httpx.Client, runs: Path) -> dict[str, list[Page]]:
    """Return the files that the service writes for each operation: kinds, lines and bytes."""

    def standing() -> dict[str, tuple[int, int, int]]:
        found = {}
        for path in (runs / "project_issue_backlog.json", *runs.glob("shape/**/*")):
            if path.is_file() and not path.name.startswith("."):
                content = path.read_bytes()
                found[path.name] = (path.stat().st_ino, content.count(b"\n") or 1, len(content))
        return found

    phase = "/runs/shape/phases/P0"
    patch, _ = apply.patch_of(FILES, 0)
    issue = {"issue_key": "k", "source": "test", "category": "tests"}
    body = {"status": "success", "patch_content": patch.decode(), "tokens_used": 1}
    requests: dict[str, tuple[str, Row]] = {
        "start": ("/runs/start", plan("shape")),
        "status": (f"{phase}/update_status", {"state": "EXECUTING"}),
        "issue": (f"{phase}/record_issue", issue),
        "result": (f"{phase}/builder_result", body),
    }
    pages: dict[str, list[Page]] = {}
    before = standing() if runs.exists() else {}
    for operation, (path, given) in requests.items():
        client.post(path, json=given).raise_for_status()
        after = standing()
        pages[operation] = [
            (name.split("_")[0].split(".")[0], lines, size)
            for name, (inode, lines, size) in after.items()
            if before.get(name, (0, 0, 0))[0] != inode
        ]
        before = after
    return pages


SERVICE = ("-m", "autopack")


def serve(
    stack: ExitStack,
    top: Path,
    runs: Path,
    name: str,
    program: Sequence[str] = SERVICE,
    **settings: str,
) -> Server:
    """Start a service with its own repository and Postgres; its runs' files are in `runs`.

    `program` are the words of Python's command line that start Autopack's.
    """
    (top / name).mkdir()
    apply.make_repository(top / name / "repository", FILES, 0)
    (runs / name).mkdir()
    rule = {"max_builder_attempts": 100}
    ruleset = {"project_id": "Autopack", "categories": {"default": rule}, "aliases": {}}
    (runs / name / "project_ruleset_Autopack.json").write_text(json.dumps(ruleset))
    postgres = stack.enter_context(EmbeddedPostgres(top / name / "postgres"))
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "DATABASE_URL": postgres.url.replace("+psycopg2", ""),
        "AUTOPACK_REPO_PATH": str(top / name / "repository"),
        "AUTOPACK_HOME": str(top / name / "home"),
        "AUTONOMOUS_RUNS_DIR": str(runs / name),
        **settings,
    }
    command = [sys.executable, *program, "serve", "--port", "{port}"]
    log = top / f"{name}.log"
    client, process = stack.enter_context(running(command, log, environment, "/health/live"))
    if settings.get("AUTOPACK_AUTH") == "required":
        key = [sys.executable, "-m", "autopack", "keys", "create", "--name", "a", "--role"]
        made = subprocess.run(
            [*key, "operator"],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        client.headers["Authorization"] = f"Bearer {made.stdout.strip()}"
    return Server(client, process, postmaster(top / name))


@contextmanager
def folders() -> Iterator[tuple[Path, Path]]:
    """Make a temporary folder, and one for the files of runs.

    The latter is in memory if possible: the noise of a disk is larger than the differences.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made there
    place = memory if os.access(memory, os.W_OK) else None
    with (
        tempfile.TemporaryDirectory(prefix="autopack-bench-") as top,
        tempfile.TemporaryDirectory(prefix="autopack-runs-", dir=place) as runs,
    ):
        yield Path(top), Path(runs)


@contextmanager
def with_and_without_keys() -> Iterator[tuple[Server, Server]]:
    """Start two services, of which the second one needs an API key, which its client sends."""
    with ExitStack() as stack:
        top, runs = stack.enter_context(folders())
        free = serve(stack, top, runs, "free")
        unlimited = {
            "AUTOPACK_KEY_REQUESTS_PER_MINUTE": "1000000",
            "AUTOPACK_KEY_CLAIMS": "1000000",
        }
        yield free, serve(stack, top, runs, "keyed", AUTOPACK_AUTH="required", **unlimited)


@contextmanager
def both(program: Sequence[str] = SERVICE, **settings: str) -> Iterator[tuple[Server, Server]]:
    """Start the service and the floor, each with a repository and a Postgres of its own."""
    with ExitStack() as stack:
        top, runs = stack.enter_context(folders())
        ours = serve(stack, top, runs, "ours", program, **settings)
        pages = pages_of(ours.client, runs / "ours")
        (top / "floor").mkdir()
        apply.make_repository(top / "floor" / "repository", FILES, 0)
        shape = ours.client.get("/runs/shape").json()
        (top / "floor/shape.json").write_text(json.dumps({"run": shape, "pages": pages}))
        postgres = stack.enter_context(EmbeddedPostgres(top / "floor" / "postgres"))
        bare = Path(__file__).with_name("floor.py")
        command = [sys.executable, str(bare), postgres.url.replace("+psycopg2", "")]
        command += [str(top / "floor"), str(runs / "floor"), "{port}"]
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        client, process = stack.enter_context(
            running(command, top / "floor.log", environment, "/openapi.json")
        )
        yield ours, Server(client, process, postmaster(top / "floor"))
