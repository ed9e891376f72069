"""Results a second with 1, 2 and 3 nodes, how far the others are behind, and catching up.

    python benchmarks/replicas.py [--results 240] [--catch-up 1000] [--seconds 120]

The nodes share one embedded Postgres; each has a clone, a home and a runs directory of its own.
Eight clients, each with its own run, change the node at every call, so that each result builds upon
one that another node took. The lag of a result is the time from its answer until the run's branch
and the phase's file stand on each other node: while the clients go on (`busy`), and with one client
that waits for it (`quiet`). `CPU` is that of one node and its git processes: in ms a result, and
for `idle` in ms a second without any request. Then one node builds a run of `--catch-up` commits,
and a new node starts, which has to make all commits of all runs again.
No step sends requests for longer than `--seconds`; the lines say how many were sent.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import apply
import httpx
import psutil
from floor import FILES
from servers import Server, Work, folders, running

from autopack.embedded_postgres import EmbeddedPostgres

CLIENTS, MOST_NODES, QUIET, IDLE_SECONDS = 8, 3, 40, 10
REVISION = re.compile(rb'(?m)^<!-- autopack revision=\d+|^ *"revision": \d+,$')
POLL_SECONDS, PATIENCE_SECONDS = 0.005, 300


@dataclass(frozen=True)
class Node:
    """A started service, and where its branches and files are."""

    url: httpx.URL
    repository: Path
    runs: Path
    process: psutil.Process

    def branch(self, run_id: str) -> str:
        """Return the commit of a run's branch, or nothing. Starts no process."""
        ref = f"refs/heads/autonomous/{run_id}"
        try:
            return (self.repository / ".git" / ref).read_text().strip()
        except FileNotFoundError:
            packed = (self.repository / ".git/packed-refs").read_text().splitlines()
            return next((line.split()[0] for line in packed if line.endswith(f" {ref}")), "")

    def cpu_seconds(self) -> float:
        return sum(self.process.cpu_times()[:4])  # with its ended children

    def refs(self) -> str:
        return apply.git(self.repository, "for-each-ref", "refs/heads/autonomous", "refs/tags")

    def files(self) -> dict[str, bytes]:
        """Return the files of all runs, without the revision at which each was written."""
        found = (path for path in self.runs.glob("*/**/*") if path.is_file())
        return {
            str(path.relative_to(self.runs)): REVISION.sub(b"", path.read_bytes()) for path in found
        }


