"""How long requests wait for a lock while the schema is upgraded beside them.

    python benchmarks/migrations.py [--runs 100000] [--since known_codes figures_by_hand]

For each revision a temporary embedded Postgres gets the schema of then, and by SQL that many runs
of three phases with submissions, patches, commits, CI runs, events and a backlog. Then the schema
is upgraded to head, while clients read and write runs all over the tables as a service does: short
transactions that lock a run and write its rows. `longest wait` is Postgres' own clock of ungranted
locks (pg_locks), read every few milliseconds; `slowest request` is a client's whole transaction,
with the noise of the machine, beside the slowest without an upgrade. No request may fail.
`src/autopack` must be importable.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from alembic import command
from sqlalchemy import Connection, Engine, MetaData, Table, create_engine, text
from sqlalchemy.pool import NullPool

from autopack.database import make_engine
from autopack.embedded_postgres import EmbeddedPostgres
from autopack.migrating import alembic_config, migrate

PHASES: Final = 3
LIMIT_SECONDS: Final = 1.0
# What a column holds that may not hold just anything; `n` is the number of the row.
LIKELY: Final = {
    "run_id": "'run-' || n",
    "state": "'COMPLETE'",
    "safety_profile": "'normal'",
    "run_scope": "'incremental'",
    "ci_profile": "'normal'",
    "profile": "'normal'",
    "complexity": "'low'",
    "role": "'builder'",
    "outcome": "'applied'",
    "debt_status": "'clean'",
    "cleanliness": "'clean'",
    "base_severity": "'minor'",
    "verdict": "'green'",
    "commit": "md5(n::text)",
    "start_commit": "md5(n::text)",
    "kind": "'patch'",
    "issue_key": "'key-' || n",
    "resolved_at": "now()",
    "ended_at": "now()",
    "work_commit": "md5(n::text)",
}
PLAN: Final = "jsonb_build_object('text', repeat(md5(n::text), 40))"
# What only the first version with users wrote, and later ones change.
OLDEST: Final = "known_codes"
OLD_WORDS: Final = {
    "ci_runs": {
        "sandbox": "CASE mod(n, 3) WHEN 0 THEN 'none: no bwrap' WHEN 1 THEN 'bubblewrap' END",
    },
    "patches": {"status": "'discarded'"},
}
# Per table: rows for each run, and words of its own.
TABLES: Final[dict[str, tuple[float, dict[str, str]]]] = {
    "runs": (1, {"state": "'DONE_SUCCESS'", "plan": PLAN}),
    "tiers": (1, {"run_pk": "n", "tier_index": "1"}),
    "phases": (
        PHASES,
        {
            "run_pk": "1 + (n - 1) / 3",
            "tier_pk": "1 + (n - 1) / 3",
            "phase_id": "n",
            "phase_index": "n",
        },
    ),
    "submissions": (PHASES, {"run_pk": "1 + (n - 1) / 3", "phase_pk": "n"}),
    "patches": (
        PHASES,
        {"submission_pk": "n", "status": "'applied'", "run_pk": "1 + (n - 1) / 3"},
    ),
    "commits": (PHASES, {"run_pk": "1 + (n - 1) / 3", "phase_pk": "n", "sha": "md5(n::text)"}),
    "ci_runs": (
        PHASES,
        {"run_pk": "1 + (n - 1) / 3", "phase_pk": "n", "commit_sha": "md5(n::text)"},
    ),
    "events": (2 * PHASES, {"run_pk": "1 + (n - 1) / 6", "sequence": "n"}),
    "backlog": (0.2, {"status": "'resolved'"}),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--since", nargs="+", default=[OLDEST, "figures_by_hand"])
    parser.add_argument("--clients", type=int, default=4)
    asked = parser.parse_args()
    for revision in asked.since:
        measure(revision, asked.runs, asked.clients)


def measure(revision: str, runs: int, clients: int) -> None:
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder) / "pg") as server:
        engine = make_engine(server.url, 600)
        config = alembic_config()
        with engine.begin() as connection:
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
        began = time.monotonic()
        rows = fill(engine, revision, runs)
        print(f"{revision}: {runs:,} runs, {rows:,} rows in {time.monotonic() - began:.0f} s")
        with Clients(server.url, runs, clients) as beside:
            began = time.monotonic()
            migrate(engine)
            took = time.monotonic() - began
        with Clients(server.url, runs, clients) as alone:
            time.sleep(min(took, 10))
        engine.dispose()
    print(
        f"  upgrade {took:.1f} s; {beside.requests:,} requests, {len(beside.errors)} failed;"
        f" longest wait for a lock {beside.longest_wait * 1_000:.0f} ms;"
        f" slowest request {max(beside.seconds) * 1_000:.0f} ms"
        f" (without an upgrade {max(alone.seconds) * 1_000:.0f} ms)"
    )
    if beside.waited_for:
        print(f"  the longest wait was for {beside.waited_for}")
    for error in beside.errors[:3]:
        print(f"  {error}")
    if beside.longest_wait > LIMIT_SECONDS or beside.errors:
        raise SystemExit(f"a request waited longer than {LIMIT_SECONDS:g} s, or failed")


def fill(engine: Engine, revision: str, runs: int) -> int:
    """Fill the tables as they are at this revision; return the number of rows."""
    total = 0
    with engine.begin() as connection:
        connection.execute(text("SET session_replication_role = replica"))
        metadata = MetaData()
        metadata.reflect(connection, only=list(TABLES), resolve_fks=False)
        for name, (each, words) in TABLES.items():
            count = round(each * runs)
            total += count
            old = OLD_WORDS.get(name, {}) if revision == OLDEST else {}
            _insert(connection, metadata.tables[name], count, words | old)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return total


def _insert(connection: Connection, table: Table, count: int, words: dict[str, str]) -> None:
    """Add rows of likely values to a table of any revision."""
    values: dict[str, str] = {}
    for column in table.columns:
        name = column.name
        if column.identity is not None:
            continue
        is_needed = not column.nullable and column.server_default is None
        if name in words or name in LIKELY:
            values[name] = words.get(name, LIKELY.get(name, ""))
        elif is_needed:
            kind = str(column.type)
            if kind in {"JSONB", "TEXT[]"}:
                values[name] = "'[]'" if kind == "JSONB" else "'{}'"
            elif kind == "BYTEA":
                values[name] = "'\\x00'"
            elif kind == "BOOLEAN":
                values[name] = "false"
            elif kind.startswith("TIMESTAMP"):
                values[name] = "now()"
            else:
                values[name] = "n" if name in {"number", "position", "attempt"} else "1"
    columns = ", ".join(f'"{name}"' for name in values)
    made = ", ".join(values.values())
    connection.exec_driver_sql(
        f"INSERT INTO {table.name} ({columns}) SELECT {made} FROM generate_series(1, {count}) n"
    )


@dataclass
class Clients:
    """Requests as a service of the version before makes them, until the block ends."""

    url: str
    runs: int
    number: int
    seconds: list[float] = field(default_factory=lambda: [0.0])
    errors: list[str] = field(default_factory=list)
    longest_wait: float = 0.0
    waited_for: str = ""

    @property
    def requests(self) -> int:
        return len(self.seconds) - 1

    def __enter__(self) -> Clients:
        self._stopped = threading.Event()
        self._threads = [
            threading.Thread(target=self._ask, args=(number,)) for number in range(self.number)
        ]
        self._threads.append(threading.Thread(target=self._watch))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        chance = random.Random(number)  # noqa: S311 - which run to read
        engine = create_engine(self.url, connect_args={"application_name": "client"})
        while not self._stopped.is_set():
            began = time.monotonic()
            try:
                with engine.begin() as connection:
                    _request(connection, chance.randint(1, self.runs))
            except Exception as error:
                self.errors.append(" ".join(str(error).split())[:200])
            self.seconds.append(time.monotonic() - began)
            time.sleep(0.005)
        engine.dispose()

    def _watch(self) -> None:
        engine = create_engine(self.url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        looked = text(
            "SELECT extract(epoch FROM clock_timestamp() - l.waitstart)::float8, a.query"
            " FROM pg_locks l JOIN pg_stat_activity a USING (pid)"
            " WHERE NOT l.granted AND a.application_name = 'client' AND l.waitstart IS NOT NULL"
        )
        with engine.connect() as connection:
            while not self._stopped.is_set():
                for seconds, query in connection.execute(looked):
                    if seconds > self.longest_wait:
                        self.longest_wait, self.waited_for = seconds, query
                time.sleep(0.003)


def _request(connection: Connection, run: int) -> None:
    """Read a run, or lock it and write its rows."""
    given = {"run": run, "phase": (run - 1) * PHASES + 1}
    if run % 2:
        read = "SELECT p.* FROM runs r JOIN phases p ON p.run_pk = r.id WHERE r.run_id = :name"
        connection.execute(text(read), {"name": f"run-{run}"}).all()
        connection.execute(text("SELECT * FROM ci_runs WHERE phase_pk = :phase"), given).all()
        return
    for statement in (
        "SELECT * FROM runs WHERE id = :run FOR UPDATE",
        "UPDATE runs SET updated_at = now() WHERE id = :run",
        "UPDATE phases SET tokens_used = tokens_used + 1 WHERE id = :phase",
        "UPDATE ci_runs SET is_flaky = NOT is_flaky WHERE phase_pk = :phase",
        "UPDATE commits SET message = message WHERE run_pk = :run",
        "UPDATE submissions SET tokens_used = tokens_used + 1 WHERE phase_pk = :phase",
        "UPDATE backlog SET age_in_runs = age_in_runs + 1 WHERE id = :run % 1000",
    ):
        connection.execute(text(statement), given)


if __name__ == "__main__":
    main()
