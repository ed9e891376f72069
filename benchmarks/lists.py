"""The cost of lists and reports with a hundred runs and with a hundred thousand.

    python benchmarks/lists.py [--runs 100 100000] [--phases 5] [--requests 50] [--endpoint WORDS]

For each size a temporary embedded Postgres is filled by SQL: runs in every final state with their
tiers, phases, submissions, issues, events and the resulting backlog, all copied from one run that
the service itself started; twenty more runs are live. Then each endpoint is requested over HTTP,
one request at a time. CPU is that of the service and of Postgres together, from /proc, so other
load has little effect; wall is the median. Pages are of a size that a hundred runs can fill, so
that both sizes answer the same number of items. `reads` names the tables that a plan of Postgres
reads as a whole (Seq Scan) among those that grow with the runs, according to EXPLAIN. Reading a
table of few pages as a whole is right, so look at the larger size. `src/autopack` must be
importable.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import Connection, Engine, event, text
from starlette.testclient import TestClient

from autopack.config import Settings
from autopack.database import init_db, make_engine
from autopack.embedded_postgres import EmbeddedPostgres
from autopack.main import create_app
from autopack.store.figures import count_ended
from autopack.store.session import RowSession

LIVE_RUNS = 20
RUNS_A_KEY = 20
EVENTS_A_RUN = 12
# Everything that has a row or more for each run.
GROWING = frozenset(
    {
        "backlog",
        "ci_runs",
        "commits",
        "events",
        "issues",
        "leases",
        "phases",
        "runs",
        "sightings",
        "submissions",
        "tiers",
    }
)
ENDPOINTS = (
    "/runs",
    "/runs?status=DONE_FAILED_ENVIRONMENT&limit=3",
    "/runs?text=9&limit=3",
    "/runs?text=nowhere&limit=3",
    "/runs?live=true&limit=10",
    "/runs?ended_since=2020-01-01T00:00:00Z&limit=10",
    "/runs?promotion=eligible&limit=3",
    "/runs?failure_code=phase_failed&limit=3",
    "/runs/{run_id}",
    "/runs/{run_id}/events",
    "/runs/{run_id}/issues/index",
    "/runs/{run_id}/phases/P0",
    "/runs/{run_id}/phases/P0/attempts",
    "/runs/{run_id}/timeline",
    "/runs/live-1/next_phase",
    "/project/issues/backlog?limit=20",
    "/project/issues/backlog?status=needs_cleanup&limit=5",
    "/project/issues/backlog?category=category-3&limit=1",
    "/project/issues/backlog?severity=major&limit=2",
    "/project/issues/backlog?order=pressing&limit=5",
    "/project/ruleset/versions",
    "/metrics/runs",
    "/metrics/runs?limit=10",
    "/metrics/runs?limit=10&cursor=*",
    "/metrics/runs?status=DONE_SUCCESS&limit=10",
    "/metrics/tiers/{run_id}",
    "/metrics/costs?by=agent",
    "/metrics/costs?by=day",
    "/metrics/quality",
    "/reports/issue_backlog_summary?limit=4",
    "/reports/budget_analysis?limit=3",
    "/reports/run_summary/{run_id}",
    "/runs/{run_id}/promotion",
)

# The values in which copy number n differs from the copied run. {runs}, {keys}: how many there are.
FINAL_STATE = """
    CASE n % 20 WHEN 0 THEN 'DONE_FAILED_BUDGET_EXHAUSTED'
                WHEN 1 THEN 'DONE_FAILED_REQUIRES_HUMAN_REVIEW'
                WHEN 2 THEN 'DONE_FAILED_POLICY_VIOLATION'
                WHEN 3 THEN 'DONE_FAILED_ENVIRONMENT' ELSE 'DONE_SUCCESS' END"""
AT = "t.created_at - ({runs} - n + 1) * interval '10 seconds'"
RUNS = {
    "run_id": "'load-' || n",
    "state": FINAL_STATE,
    "tokens_used": "CASE WHEN n % 40 = 0 THEN t.token_cap + n ELSE n * 7 % t.token_cap END",
    "failure_code": "CASE n % 20 WHEN 0 THEN CASE n % 40 WHEN 0 THEN 'token_cap'"
    " ELSE 'duration_cap' END WHEN 1 THEN 'phase_failed' WHEN 2 THEN 'branch_moved'"
    " WHEN 3 THEN 'ci_did_not_run' END",
    "failure_reason": "CASE WHEN n % 20 < 4 THEN 'a reason of some words, as all have one' END",
    "minor_issues_count": "n % 3",
    "promotion_eligible_to_main": "n % 20 > 3",
    "mirrored_revision": "t.revision",
    "event_sequence": str(EVENTS_A_RUN),
    "created_at": AT,
    "updated_at": f"{AT} + interval '9 minutes'",
    "ended_at": f"{AT} + interval '9 minutes'",
}
PHASES = {
    "state": "CASE WHEN n % 20 > 3 OR t.phase_index = 0 THEN 'COMPLETE' WHEN n % 20 = 1"
    " THEN 'FAILED' ELSE 'SKIPPED' END",
    "task_category": "(ARRAY['docs', 'tests', 'default'])[1 + t.phase_index % 3]",
    "tokens_used": "n * 13 % 100000",
    "builder_attempts_used": "1 + n % 2",
    "auditor_attempts_used": "CASE WHEN t.phase_index = 0 AND n % 3 = 0 THEN 1 ELSE 0 END",
    "deadline_at": "NULL",
    "started_at": "now() - interval '1 hour'",
    "ended_at": "now()",
}
TIERS = {"state": "'COMPLETE'", "tokens_used": "n * 31 % 300000", "ci_runs_count": "n % 4"}
EVENTS = {
    "sequence": "s",
    "kind": "CASE WHEN s = 1 THEN t.kind WHEN s % 3 = 0 THEN 'TokensCounted'"
    " ELSE 'PhaseStarted' END",
    "to_state": "CASE WHEN s % 3 = 0 THEN NULL ELSE 'EXECUTING' END",
}


def fill(connection: Connection, runs: int) -> None:
    """Copy the oldest run so many times, with all its rows, as ended runs.

    Columns that are not named here keep the values that the service wrote.
    """
    template = connection.scalar(text("SELECT min(id) FROM runs"))
    connection.execute(text("SET LOCAL statement_timeout = 0"))
    is_superuser = connection.scalar(text("SHOW is_superuser")) == "on"
    if is_superuser:  # foreign keys need not be checked: a third of the time
        connection.execute(text("SET LOCAL session_replication_role = replica"))
    values = {"runs": runs, "keys": max(20, runs // RUNS_A_KEY), "template": template}
    series = f"CROSS JOIN generate_series(1, {runs}) n"
    first = {
        table: connection.scalar(text(f"SELECT coalesce(max(id), 0) + 1000 FROM {table}"))
        for table in ("runs", "tiers", "phases", "issues", "backlog")
    }
    run = f"{first['runs']} + n"
    tiers = connection.scalar(text(f"SELECT count(*) FROM tiers WHERE run_pk = {template}"))
    phases = connection.scalar(text(f"SELECT count(*) FROM phases WHERE run_pk = {template}"))
    tier = f"{first['tiers']} + n * {tiers}"
    phase = f"{first['phases']} + n * {phases}"
    nth_phase = f"(SELECT count(*) FROM phases o WHERE o.run_pk = {template} AND o.id < t.id)"
    _copy(connection, "runs", series, f"t.id = {template}", values, {"id": run, **RUNS})
    mine = f"t.run_pk = {template}"
    of_run = {"run_pk": run}
    _copy(
        connection,
        "tiers",
        series,
        mine,
        values,
        {"id": f"{tier} + t.tier_index", **of_run, **TIERS},
    )
    _copy(
        connection,
        "phases",
        series,
        mine,
        values,
        {"id": f"{phase} + {nth_phase}", "tier_pk": f"{tier} + t.tier_index", **of_run, **PHASES},
    )
    _copy(
        connection,
        "events",
        f"{series} CROSS JOIN generate_series(1, {EVENTS_A_RUN}) s",
        f"{mine} AND t.sequence = 1",
        values,
        of_run | EVENTS,
    )
    _copy(
        connection,
        "submissions",
        f"{series} CROSS JOIN generate_series(0, {phases} - 1) p"
        " CROSS JOIN (VALUES ('builder'), ('auditor')) r (role)",
        f"{mine} AND t.id = (SELECT min(id) FROM submissions)"
        " AND (r.role = 'builder' OR (p = 0 AND n % 3 = 0))",
        values,
        {
            **of_run,
            "phase_pk": f"{phase} + p",
            "role": "r.role",
            "tokens_used": "n * 11 % 50000",
            "created_at": AT,
            "agent": "'agent-' || n % 7",
            "outcome": "CASE r.role WHEN 'builder' THEN 'applied' ELSE 'approved' END",
        },
    )
    _copy(
        connection,
        "issues",
        series,
        f"{mine} AND t.id = (SELECT min(id) FROM issues)",
        values,
        {**of_run, "phase_pk": phase, "issue_key": "'load-key-' || n % {keys}"},
    )
    _copy(
        connection,
        "backlog",
        "CROSS JOIN generate_series(0, {keys} - 1) n",
        "t.id = (SELECT min(id) FROM backlog)",
        values,
        {
            "id": f"{first['backlog']} + n",
            "issue_key": "'load-key-' || n",
            "category": "'category-' || n % 12",
            "base_severity": "CASE n % 9 WHEN 0 THEN 'major' ELSE 'minor' END",
            "status": "(ARRAY['open', 'open', 'needs_cleanup', 'resolved'])[1 + n % 4]",
            "needs_cleanup_at": "CASE WHEN n % 4 = 2 THEN now() - n * interval '1 minute' END",
            "age_in_runs": "n % 97",
            "age_in_tiers": "n % 5",
        },
    )
    for statement in (
        f"INSERT INTO sightings (backlog_pk, run_pk, tier_id)"
        f" SELECT {first['backlog']} + n % {values['keys']}, {run}, 'T0'",
        "INSERT INTO leases (run_pk, phase_pk, role, agent, fence, token_sha256, seconds,"
        " expires_at, ended_at)"
        f" SELECT {run}, {phase}, 'builder', 'load', 1, sha256(n::text::bytea), 900,"
        " now(), now()",
        "INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt, verdict, is_flaky,"
        " requested_at, ended_at)"
        f" SELECT {run}, {phase}, sha256(n::text::bytea), 'normal', 1, 'green', false,"
        " now(), now()",
        "INSERT INTO commits (run_pk, position, kind, sha, tree, parent, message,"
        " committed_at, is_merged)"
        f" SELECT {run}, 0, 'patch', sha256(n::text::bytea), '', '', '', now(), false",
    ):
        connection.execute(text(f"{statement} FROM generate_series(1, {runs}) n"))
    if is_superuser:
        # What the triggers would have written, added up.
        for statement in (
            "INSERT INTO run_counts SELECT state, failure_code, count(*), CASE state"
            " WHEN 'DONE_FAILED_BUDGET_EXHAUSTED'"
            " THEN sum(tokens_used::numeric / greatest(token_cap, 1)) ELSE 0 END"
            f" FROM runs WHERE id > {first['runs']} GROUP BY state, failure_code",
            "INSERT INTO backlog_counts SELECT project_id, category, status, base_severity,"
            f" count(*) FROM backlog WHERE id >= {first['backlog']}"
            " GROUP BY project_id, category, status, base_severity",
        ):
            connection.execute(text(statement))
        connection.execute(text("SET LOCAL session_replication_role = DEFAULT"))
    for table in first:
        connection.execute(
            text(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"
                f" (SELECT max(id) + 1 FROM {table}))"
            )
        )


def _copy(
    connection: Connection,
    table: str,
    source: str,
    where: str,
    values: Mapping[str, Any],
    changes: Mapping[str, str],
) -> None:
    """Insert changed copies of rows; columns that this file does not know are copied as well."""
    known = connection.execute(
        text(
            "SELECT column_name FROM information_schema.columns"
            " WHERE table_schema = 'public' AND table_name = :table ORDER BY ordinal_position"
        ),
        {"table": table},
    )
    columns = [name for (name,) in known if name != "id" or "id" in changes]
    picked = ", ".join(changes.get(name, f't."{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    statement = (
        f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE"
        f" SELECT {picked} FROM {table} t {source} WHERE {where}"
    )
    for name, value in values.items():
        statement = statement.replace(f"{{{name}}}", str(value))
    connection.exec_driver_sql(statement.replace("%", "%%"))


def settle(engine: Engine) -> None:
    """Add up the figures, as upkeep would; vacuum and analyze, as autovacuum would."""
    counted = 1
    while counted:
        with RowSession(engine, is_writing=True) as session:
            counted = count_ended(session, datetime.now(UTC) + timedelta(hours=1))
            session.commit()
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("VACUUM ANALYZE"))
        connection.execute(text("RESET statement_timeout"))


class Statements:
    """The statements that an engine sends, and Postgres' plans for them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sent: list[tuple[str, Any]] = []
        event.listen(engine, "before_cursor_execute", self._note)

    def _note(
        self, _conn: object, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        self.sent.append((statement, parameters))

    def tables_read_whole(self) -> set[str]:
        """Return the growing tables that a plan of these statements reads as a whole."""
        sent, self.sent = self.sent, []
        found: set[str] = set()
        with self.engine.connect() as connection:
            for statement, parameters in sent:
                if statement.lstrip().startswith(("SELECT", "WITH")):
                    plan = connection.exec_driver_sql(
                        f"EXPLAIN (FORMAT JSON) {statement}", parameters
                    ).scalar()
                    assert plan is not None, statement
                    found |= set(_whole(plan[0]["Plan"]))
        self.sent = []
        return found & GROWING


def _whole(plan: Mapping[str, Any]) -> Iterator[str]:
    if plan["Node Type"] == "Seq Scan":
        yield plan["Relation Name"]
    for child in plan.get("Plans", ()):
        yield from _whole(child)


# From here on: measuring.


@dataclass(frozen=True)
class Figure:
    cpu: float
    wall: float
    size: int
    statements: int
    reads: set[str]


def plan(run_id: str, phases: int) -> dict[str, Any]:
    """Return a plan of two tiers; the second has the remaining phases."""
    return {
        "run": {"run_id": run_id, "max_phases": max(25, phases)},
        "tiers": [{"tier_id": f"T{n}", "tier_index": n, "name": f"Tier {n}"} for n in range(2)],
        "phases": [
            {
                "phase_id": f"P{n}",
                "phase_index": n,
                "tier_id": f"T{int(n >= (phases + 1) // 2)}",
                "name": f"Phase {n}",
                "description": "Do what the plan asks for, and leave all else as it is. " * 3,
            }
            for n in range(phases)
        ],
    }


def start_runs(client: httpx.Client, phases: int) -> None:
    """Start the run to copy, with an issue and an attempt, and the runs that stay live."""
    for number in range(LIVE_RUNS):
        client.post("/runs/start", json=plan(f"live-{number}", phases)).raise_for_status()
    issue = {"issue_key": "load-first", "source": "test", "category": "test_failure"}
    base = "/runs/live-0/phases/P0"
    client.post(f"{base}/record_issue", json=issue).raise_for_status()
    client.post(f"{base}/builder_result", json={"status": "failed"}).raise_for_status()


@contextmanager
def service(folder: Path, database_url: str) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    """Serve a new repository over HTTP, from another process."""
    repository = folder / "repository"
    if not repository.exists():
        identity = ["-c", "user.name=A", "-c", "user.email=a@localhost"]
        for arguments in (
            ["init", "-q", "-b", "main", str(repository)],
            ["-C", str(repository), *identity, "commit", "-q", "--allow-empty", "-m", "Start"],
        ):
            subprocess.run(["git", *arguments], check=True)
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "DATABASE_URL": database_url.replace("+psycopg2", ""),
        "AUTOPACK_HOME": str(folder / "home"),
        "AUTONOMOUS_RUNS_DIR": str(folder / "runs"),
    }
    log = (folder / "service.log").open("w")
    process = subprocess.Popen(
        [sys.executable, "-m", "autopack", "serve", "--port", "0"],
        cwd=repository,
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        yield httpx.Client(
            base_url=_address(folder / "service.log"), timeout=120, trust_env=False
        ), (psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(timeout=60)


def _address(log: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for line in log.read_text().splitlines():
            if line.startswith("  API "):
                return line.split()[1]
        time.sleep(0.1)
    raise SystemExit(f"the service did not start:\n{log.read_text()}")


def cpu_seconds(processes: Sequence[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        for one in (process, *process.children(recursive=True)):
            try:
                times = one.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
    return total


def measure(
    client: httpx.Client, processes: Sequence[psutil.Process], path: str, requests: int
) -> tuple[float, float, int]:
    """Return CPU and wall milliseconds a request, and the size of an answer."""
    for _ in range(5):
        answer = client.get(path)
        answer.raise_for_status()
    walls = []
    before = cpu_seconds(processes)
    for _ in range(requests):
        began = time.perf_counter()
        client.get(path)
        walls.append(time.perf_counter() - began)
    cpu = (cpu_seconds(processes) - before) / requests
    return cpu * 1e3, statistics.median(walls) * 1e3, len(answer.content)


def deep(client: httpx.Client, path: str) -> str:
    """Replace `cursor=*` by the cursor of a page after at most eighty items."""
    first = path.replace("limit=10&cursor=*", "limit=80")
    if first == path:
        return path
    return path.replace("*", client.get(first).json()["next_cursor"])


def run_size(runs: int, phases: int, requests: int, endpoints: Sequence[str]) -> dict[str, Figure]:
    figures = {}
    with tempfile.TemporaryDirectory(prefix="autopack-load-") as name:
        folder = Path(name)
        with EmbeddedPostgres(folder / "postgres") as server:
            settings = Settings(_env_file=None, database_url=server.url.replace("+psycopg2", ""))
            init_db(settings)
            engine = make_engine(server.url, 600)
            with service(folder, server.url) as (client, process):
                start_runs(client, phases)
                began = time.perf_counter()
                with engine.begin() as connection:
                    fill(connection, runs - LIVE_RUNS)
                settle(engine)
                size = _megabytes(engine)
                print(
                    f"{runs:,} runs of {phases} phases: {size} MB,"
                    f" filled in {time.perf_counter() - began:.0f} s"
                )
                paths = {
                    endpoint: deep(client, endpoint.replace("{run_id}", "load-20"))
                    for endpoint in endpoints
                }
                postgres = psutil.Process(
                    int((server.data / "postmaster.pid").read_text().split()[0])
                )
                costs = {
                    endpoint: measure(client, (process, postgres), path, requests)
                    for endpoint, path in paths.items()
                }
            # The same application once more, in this process, where its statements can be seen.
            app = create_app(
                Settings(
                    _env_file=None,
                    testing=True,
                    database_url=settings.database_url,
                    repo_path=folder / "repository",
                    home=folder / "home",
                    autonomous_runs_dir=folder / "runs",
                )
            )
            with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 1)) as tester:
                statements = Statements(app.state.context.engine)
                for endpoint, path in paths.items():
                    statements.sent = []
                    tester.get(path).raise_for_status()
                    count = len(statements.sent)
                    figures[endpoint] = Figure(
                        *costs[endpoint], count, statements.tables_read_whole()
                    )
            engine.dispose()
    return figures


def _megabytes(engine: Engine) -> int:
    with engine.connect() as connection:
        return (
            int(
                connection.execute(text("SELECT pg_database_size(current_database())")).scalar()
                or 0
            )
            // 10**6
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, nargs="+", default=[100, 100_000])
    parser.add_argument("--phases", type=int, default=5, help="phases of each run")
    parser.add_argument("--requests", type=int, default=50, help="requests an endpoint")
    parser.add_argument("--endpoint", default="", help="only endpoints that hold these words")
    options = parser.parse_args()
    endpoints = [one for one in ENDPOINTS if options.endpoint in one]
    results = [run_size(runs, options.phases, options.requests, endpoints) for runs in options.runs]
    heads = "".join(f"{f'{runs:,} runs':>22}" for runs in options.runs)
    print(f"\n{'':40}{heads}{'ratio':>8}   SQL  kB  reads")
    print(f"{'milliseconds a request':40}{'CPU      wall':>22}" + f"{'CPU      wall':>22}")
    for endpoint in endpoints:
        rows = [figures[endpoint] for figures in results]
        cells = "".join(f"{row.cpu:>12.2f}{row.wall:>10.2f}" for row in rows)
        last = rows[-1]
        print(
            f"{endpoint:40}{cells}{last.cpu / max(rows[0].cpu, 0.01):>8.2f}"
            f"{last.statements:>6}{last.size // 1000:>4}  {', '.join(sorted(last.reads)) or '-'}"
        )


if __name__ == "__main__":
    main()