class Changing(httpx.BaseTransport):
    """Send each request to the next node."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = nodes
        self._turns = itertools.count()
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        at = next(self._turns) % len(self.nodes)
        node = self.nodes[at]
        request.url = request.url.copy_with(port=node.url.port)
        response = self._inner.handle_request(request)
        response.extensions["node"] = at
        return response


@dataclass(frozen=True)
class Expected:
    """A result that a node has still to show."""

    node: Node
    run_id: str
    phase: int
    commit: str
    earlier: frozenset[str]
    answered: float

    def is_shown(self) -> bool:
        if self.node.branch(self.run_id) in self.earlier:
            return False
        page = self.node.runs / self.run_id / f"phases/phase_{self.phase}_P{self.phase}.md"
        return page.exists() and self.commit in page.read_text()


class Watch:
    """A thread that measures when results stand on the nodes that did not take them."""

    def __init__(self) -> None:
        self.lags: list[float] = []
        self._open: list[Expected] = []
        self._guard = threading.Lock()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def add(self, expected: Sequence[Expected]) -> None:
        with self._guard:
            self._open += expected

    def is_level(self) -> bool:
        with self._guard:
            return not self._open

    def _look(self) -> None:
        while not self._is_over.wait(POLL_SECONDS):
            with self._guard:
                waiting = list(self._open)
            shown = {id(each) for each in waiting if each.is_shown()}
            now = time.perf_counter()
            self.lags += [(now - each.answered) * 1e3 for each in waiting if id(each) in shown]
            with self._guard:
                self._open = [each for each in self._open if id(each) not in shown]


class Clients:
    """Clients of all nodes, each of which sends results to runs of its own."""

    def __init__(self, nodes: Sequence[Node], seconds: float) -> None:
        self.nodes = nodes
        self.client = httpx.Client(
            transport=Changing(nodes), base_url="http://127.0.0.1:1", timeout=120
        )
        self.deadline = time.monotonic() + seconds
        self.watch: Watch | None = None

    def requests(self, name: str, count: int) -> list[httpx.Request]:
        """Make the requests of one client, and start their runs."""
        return Work(cast(Server, self), name).results(count)

    def send(self, requests: Sequence[httpx.Request], is_patient: bool = False) -> int:
        """Send requests until the deadline; return how many. With patience, each is awaited."""
        earlier: dict[str, list[str]] = {}
        for sent, request in enumerate(requests):
            if time.monotonic() > self.deadline:
                return sent
            _, _, run_id, _, phase_id, _ = request.url.path.split("/")
            answer = self.client.send(request).raise_for_status()
            answered = time.perf_counter()
            before = earlier.setdefault(run_id, [""])
            if self.watch:
                commit, phase = answer.json()["commit_sha"], int(phase_id[1:])
                self.watch.add(
                    [
                        Expected(node, run_id, phase, commit, frozenset(before), answered)
                        for at, node in enumerate(self.nodes)
                        if at != answer.extensions["node"]
                    ]
                )
                before.append(commit)
            if self.watch and is_patient:
                wait(self.watch.is_level, "the other nodes")
        return len(requests)

    def long_run(self, run_id: str, commits: int) -> int:
        """Build a run of so many commits that is not over then; return how many were sent."""
        phases = [
            {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T0", "name": f"Phase {n}"}
            for n in range(commits + 1)
        ]
        plan = {
            "run": {"run_id": run_id, "max_phases": len(phases)},
            "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "All"}],
            "phases": phases,
        }
        self.client.post("/runs/start", json=plan).raise_for_status()
        return self.send(
            [
                self.client.build_request(
                    "POST",
                    f"/runs/{run_id}/phases/P{n}/builder_result",
                    json={"status": "success", "patch_content": one_file(n)},
                )
                for n in range(commits)
            ]
        )

    def drive(self, name: str, count: int) -> tuple[int, float]:
        """Send so many results from all clients; return how many were sent, and a second."""
        each = -(-count // CLIENTS)
        batches = [self.requests(f"{name}-{number}", each) for number in range(CLIENTS)]
        began = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            sent = sum(pool.map(self.send, batches))
        return sent, sent / (time.perf_counter() - began)


def one_file(step: int) -> str:
    """Return a patch of a file that no other step of a run changes."""
    patch, _ = apply.patch_of(FILES, step)
    mark = "diff --git "
    return mark + patch.decode().split(mark)[1]


def wait(condition: Callable[[], bool], what: str, pause: float = POLL_SECONDS) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not level after {PATIENCE_SECONDS} s")
        time.sleep(pause)


@contextmanager
def started(top: Path, runs: Path, database_url: str, name: str) -> Iterator[Node]:
    """Start a node that has nothing but a clone."""
    home = top / name
    home.mkdir()
    apply.git(home, "clone", "--quiet", str(top / "source"), str(home / "repository"))
    environment = {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "DATABASE_URL": database_url,
        "AUTOPACK_REPO_PATH": str(home / "repository"),
        "AUTOPACK_HOME": str(home / "home"),
        "AUTONOMOUS_RUNS_DIR": str(runs / name),
        "AUTOPACK_MAX_PLAN_PHASES": str(FILES),
    }
    command = [sys.executable, "-m", "autopack", "serve", "--port", "{port}"]
    with running(command, top / f"{name}.log", environment, "/health/live") as (client, process):
        yield Node(client.base_url, home / "repository", runs / name, process)


def are_level(nodes: Sequence[Node]) -> bool:
    """Return whether all nodes have the same branches, tags and files."""
    first, *others = nodes
    refs = first.refs()
    if any(node.refs() != refs for node in others):
        return False
    files = first.files()
    return all(node.files() == files for node in others)


def within(lags: Sequence[float], share: float) -> float:
    return sorted(lags)[min(int(len(lags) * share), len(lags) - 1)]


def line(what: str, sent: int, rate: float, lags: Sequence[float], cpu: float) -> None:
    lag = f"{within(lags, 0.5):10.0f}{within(lags, 0.95):10.0f}" if lags else f"{'-':>10}" * 2
    print(f"{what:16}{sent:>9}{rate:10.1f}{lag}{cpu:10.1f}", flush=True)


def idle(nodes: Sequence[Node], seconds: float) -> float:
    """Return the CPU time of one node without requests, in ms a second."""
    before = sum(node.cpu_seconds() for node in nodes)
    time.sleep(seconds)
    return (sum(node.cpu_seconds() for node in nodes) - before) * 1e3 / len(nodes) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--results", type=int, default=240, help="results for a number of nodes")
    parser.add_argument("--catch-up", type=int, default=1000, help="commits of the long run")
    parser.add_argument("--seconds", type=float, default=120, help="bound of each step")
    options = parser.parse_args()
    with ExitStack() as stack:
        top, runs = stack.enter_context(folders())
        apply.make_repository(top / "source", FILES, 0)
        url = stack.enter_context(EmbeddedPostgres(top / "postgres")).url
        place = (top, runs, url.replace("+psycopg2", ""))
        first = stack.enter_context(started(*place, "node1"))
        commits = 0
        print(f"{os.cpu_count()} cores, {CLIENTS} clients, {FILES} files")
        print(f"{'':16}  results  a second   lag p50   lag p95       CPU  (ms)")
        with ExitStack() as others:
            nodes = [first]
            for number in range(1, MOST_NODES + 1):
                if number > 1:
                    nodes.append(others.enter_context(started(*place, f"node{number}")))
                    wait(lambda: are_level(nodes), "the nodes", 0.2)
                Clients(nodes, options.seconds).drive(f"warm{number}", CLIENTS * number)
                clients = Clients(nodes, options.seconds)
                spent = sum(node.cpu_seconds() for node in nodes)
                with Watch() as watch:
                    clients.watch = watch if number > 1 else None
                    sent, rate = clients.drive(f"busy{number}", options.results)
                    wait(watch.is_level, "the other nodes")
                commits += sent + CLIENTS * number
                cpu = (sum(node.cpu_seconds() for node in nodes) - spent) * 1e3 / number
                line(f"{number} nodes, busy", sent, rate, watch.lags, cpu / sent)
                if number > 1:
                    clients = Clients(nodes, options.seconds)
                    spent = sum(node.cpu_seconds() for node in nodes)
                    with Watch() as watch:
                        clients.watch = watch
                        requests = clients.requests(f"quiet{number}", QUIET)
                        began = time.perf_counter()
                        sent = clients.send(requests, is_patient=True)
                        rate = sent / (time.perf_counter() - began)
                    commits += sent
                    cpu = (sum(node.cpu_seconds() for node in nodes) - spent) * 1e3 / number
                    line(f"{number} nodes, quiet", sent, rate, watch.lags, cpu / sent)
                line(f"{number} nodes, idle", 0, 0, (), idle(nodes, IDLE_SECONDS))
        long = Clients([first], options.seconds).long_run("long", options.catch_up)
        head = first.branch("long")
        began = time.perf_counter()
        last = stack.enter_context(started(*place, "new"))
        steps = [(time.perf_counter() - began, last.cpu_seconds())]
        print(f"a new node: answers after {steps[0][0]:.1f} s", flush=True)
        for what, count, is_done in (
            (f"the run of {long} commits", long, lambda: last.branch("long") == head),
            (f"{commits} commits of other runs", commits, lambda: are_level([first, last])),
        ):
            wait(is_done, what, 0.1)
            steps.append((time.perf_counter() - began, last.cpu_seconds()))
            (began_at, cpu_before), (ended_at, cpu_after) = steps[-2:]
            took, cpu = (ended_at - began_at) * 1e3 / count, (cpu_after - cpu_before) * 1e3 / count
            print(f"  {what}: after {ended_at:.1f} s, {took:.1f} ms a commit, {cpu:.1f} ms of CPU")


if __name__ == "__main__":
    main()
