"""The cost of hostile input for the service, and its effect on other requests.

    python benchmarks/hostile.py [--only PATTERN]

Serves a temporary repository with an embedded Postgres on 127.0.0.1, with 1,024 open files, and
attacks it: patches that make patterns backtrack or hunks add up, bodies of 3 and 20 MB in many
shapes, floods of headers, idle sockets, stalled heads and bodies, 60 callers of one busy run, and a
Postgres that is stopped (SIGSTOP) for 20 seconds. For each attack:

- `answer`: the status, `-` when the connection was closed without one, and after how long it came;
- `others`: the longest time of `GET /health/live` meanwhile, requested every few milliseconds by
  another process. It limits from above how long the event loop was blocked, including the machine's
  noise, which the first line measures;
- `memory`: the growth of the service's peak memory.

An attack without an answer within two minutes ends the benchmark. A busy machine makes all figures
larger. It only connects to 127.0.0.1. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import psutil
import psycopg2

HOST = "127.0.0.1"
SERVED_FILES = 1_024
STALLED_SECONDS = 5
STOPPED_SECONDS = 20
PATIENCE_SECONDS = 120
MEGABYTE = 1_000_000
PHASE = "/runs/bench/phases/P0"
RUN_LOCK = "SELECT pg_advisory_lock(hashtextextended('bench', 0))"


@dataclass(frozen=True)
class Service:
    """A served temporary repository."""

    port: int
    process: psutil.Process
    home: Path

    def ask(self, method: str, path: str, body: bytes = b"", *headers: str) -> tuple[str, bytes]:
        """Send one request on a new connection; return its status and the rest of the answer."""
        lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
        if body:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return self.send(["\r\n".join([*lines, "", ""]).encode(), body])

    def post(self, path: str, document: object) -> tuple[str, bytes]:
        return self.ask("POST", path, json.dumps(document).encode())

    def send(self, pieces: Sequence[bytes]) -> tuple[str, bytes]:
        """Write bytes to a new connection and read until it ends."""
        with socket.create_connection((HOST, self.port), timeout=PATIENCE_SECONDS) as connection:
            answer = b""
            with suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
            try:
                while data := connection.recv(65_536):
                    answer += data
            except ConnectionError:
                pass
            except TimeoutError:
                raise SystemExit(f"no answer within {PATIENCE_SECONDS} s; so ends this") from None
        head, _, rest = answer.partition(b"\r\n\r\n")
        return (head[9:12].decode() or "-"), rest

    @contextmanager
    def database(self) -> Iterator[Any]:
        """Connect to the database as another process of the operator."""
        postmaster = (self.home / "postgres" / "data" / "postmaster.pid").read_text().split("\n")
        connection = psycopg2.connect(host=postmaster[4], user="autopack", dbname="autopack")
        connection.autocommit = True
        try:
            with connection.cursor() as cursor:
                yield cursor
        finally:
            connection.close()

    def postgres(self) -> list[psutil.Process]:
        """Return the server's processes."""
        pid = (self.home / "postgres" / "data" / "postmaster.pid").read_text().split("\n")[0]
        postmaster = psutil.Process(int(pid))
        return [postmaster, *postmaster.children(recursive=True)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("--only", default="", help="attacks whose name this pattern finds")
    only = arguments.parse_args().only
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4_096), hard))
    with serving() as service:
        print(f"{'attack':58} {'answer':>14} {'others':>9} {'memory':>9}")
        for name, attack in attacks():
            if re.search(only, name):
                measure(service, name, attack)


def measure(service: Service, name: str, attack: Callable[[Service], str]) -> None:
    clear_peak(service.process.pid)
    before = peak_bytes(service.process.pid)
    with watching(service.port) as longest:
        began = time.monotonic()
        answer = attack(service)
        seconds = time.monotonic() - began
    grown = (peak_bytes(service.process.pid) - before) / MEGABYTE
    print(
        f"{name:58} {answer:>6} {seconds:5.1f} s {longest() * 1_000:6.0f} ms {grown:6.0f} MB",
        flush=True,
    )


def nothing(_service: Service) -> str:
    time.sleep(3)
    return ""


def attacks() -> Iterator[tuple[str, Callable[[Service], str]]]:
    yield "nothing, for comparison", nothing
    yield from patches()
    yield from bodies()
    yield from wires()
    yield "60 callers of one busy run", busy_run
    yield f"Postgres stopped for {STOPPED_SECONDS} s", stopped_postgres


# Patches


