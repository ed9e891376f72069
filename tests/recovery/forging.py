"""A hostile owner of another service: he changes its database, and makes the record again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from autopack.backup import write_run
from autopack.config import Settings
from autopack.contexts import beside_database
from autopack.domain.events import GENESIS_HASH, seal
from autopack.domain.naming import RECORD, record_folder, record_message
from autopack.services.projection import finished_files
from autopack.store import runs

if TYPE_CHECKING:
    from tests.conftest import GitRepo


def write_forged_run(
    settings: Settings, repo: GitRepo, run_id: str, file: Path, change: Callable[[Connection], None]
) -> Path:
    """Write an archive of a changed run, whose chain, seal and commits fit together."""
    with beside_database(settings, "cli") as context:
        with context.engine.begin() as connection:
            change(connection)
        with context.writing() as session:
            run = runs.lock_run(session, run_id)
            rows = runs.list_events(session, run.id, after=0, limit=None)
            sealed = seal([runs.read_event(row) for row in rows], 0, GENESIS_HASH)
            for row, each in zip(rows, sealed, strict=True):
                session.fetch(
                    "UPDATE events SET previous_hash = %s, hash = %s WHERE id = %s RETURNING 1",
                    (each.previous_hash, each.hash, row.id),
                )
            session.fetch(
                "UPDATE runs SET event_hash = %s WHERE id = %s RETURNING 1",
                (sealed[-1].hash, run.id),
            )
            session.commit()
        with context.writing() as session:
            run = runs.lock_run(session, run_id)
            # The events of the record's commit and of a push come after the record's end.
            record = finished_files(session, run, run.statement_signatures)[1][RECORD]
            repo.git("read-tree", run.work_commit)
            blob = repo.git("hash-object", "-w", "--stdin", stdin=record)
            place = f"{record_folder(run_id)}/{RECORD}"
            repo.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{place}")
            message = record_message(
                run_id, str(run.state), hashlib.sha256(record).hexdigest(), is_strict=False
            )
            tree = repo.git("write-tree")
            head = repo.git("commit-tree", tree, "-p", run.work_commit, stdin=message)
            repo.git("read-tree", "HEAD")
            repo.git("update-ref", f"refs/heads/autonomous/{run_id}", head)
            session.fetch(
                "UPDATE commits SET sha = %s, tree = %s, message = %s"
                " WHERE run_pk = %s AND sha = %s RETURNING 1",
                (head, tree, message, run.id, run.head_commit),
            )
            session.fetch(
                "UPDATE runs SET head_commit = %s WHERE id = %s RETURNING 1", (head, run.id)
            )
            session.commit()
    write_run(settings, run_id, file)
    return file
