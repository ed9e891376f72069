"""A bare FastAPI application to compare the service with: only the indispensable work.

It runs only the indispensable SQL by psycopg2, on tables with a column for each field of the
service's answers; writes the same number of files, with the same number of formatted lines, of the
same sizes; and starts the same git plumbing. It checks nothing, decides nothing and has no chain of
events. Its files are projections like the service's: a temporary file and a rename, no fsync.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import apply
import uvicorn
from fastapi import Body, FastAPI
from fastapi.responses import JSONResponse
from psycopg2.extras import Json, RealDictCursor, execute_values
from psycopg2.pool import ThreadedConnectionPool

FILES = 2_000
Row = dict[str, Any]
# A kind of file, and how many lines and bytes one has in the service.
Page = tuple[str, int, int]


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
    """The bare application. `shape` is an answer of the service, which gives the columns.

    `pages` are the files that the service writes for each operation.
    """

    def __init__(
        self, url: str, shape: Row, pages: dict[str, list[Page]], folder: Path, runs: Path
    ) -> None:
        self.pool = ThreadedConnectionPool(1, 40, url)
        self.pages = pages
        self.runs = runs
        self.run_row = stored(shape)
        self.tier_row = stored(shape["tiers"][0])
        self.phase_row = stored(shape["tiers"][0]["phases"][0])
        self.repository = folder / "repository"
        self.base = apply.git(self.repository, "rev-parse", "main")
        self.plumbing = apply.bare_plumbing(self.repository, folder)
        self.steps: dict[str, apply.Step] = {}
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
            for table in ("events", "submissions", "replies"):
                cursor.execute(
                    f"CREATE TABLE {table} (pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                    " run_pk bigint, kind text, data jsonb, content bytea)"
                )
            cursor.execute(
                "CREATE TABLE issues (pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                " run_pk bigint, phase_pk bigint, issue_key text, severity text, source text,"
                " category text, count bigint DEFAULT 1, UNIQUE (phase_pk, issue_key));"
                "CREATE INDEX ON issues (run_pk);"
                "CREATE TABLE backlog (pk bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,"
                " issue_key text UNIQUE, severity text, category text, runs bigint DEFAULT 1,"
                " tiers bigint DEFAULT 1, seen_at timestamptz DEFAULT now());"
                "CREATE TABLE sightings (backlog_pk bigint, run_pk bigint, tier_id text,"
                " PRIMARY KEY (backlog_pk, run_pk, tier_id))"
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
                rows = [
                    (key, *{**template, **{k: one[k] for k in one if k in template}}.values())
                    for one in given
                ]
                execute_values(cursor, f"INSERT INTO {table} (run_pk, {names}) VALUES %s", rows)
            self._add(cursor, "events", key)
        update = f"update refs/heads/autonomous/{run_id} {self.base} {'0' * 40}\n"
        apply.git(self.repository, "update-ref", "--stdin", stdin=update.encode())
        self._write(run_id, "start", row)
        self._mirrored(key)
        return {"run_id": run_id, **plan}

    def status(self, run_id: str, phase_id: str, state: str) -> Row:
        with self.transaction() as cursor:
            key, phase = self._lock(cursor, run_id, phase_id)
            self._change(cursor, key, phase["pk"], state)
        self._write(run_id, "status", phase)
        self._mirrored(key)
        return {**phase, "state": state}

    def issue(self, run_id: str, phase_id: str, issue: Row) -> Row:
        with self.transaction() as cursor:
            key, phase = self._lock(cursor, run_id, phase_id)
            cursor.execute("SELECT * FROM issues WHERE run_pk = %s", (key,))
            cursor.fetchall()
            cursor.execute(
                "INSERT INTO issues (run_pk, phase_pk, issue_key, severity, source, category)"
                " VALUES (%s, %s, %s, 'minor', %s, %s)"
                " ON CONFLICT (phase_pk, issue_key) DO UPDATE SET count = issues.count + 1",
                (key, phase["pk"], issue["issue_key"], issue["source"], issue["category"]),
            )
            cursor.execute(
                "INSERT INTO backlog (issue_key, severity, category) VALUES (%s, 'minor', %s)"
                " ON CONFLICT (issue_key) DO UPDATE SET seen_at = now() RETURNING pk",
                (issue["issue_key"], issue["category"]),
            )
            cursor.execute(
                "INSERT INTO sightings VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
                (cursor.fetchone()["pk"], key, phase["tier_id"]),
            )
            self._change(cursor, key, phase["pk"], phase["state"])
            self._add(cursor, "replies", key)
        self._write(run_id, "issue", phase)
        self._mirrored(key)
        return phase

    def result(self, run_id: str, phase_id: str, number: int) -> Row:
        patch, changed = apply.patch_of(FILES, number)
        ref = f"refs/heads/autonomous/{run_id}"
        with self.transaction() as cursor:
            key, phase = self._lock(cursor, run_id, phase_id)
            if ref not in self.steps:
                self.steps[ref] = self.plumbing(ref)
            self.steps[ref](patch, changed)
            self._change(cursor, key, phase["pk"], "COMPLETE")
            for table in ("submissions", "submissions", "replies", "events", "events"):
                self._add(cursor, table, key, patch)
        self._write(run_id, "result", phase)
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

    def _write(self, run_id: str, operation: str, row: Row) -> None:
        folder = self.runs / run_id
        folder.mkdir(parents=True, exist_ok=True)
        names = [name for name in row if name != "pk"]
        for number, (kind, lines, size) in enumerate(self.pages[operation]):
            width = max(size // lines - 8, 1)
            text = "\n".join(
                f"- {n % 100:2}: {row[names[n % len(names)]]!s:.{width}}".ljust(width + 7)
                for n in range(lines)
            )
            path = folder / f"{kind}{number}"
            scratch = folder / f".{path.name}"
            scratch.write_bytes(text.encode())
            scratch.rename(path)


def serve(url: str, folder: Path, runs: Path, port: int) -> None:
    given = json.loads((folder / "shape.json").read_text())
    floor = Floor(url, given["run"], given["pages"], folder, runs)
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

    @app.post("/runs/{run_id}/phases/{phase_id}/record_issue")
    def issue(run_id: str, phase_id: str, issue: Row = Body()) -> JSONResponse:
        return JSONResponse(floor.issue(run_id, phase_id, issue))

    @app.post("/runs/{run_id}/phases/{phase_id}/builder_result")
    def result(run_id: str, phase_id: str, report: Row = Body()) -> JSONResponse:
        return JSONResponse(floor.result(run_id, phase_id, report["tokens_used"]))

    uvicorn.run(app, port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    serve(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