def patches() -> Iterator[tuple[str, Callable[[Service], str]]]:
    for size in (721, MEGABYTE):
        for title, begin, unit in (
            ("beginnings of private keys", "", "-----BEGIN "),
            ("headers of a private key", "-----BEGIN PRIVATE KEY----- ", "a: "),
            ("blanks after a private key's begin", "-----BEGIN PRIVATE KEY-----", " "),
            ("headers of private keys", "", "-----BEGIN PRIVATE KEY----- a: a: a: a: a: "),
            ("addresses of databases", "", "postgres://a:"),
            ("an address of a database", "postgres://", "a:b@"),
            ("tokens of three parts", "", "eyJhbGciOiJI.eyJhbGciOiJI."),
        ):
            text = begin + unit * ((size - len(begin)) // len(unit))
            lines = [text[at : at + 90_000] for at in range(0, len(text), 90_000)]
            yield f"patch, {size:,} bytes: {title}", checking(added("a.txt", lines))
    yield "patch, globs *a*a*a*b in allowed_paths", globs
    yield "patch, 400,000 lines, 16,000 hunks", checking(hunks(400_000, 16_000))


def checking(patch: str) -> Callable[[Service], str]:
    """Check a patch, which takes the same path as a submission."""
    return lambda service: service.post("/runs/bench/patch_check", {"patch_content": patch})[0]


def globs(service: Service) -> str:
    """Start a run with globs in its allowed paths that a backtracking matcher cannot finish."""
    glob = "*a" * 100 + "*b"
    service.post("/runs/start", plan("globs", allowed_paths=[glob] * 200))
    patch = added("a" * 250 + "/" + "a" * 250, ["text"])
    path = "/runs/globs/phases/P0/builder_result"
    return service.post(path, {"status": "success", "patch_content": patch})[0]


def added(path: str, lines: Sequence[str]) -> str:
    body = "".join(f"+{line}\n" for line in lines)
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1,{len(lines)} @@\n{body}"
    )


def hunks(lines: int, count: int) -> str:
    """Change a file of equal lines, at places that cannot be distinguished."""
    each = lines // count
    body = "".join(
        f"@@ -{start},{each - 1} +{start},{each} @@\n" + " x\n" * (each - 1) + "+y\n"
        for start in range(1, lines, each)
    )
    return f"diff --git a/base.txt b/base.txt\n--- a/base.txt\n+++ b/base.txt\n{body}"


# Bodies


