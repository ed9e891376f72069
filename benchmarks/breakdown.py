"""Where the CPU of a hot request goes: the parts of the service, git, and Postgres.

    python benchmarks/breakdown.py [--requests 200]

Each part is a few functions of the service that are timed from outside, in CPU time of their
thread; what a part calls of another part counts for the other one. What is left of the process is
the framework: sockets, HTTP, middleware, threads, background work. The floor (floor.py) is beside
it, by process. `src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial, wraps
from pathlib import Path
from types import FrameType
from typing import Any, Final

import httpx
from servers import Server, Work, both

Seconds = dict[str, float]

# The service's functions of each part: module, class if any, names.
PARTS: Final[dict[str, list[tuple[str, str, str]]]] = {
    "validation, JSON": [
        ("fastapi._compat.v2", "ModelField", "validate serialize serialize_json"),
        ("autopack.api.bodies", "BodyReader", "_read"),
    ],
    "statements": [
        ("autopack.store.session", "RowSession", "fetch fetch_parts rows row read next_ids"),
        ("autopack.store.session", "RowSession", "send commit rollback close"),
    ],
    "rules": [
        ("autopack.services.change", "", "decide"),
        ("autopack.services.settling", "", "conclude"),
        ("autopack.services.building", "", "weigh_builder_result"),
        ("autopack.store.runs", "", "read_state write_state add_events"),
    ],
    "git": [
        ("autopack.gitrepo", "Repository", "apply put_folder write_commit write_tag prepare_refs"),
        ("autopack.gitrepo", "Repository", "read_ref tree_of checked_out_in require_free_ref base"),
    ],
    "files": [
        ("autopack.mirror.mirror", "Mirror", "write_run write_files write_backlog has_run"),
        ("autopack.services.projection", "", "run_detail index_answer"),
    ],
    "use case, the rest": [
        ("autopack.services.phases", "", "update_status"),
        ("autopack.services.issues", "", "record_issue"),
        ("autopack.services.starting", "", "start_run"),
        ("autopack.services.runs", "", "get_run"),
        ("autopack.services.building", "", "submit_builder_result"),
    ],
}
OPERATIONS: Final[dict[str, Callable[[Work, int], list[httpx.Request]]]] = {
    "GET /runs/{id}": Work.reads,
    "update_status": Work.statuses,
    "record_issue": Work.issues,
    "POST /runs/start": Work.starts,
    "builder_result": Work.results,
}
TOTALS_FILE: Final = "BREAKDOWN_FILE"


# In the service's process


class Clock:
    """The CPU seconds of each part, over all threads."""

    def __init__(self) -> None:
        self.totals: dict[str, float] = {}
        self._thread = threading.local()

    @contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Count the block for a part, without the blocks in it."""
        inner: list[float] = self._thread.__dict__.setdefault("inner", [])
        inner.append(0.0)
        began = time.thread_time()
        try:
            yield
        finally:
            taken = time.thread_time() - began
            self.totals[part] = self.totals.get(part, 0.0) + taken - inner.pop()
            if inner:
                inner[-1] += taken

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.timing(part):
                result = function(*args, **kwargs)
            return TimedBlock(self, part, result) if hasattr(result, "__exit__") else result

        return call

    def write(self, _number: int, _frame: FrameType | None) -> None:
        """Write the totals so far where the benchmark reads them; a signal handler."""
        path = Path(os.environ[TOTALS_FILE])
        scratch = path.with_suffix(".new")
        scratch.write_text(json.dumps(self.totals))
        scratch.rename(path)


class TimedBlock(AbstractContextManager[Any]):
    """A context manager whose beginning and end count for a part, but not its body."""

    def __init__(self, clock: Clock, part: str, block: AbstractContextManager[Any]) -> None:
        self._clock, self._part, self._block = clock, part, block

    def __enter__(self) -> Any:
        with self._clock.timing(self._part):
            return self._block.__enter__()

    def __exit__(self, *error: Any) -> bool | None:
        with self._clock.timing(self._part):
            return self._block.__exit__(*error)


def serve_timed() -> None:
    """Run the service's command line with its parts timed."""
    import importlib

    from autopack.cli.app import main

    clock = Clock()
    importlib.import_module("autopack.main")
    for part, places in PARTS.items():
        for module, class_name, names in places:
            place = importlib.import_module(module)
            owner = getattr(place, class_name) if class_name else place
            for name in names.split():
                setattr(owner, name, clock.timed(part, getattr(owner, name)))
    signal.signal(signal.SIGUSR1, clock.write)
    sys.exit(main())


# The benchmark


def totals(server: Server, path: Path) -> Seconds:
    """Return the CPU seconds of each part and process up to now."""
    path.unlink(missing_ok=True)
    server.process.send_signal(signal.SIGUSR1)
    while not path.exists():
        time.sleep(0.01)
    parts = json.loads(path.read_text())
    found = processes(server)
    found["framework"] = found.pop("service") - sum(parts.values())
    return {**dict.fromkeys(PARTS, 0.0), **parts, **found}


def processes(server: Server) -> Seconds:
    """Return the CPU seconds of the service's own process, of git, and of Postgres."""
    own = server.process.cpu_times()
    service = own.user + own.system
    children = server.cpu_seconds() - service
    postgres = server.postgres_seconds()
    return {"service": service, "git's processes": children - postgres, "Postgres": postgres}


def measure(requests: int, folder: Path) -> None:
    path = folder / "totals.json"
    os.environ[TOTALS_FILE] = str(path)
    taken: dict[str, Seconds] = {}
    least: dict[str, Seconds] = {}
    program = (str(Path(__file__).resolve()), "--service")
    with both(program) as (ours, floor):
        sides = (
            (Work(ours), taken, partial(totals, ours, path)),
            (Work(floor), least, partial(processes, floor)),
        )
        for name, requests_of in OPERATIONS.items():
            for work, results, read in sides:
                for request in requests_of(work, 10):  # warm
                    work.server.client.send(request)
                block = requests_of(work, requests)
                before = read()
                for request in block:
                    work.server.send(name, request)
                after = read()
                results[name] = {
                    part: (after[part] - before[part]) / requests * 1e3 for part in after
                }
        failures = ours.failures + floor.failures
    report(taken, least)
    print(f"{failures} requests failed")


def report(taken: dict[str, Seconds], least: dict[str, Seconds]) -> None:
    print(f"{'CPU ms a request':22}" + "".join(f"{name:>18}" for name in OPERATIONS))
    for part in ["framework", *PARTS, "git's processes", "Postgres"]:
        print(f"{part:22}" + "".join(f"{taken[name][part]:18.2f}" for name in OPERATIONS))
    print(f"{'all':22}" + "".join(f"{sum(taken[name].values()):18.2f}" for name in OPERATIONS))
    for part in ("service", "git's processes", "Postgres"):
        label = f"floor: {part}"
        print(f"{label:22}" + "".join(f"{least[name][part]:18.2f}" for name in OPERATIONS))


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=200)
    requests = parser.parse_args().requests
    with tempfile.TemporaryDirectory(prefix="autopack-breakdown-") as folder:
        measure(requests, Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--service"]:
        del sys.argv[1]
        serve_timed()
    else:
        main()
