"""Whether a request notices that the details of old runs are removed beside it, and what is freed.

    python benchmarks/retention.py [--runs 100000] [--old 20000] [--bound 1000]
    python benchmarks/retention.py --sizes

A temporary embedded Postgres is filled by SQL as in lists.py, with a patch and a CI log for each
run, and git with a record for each. Of these runs `--old` were settled long ago. A client sends
requests to live and to old runs for a while, then does the same while `autopack db retain` works in
another process, and the percentiles of both are printed. Meanwhile Postgres is asked a hundred
times a second who waits for a lock of the removal, which has a role of its own in the database.
Exits with 1 when a request took longer than `--bound` milliseconds beside the removal, when one
waited for a lock of it, or when not all old runs lost their details.

`--sizes` builds runs of 25 phases, each with a patch of 100 lines, by HTTP, and prints what one of
them takes in Postgres by table, in git and in files, before and after the removal.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
from lists import fill, plan, service, settle, start_runs
from sqlalchemy import Connection, Engine, make_url, text

from autopack.config import Settings
from autopack.database import init_db, make_engine
from autopack.embedded_postgres import EmbeddedPostgres

PHASES = 5
QUIET_SECONDS = 20
JOB_ROLE = "removal"
SIZED_RUNS, SIZED_PHASES, PATCH_LINES = 10, 25, 100
SHOWN_TABLES = 6
WAITS = text(
    "SELECT a.usename, extract(epoch FROM clock_timestamp() - l.waitstart),"
    " ARRAY(SELECT b.usename FROM pg_stat_activity b WHERE b.pid = ANY(pg_blocking_pids(l.pid)))"
    " FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT l.granted"
)
NAMES = (
    *("order", "price", "total", "user", "address", "cart", "item", "tax", "rate", "line", "batch"),
    *(
        "parse",
        "load",
        "store",
        "check",
        "render",
        "count",
        "merge",
        "split",
        "send",
        "find",
        "make",
    ),
)
# The first half reads and changes live runs, the rest reads runs that lose their details.
REQUESTS = (
    ("GET", "/runs/live-1"),
    ("POST", "/runs/live-2/phases/P1/record_issue"),
    ("GET", "/runs?limit=20"),
    ("GET", "/metrics/runs?limit=10"),
    ("GET", "/runs/load-{n}"),
    ("GET", "/runs/load-{n}/events"),
)


def write_records(repository: Path, old: int) -> dict[int, str]:
    """Write a record's commit for each old run; return the commits by the runs' numbers."""
    marks = repository.parent / "marks"
    process = subprocess.Popen(
        ["git", "-C", str(repository), "fast-import", "--quiet", "--force",
         f"--export-marks={marks}"],
        stdin=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    for number in range(1, old + 1):
        record = json.dumps({"events": [{"sequence": 12, "hash": f"{number}"}]}).encode()
        seal = hashlib.sha256(record).hexdigest()
        message = f"Record\n\nAutopack-Record-SHA256: {seal}\n".encode()
        path = f".autonomous_runs/load-{number}/run.json"
        process.stdin.write(
            b"commit refs/heads/records\nmark :%d\ncommitter A <a@localhost> 0 +0000\ndata %d\n%s"
            b"from refs/heads/main^0\nM 100644 inline %s\ndata %d\n%s\n"
            % (number, len(message), message, path.encode(), len(record), record)
        )
    process.stdin.close()
    assert process.wait() == 0
    lines = (line.split() for line in marks.read_text().splitlines())
    return {int(mark[1:]): commit for mark, commit in lines}


def make_old(connection: Connection, commits: dict[int, str]) -> None:
    """Give every run a patch and a log, and settle those that have a record."""
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    words = "repeat(md5(s.id::text), 32)"
    for statement in (
        "INSERT INTO patches (submission_pk, position, sha256, content, status, files_changed)"
        f" SELECT s.id, 0, '', {words}::bytea, 'applied', '[]' FROM submissions s"
        " WHERE NOT EXISTS (SELECT FROM patches p WHERE p.submission_pk = s.id)",
        f"INSERT INTO ci_logs SELECT s.id, {words}::bytea FROM ci_runs s ON CONFLICT DO NOTHING",
        "CREATE TEMPORARY TABLE records (run_id text PRIMARY KEY, head text) ON COMMIT DROP",
    ):
        connection.execute(text(statement))
    connection.execute(
        text("INSERT INTO records VALUES (:run_id, :head)"),
        [{"run_id": f"load-{number}", "head": head} for number, head in commits.items()],
    )
    connection.execute(
        text(
            "UPDATE runs r SET head_commit = c.head, is_counted = true, closed_by = 'benchmark',"
            " closed_at = now() - interval '1 year', closed_as = 'dismissed',"
            " ended_at = created_at - interval '1 year' FROM records c WHERE c.run_id = r.run_id"
        )
    )


def ask(client: httpx.Client, until: object, old: int) -> list[float]:
    """Send requests until `until()`, and return the milliseconds that each took."""
    took: list[float] = []
    while not until():  # type: ignore[operator]
        method, path = REQUESTS[len(took) % len(REQUESTS)]
        body = {"issue_key": f"key-{len(took)}", "source": "test", "category": "test_failure"}
        request = client.build_request(
            method,
            path.format(n=1 + len(took) * 7919 % old),
            json=body if method == "POST" else None,
        )
        began = time.perf_counter()
        client.send(request).raise_for_status()
        took.append((time.perf_counter() - began) * 1e3)
    return took


class LockWaits(threading.Thread):
    """Looks a hundred times a second for requests that wait for a lock, and who holds it."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self._engine = engine
        self._ending = threading.Event()
        self.looks = 0
        self.longest = {True: 0.0, False: 0.0}  # by whether the removal holds it

    def run(self) -> None:
        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            while not self._ending.wait(0.01):
                self.looks += 1
                for waiting, seconds, holders in connection.execute(WAITS):
                    if waiting != JOB_ROLE and seconds is not None:
                        is_job = JOB_ROLE in holders
                        self.longest[is_job] = max(self.longest[is_job], float(seconds))

    def stop(self) -> None:
        self._ending.set()
        self.join()


