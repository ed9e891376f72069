"""Whether a request notices that the details of old runs are removed beside it.

    python benchmarks/retention.py [--runs 100000] [--old 20000] [--bound 1000]

A temporary embedded Postgres is filled by SQL as in lists.py, with a patch and a CI log for each
run, and git with a record for each. Of these runs `--old` were settled long ago. A client sends
requests to live and to old runs for a while, then does the same while `autopack db retain` works in
another process, and the percentiles of both are printed. Exits with 1 when a request took longer
than `--bound` milliseconds beside the removal, or when not all old runs lost their details.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from lists import fill, service, settle, start_runs
from sqlalchemy import Connection, Engine, text

from autopack.config import Settings
from autopack.database import init_db, make_engine
from autopack.embedded_postgres import EmbeddedPostgres

PHASES = 5
QUIET_SECONDS = 20
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
    given = parser.parse_args()
    # Upkeep would write the files of runs that only SQL knows.
    os.environ["AUTOPACK_JOBS"] = "outside"
    with tempfile.TemporaryDirectory(prefix="autopack-retention-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # for root, Postgres is another user
        with EmbeddedPostgres(folder / "postgres") as postgres:
            url = postgres.url
            init_db(Settings(_env_file=None, database_url=url.replace("+psycopg2", "")))
            engine = make_engine(url, 600)
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
                retain = subprocess.Popen(
                    [sys.executable, "-m", "autopack", "db", "retain", "--older-than", "90d"],
                    cwd=folder / "repository",
                    env=os.environ
                    | {
                        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                        "DATABASE_URL": url.replace("+psycopg2", ""),
                        "AUTOPACK_HOME": str(folder / "home"),
                        "AUTONOMOUS_RUNS_DIR": str(folder / "runs"),
                    },
                )
                took = ask(client, lambda: retain.poll() is not None, given.old)
                seconds = time.monotonic() - began
                over = show("beside a removal", took, given.bound)
            gone = removed(engine)
            print(f"{gone} runs lost their details in {seconds:.0f} s")
            engine.dispose()
    return int(over > 0 or gone != given.old or retain.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