def bodies() -> Iterator[tuple[str, Callable[[Service], str]]]:
    start, issue, result = "/runs/start", f"{PHASE}/record_issue", f"{PHASE}/builder_result"
    for megabytes in (3, 20):
        size = megabytes * MEGABYTE - 1_000
        shapes: list[tuple[str, str, bytes]] = [
            ("phases of {}", start, filled(b'{"phases":[', b"{}", b"]}", size)),
            ("lists in lists", start, b'{"a":[' + b"[1,1,1,1]," * (size // 10) + b"1]}"),
            ("deep", start, b"[" * size),
            ("unknown names", start, names(size)),
            ("one name, again and again", start, filled(b"{", b'"a":1', b"}", size)),
            ("numbers", issue, filled(b'{"evidence_refs":[', b"1", b"]}", size)),
            ("evidence_refs", issue, filled(b'{"evidence_refs":[', b'"aaaaaaaa"', b"]}", size)),
            ("one number", issue, b'{"a":' + b"9" * size + b"}"),
            ("blanks", issue, b"{" + b" " * size + b"}"),
            ("not UTF-8", issue, b'{"a":"' + b"\xff" * size + b'"}'),
            ("a text", result, text_body(b"a", size)),
            ("a text of escapes", result, text_body(b"\\n", size)),
            ("a text of \\u escapes", result, text_body(b"\\u4e2d", size)),
            ("a text that never ends", result, text_body(b'\\"', size)[:-2]),
            ("a text of quotes", result, text_body(b'\\"', size)),
            ("a text of emoji", result, text_body("\U0001f600".encode(), size)),
            ("ASCII and one emoji", result, text_body(b"a", size)[:-2] + b"\xf0\x9f\x98\x80\"}"),
            ("MCP: a list", "/mcp", call(filled(b'{"a":[', b"{}", b"]}", size))),
            ("MCP: unknown names", "/mcp", call(names(size))),
            ("MCP: a text", "/mcp", call(text_body(b"\\n", size - 1_000))),
        ]  # fmt: skip
        for title, path, body in shapes:
            yield f"{megabytes} MB: {title}", posting(path, body)
    yield "20 MB in chunks of one byte, the first 100,000", one_by_one


def posting(path: str, body: bytes) -> Callable[[Service], str]:
    accept = "Accept: application/json, text/event-stream"
    return lambda service: service.ask("POST", path, body, accept)[0]


def filled(begin: bytes, item: bytes, end: bytes, size: int) -> bytes:
    return begin + (item + b",") * (size // (len(item) + 1)) + item + end


def names(size: int) -> bytes:
    return b"{" + b",".join(b'"%d":1' % number for number in range(size // 12)) + b"}"


def text_body(unit: bytes, size: int) -> bytes:
    return b'{"status":"success","patch_content":"' + unit * (size // len(unit)) + b'"}'


def call(arguments: bytes) -> bytes:
    head = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"claim_work",'
    return head + b'"arguments":' + arguments + b"}}"


def one_by_one(service: Service) -> str:
    head = request("POST", "/runs/start", "Transfer-Encoding: chunked")
    return service.send([head, *[b"1\r\n \r\n" * 1_000] * 100, b"2\r\n{}\r\n0\r\n\r\n"])[0]


# The wire


def wires() -> Iterator[tuple[str, Callable[[Service], str]]]:
    flood = [b"a" * MEGABYTE] * 200
    head = request("GET", "/")[:-2]
    yield "200 MB of one header", lambda service: service.send([head, b"X: ", *flood])[0]
    yield "200 MB of an address", lambda service: service.send([b"GET /", *flood])[0]
    many = [b"X: a\r\n" * 100_000] * 300
    yield "180 MB of headers", lambda service: service.send([head, *many])[0]
    chunked = request("POST", "/runs/start", "Transfer-Encoding: chunked") + b"2\r\n{}\r\n0\r\n"
    yield "200 MB of trailers", lambda service: service.send([chunked, b"X: ", *flood])[0]
    yield f"a head that stands still ({STALLED_SECONDS} s)", lambda service: service.send([head])[0]
    still = request("POST", "/runs/start", "Content-Length: 100") + b"{"
    yield f"a body that stands still ({STALLED_SECONDS} s)", lambda service: service.send([still])[
        0
    ]
    yield "1,100 idle sockets beside a limit of 1,024 files", idle_sockets
    yield "1,100 sockets with half a body each", lambda service: idle_sockets(service, still)


def request(method: str, path: str, *headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    return "\r\n".join([*lines, *headers, "", ""]).encode()


def idle_sockets(service: Service, sent: bytes = b"") -> str:
    with ExitStack() as stack:
        for _ in range(1_100):
            connection = stack.enter_context(socket.create_connection((HOST, service.port), 10))
            with suppress(OSError):
                connection.sendall(sent)
        return service.ask("GET", "/health")[0]


# Postgres


def busy_run(service: Service) -> str:
    """Hold a run's lock as another process would, while 60 callers want it for 5 seconds."""
    report = {"issue_key": "k", "source": "bench", "category": "bench"}
    found: list[str] = []

    def record() -> None:
        found.append(service.post(f"{PHASE}/record_issue", report)[0])

    callers = [threading.Thread(target=record) for _ in range(60)]
    with service.database() as cursor:
        cursor.execute(RUN_LOCK)
        for caller in callers:
            caller.start()
        time.sleep(5)
        began = time.monotonic()
        status, _ = service.ask("GET", "/runs/bench")
        print(f"  a reader meanwhile: {status} after {time.monotonic() - began:.2f} s")
        began = time.monotonic()
        status, _ = service.ask("GET", "/health")
        print(f"  /health meanwhile: {status} after {time.monotonic() - began:.2f} s")
    for caller in callers:
        caller.join(PATIENCE_SECONDS)
    return "/".join(f"{found.count(each)}x{each}" for each in sorted(set(found)))


def stopped_postgres(service: Service) -> str:
    """Stop every process of Postgres, send requests, and continue Postgres."""
    report = {"issue_key": "k", "source": "bench", "category": "bench"}
    calls: dict[str, Callable[[], tuple[str, bytes]]] = {
        "GET /runs/bench": lambda: service.ask("GET", "/runs/bench"),
        "GET /health": lambda: service.ask("GET", "/health"),
        "POST record_issue": lambda: service.post(f"{PHASE}/record_issue", report),
    }
    longest: dict[str, float] = {}
    statuses: dict[str, set[str]] = {name: set() for name in calls}
    is_over = threading.Event()

    def again(name: str) -> None:
        while not is_over.is_set():
            began = time.monotonic()
            status, _ = calls[name]()
            statuses[name].add(status)
            longest[name] = max(longest.get(name, 0), time.monotonic() - began)
            time.sleep(0.2)

    callers = [threading.Thread(target=again, args=(name,)) for name in calls for _ in range(10)]
    stopped = service.postgres()
    for process in stopped:
        process.suspend()
    try:
        for caller in callers:
            caller.start()
        time.sleep(STOPPED_SECONDS)
    finally:
        for process in stopped:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    went_on = time.monotonic()
    while service.ask("GET", "/runs/bench")[0] != "200" and time.monotonic() < went_on + 60:
        time.sleep(0.05)
    recovered = time.monotonic() - went_on
    is_over.set()
    for caller in callers:
        caller.join(PATIENCE_SECONDS)
    for name in calls:
        print(f"  {name}: {sorted(statuses[name])}, at most {longest[name]:.1f} s")
    print(f"  the first good answer came {recovered:.2f} s after Postgres went on")
    return service.ask("GET", "/runs/bench")[0]


# The service, and the measurements


@contextmanager
def serving() -> Iterator[Service]:
    """Serve a temporary repository with one run."""
    with tempfile.TemporaryDirectory(prefix="autopack-hostile-") as folder:
        repository = Path(folder) / "repository"
        repository.mkdir()
        (repository / "base.txt").write_text("same\n" + "x\n" * 400_000)
        git = ["git", "-C", str(repository), "-c", "user.name=b", "-c", "user.email=b@example.org"]
        for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "Begin"]):
            subprocess.run([*git, *words], check=True)
        with socket.create_server((HOST, 0)) as probe:
            port = probe.getsockname()[1]
        kept = {
            name: os.environ[name] for name in ("PATH", "HOME", "PYTHONPATH") if name in os.environ
        }
        environment = {
            **kept,
            "AUTOPACK_STALLED_SECONDS": str(STALLED_SECONDS),
            "PYTHONUNBUFFERED": "1",
        }
        with (Path(folder) / "log").open("w") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "autopack", "serve", "--port", str(port)],
                cwd=repository,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=lambda: resource.setrlimit(
                    resource.RLIMIT_NOFILE, (SERVED_FILES, SERVED_FILES)
                ),
            )
        service = Service(port, psutil.Process(process.pid), repository / ".autopack")
        try:
            wait_for(service)
            assert service.post("/runs/start", plan("bench"))[0] == "201"
            list_tools = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
            body = json.dumps(list_tools).encode()  # imports the SDK
            service.ask("POST", "/mcp", body, "Accept: application/json, text/event-stream")
            yield service
        finally:
            process.terminate()
            process.wait(60)


def wait_for(service: Service) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with suppress(OSError):
            if service.ask("GET", "/health")[0] == "200":
                return
        time.sleep(0.2)
    raise SystemExit("the service did not start")


def plan(run_id: str, **phase: object) -> dict[str, object]:
    one = {"phase_id": "P0", "phase_index": 0, "tier_id": "T0", "name": "Phase", **phase}
    tiers = [{"tier_id": "T0", "tier_index": 0, "name": "Tier"}]
    return {"run": {"run_id": run_id}, "tiers": tiers, "phases": [one]}


@contextmanager
def watching(port: int) -> Iterator[Callable[[], float]]:
    """Request `/health/live` repeatedly from another process."""
    context = multiprocessing.get_context("fork")
    near, far = context.Pipe()
    is_over = context.Event()
    watcher = context.Process(target=watch, args=(port, is_over, far), daemon=True)
    watcher.start()
    near.recv()
    found: list[float] = []
    try:
        yield lambda: found[0]
    finally:
        is_over.set()
        found.append(near.recv() if near.poll(PATIENCE_SECONDS) else float("nan"))
        watcher.join(5)


def watch(port: int, is_over: Event, far: Any) -> None:
    asked = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    longest, is_first = 0.0, True
    while not is_over.is_set():
        began = time.monotonic()
        with suppress(OSError), socket.create_connection((HOST, port), PATIENCE_SECONDS) as one:
            one.sendall(asked)
            while one.recv(4_096):
                pass
        longest = max(longest, time.monotonic() - began)
        if is_first:
            far.send(None)
            longest, is_first = 0.0, False
        time.sleep(0.005)
    far.send(longest)


def clear_peak(pid: int) -> None:
    """Reset the kernel's peak memory of a process."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1_024


if __name__ == "__main__":
    main()