def start_removal(folder: Path, url: str) -> subprocess.Popen[bytes]:
    """Begin `autopack db retain` in another process, under its own role."""
    address = make_url(url).set(drivername="postgresql", username=JOB_ROLE)
    return subprocess.Popen(
        [sys.executable, "-m", "autopack", "db", "retain", "--older-than", "90d"],
        cwd=folder / "repository",
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "DATABASE_URL": address.render_as_string(hide_password=False),
            "AUTOPACK_HOME": str(folder / "home"),
            "AUTONOMOUS_RUNS_DIR": str(folder / "runs"),
        },
    )


def patch_of(run: int, phase: int) -> str:
    """Write a patch that adds a file of PATCH_LINES lines, which look like code."""
    words = random.Random(f"{run}-{phase}")  # noqa: S311 - the same text in each run of this
    names = [f"{words.choice(NAMES)}_{words.choice(NAMES)}" for _ in range(40)]
    lines = [
        f"+    {words.choice(names)} = {words.choice(names)}({words.choice(names)},"
        f" {words.randrange(10_000)})\n"
        for _ in range(PATCH_LINES)
    ]
    path = f"src/part_{phase}.py"
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1,{PATCH_LINES} @@\n{''.join(lines)}"
    )


def measured(engine: Engine, folder: Path) -> dict[str, int]:
    """Return the bytes of each table with its indexes, of git's objects, and of the runs' files."""
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM FULL"))
        found = {
            f"Postgres, `{name}`": int(size)
            for name, size in connection.execute(
                text("SELECT relname, pg_total_relation_size(relid) FROM pg_stat_user_tables")
            )
        }
    counted = subprocess.run(
        ["git", "-C", str(folder / "repository"), "count-objects", "-v"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout  # fmt: skip
    figures = dict(line.split(": ") for line in counted.splitlines())
    found["git, loose objects"] = int(figures["size"]) * 1024
    files = [path.stat() for path in (folder / "runs").rglob("*")]
    found["files, on disk"] = sum(each.st_blocks * 512 for each in files)
    return found


def print_sizes() -> int:
    """Print what a run takes, as a table of Markdown."""
    with tempfile.TemporaryDirectory(prefix="autopack-retention-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for root, Postgres is another user
        with EmbeddedPostgres(folder / "postgres") as postgres:
            init_db(Settings(_env_file=None, database_url=postgres.url.replace("+psycopg2", "")))
            engine = make_engine(postgres.url, 600)
            make_role(engine)
            with service(folder, postgres.url) as (client, _):
                empty = measured(engine, folder)
                for run in range(SIZED_RUNS):
                    client.post("/runs/start", json=plan(f"sized-{run}", SIZED_PHASES))
                    for phase in range(SIZED_PHASES):
                        path = f"/runs/sized-{run}/phases/P{phase}/builder_result"
                        report = {"status": "success", "patch_content": patch_of(run, phase)}
                        client.post(path, json=report | {"tokens_used": 900}).raise_for_status()
            with engine.begin() as connection:
                connection.execute(
                    text(
                        "UPDATE runs SET is_counted = true, closed_at = now() - interval '1 year',"
                        " closed_by = 'benchmark', closed_as = 'dismissed',"
                        " ended_at = ended_at - interval '1 year'"
                    )
                )
            before = measured(engine, folder)
            start_removal(folder, postgres.url).wait()
            gone = removed(engine)
            after = measured(engine, folder)
            engine.dispose()
        pack = ["git", "-C", str(folder / "repository"), "gc", "--quiet"]
        subprocess.run(pack, check=True)
        packs = (folder / "repository/.git/objects/pack").glob("*.pack")
        packed = sum(path.stat().st_size for path in packs)
    print("| of one run | before, kB | after, kB |\n|---|---|---|")

    def row(name: str, places: list[str]) -> None:
        base = sum(empty.get(place, 0) for place in places)
        sizes = [sum(each[place] for place in places) - base for each in (before, after)]
        print(f"| {name} | {' | '.join(f'{size / SIZED_RUNS / 1_000:,.0f}' for size in sizes)} |")

    tables = sorted(
        (place for place in before if place.startswith("Postgres")),
        key=lambda place: empty[place] - before[place],
    )
    row("Postgres, together", tables)
    for place in tables[:SHOWN_TABLES]:
        row(place, [place])
    row("Postgres, other tables", tables[SHOWN_TABLES:])
    for place in sorted(before.keys() - {*tables}, reverse=True):
        row(place, [place])
    print(f"| git, packed (`git gc`) | | {packed / SIZED_RUNS / 1_000:,.0f} |")
    return int(gone != SIZED_RUNS)


def make_role(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"CREATE ROLE {JOB_ROLE} SUPERUSER LOGIN"))


def show(name: str, took: list[float], bound: float) -> int:
    ordered = sorted(took)
    over = sum(each > bound for each in took)
    p50, p99 = (ordered[int(len(ordered) * share)] for share in (0.5, 0.99))
    print(
        f"{name:<18} {len(took):>7} requests  p50 {p50:6.1f} ms  p99 {p99:6.1f} ms"
        f"  longest {ordered[-1]:6.1f} ms  over {bound:.0f} ms: {over}",
        flush=True,
    )
    return over


def removed(engine: Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM runs WHERE details_removed_at IS NOT NULL"
        return int(connection.execute(text(query)).scalar_one())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--old", type=int, default=20_000)
    parser.add_argument("--bound", type=float, default=1_000)
    parser.add_argument("--sizes", action="store_true", help="print what one run takes")
    given = parser.parse_args()
    # Upkeep would write the files of runs that only SQL knows.
    os.environ["AUTOPACK_JOBS"] = "outside"
    if given.sizes:
        return print_sizes()
    with tempfile.TemporaryDirectory(prefix="autopack-retention-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for root, Postgres is another user
        with EmbeddedPostgres(folder / "postgres") as postgres:
            url = postgres.url
            init_db(Settings(_env_file=None, database_url=url.replace("+psycopg2", "")))
            engine = make_engine(url, 600)
            make_role(engine)
            with service(folder, url) as (client, _):
                start_runs(client, PHASES)
                with engine.begin() as connection:
                    fill(connection, given.runs)
                commits = write_records(folder / "repository", given.old)
                with engine.begin() as connection:
                    make_old(connection, commits)
                settle(engine)
                print(f"{given.runs} runs, {given.old} of them settled long ago", flush=True)
                end = time.monotonic() + QUIET_SECONDS
                show("alone", ask(client, lambda: time.monotonic() > end, given.old), given.bound)
                began = time.monotonic()
                waits = LockWaits(engine)
                waits.start()
                retain = start_removal(folder, url)
                took = ask(client, lambda: retain.poll() is not None, given.old)
                seconds = time.monotonic() - began
                waits.stop()
                over = show("beside a removal", took, given.bound)
            gone = removed(engine)
            print(f"{gone} runs lost their details in {seconds:.0f} s")
            of_job, of_others = (waits.longest[each] * 1e3 for each in (True, False))
            print(
                f"longest wait of a request for a lock, in {waits.looks} looks:"
                f" {of_job:.1f} ms for one of the removal, {of_others:.1f} ms for another's"
            )
            engine.dispose()
    return int(over > 0 or of_job > 0 or gone != given.old or retain.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
