"""One run as an archive that another service can show and verify. (docs/backup.md)"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from .. import __version__
from ..domain.errors import ConflictError
from ..domain.naming import RECORD, STATEMENT, branch_ref, record_folder, snapshot_ref
from ..store import exports as store
from ..store import runs
from ..store.session import RowSession
from ..views.exports import ExportAnswer, RunManifest
from .archives import new_archive
from .context import AppContext
from .reading import one_moment
from .verifying import run_problems

KIND: Final = "autopack-run"
ROWS: Final = "rows.jsonl"
BUNDLE: Final = "commits.bundle"
MEMBERS: Final = (ROWS, RECORD, STATEMENT, BUNDLE)


class NotExportableError(ConflictError):
    """The run is not over, or has no record by which another service could verify it."""

    code = "not_exportable"


def export_run(context: AppContext, run_id: str, path: Path, revision: str) -> ExportAnswer:
    """Write a run that is over into an archive. Raises NotFoundError, NotExportableError."""
    repository = context.repository
    with one_moment(context) as session:
        run = runs.get_run(session, run_id)
        if not run.has_record:
            raise NotExportableError(f"run '{run_id}' has no record: it is not over")
        if run.details_removed_at is not None:
            raise NotExportableError(f"run '{run_id}' has no details any more: its branch has them")
        problems = run_problems(repository, session, run)
        if problems:
            raise NotExportableError(f"run '{run_id}' is not whole: {problems[0]}")
        folder = record_folder(run_id)
        refs = [branch_ref(run_id)]
        refs += [snapshot_ref(each.snapshot_tag) for each in run.phases if each.snapshot_tag]
        counted = [0]
        with new_archive(path) as archive:
            archive.add(ROWS, _lines(session, run.id, counted))
            for name in (RECORD, STATEMENT):
                data = repository.read_file(run.head_commit, f"{folder}/{name}")
                archive.add(name, [data or b""])
            archive.add(BUNDLE, repository.bundles.write(refs, without=[run.base_commit]))
            manifest = RunManifest(
                autopack=__version__,
                created_at=datetime.now(UTC),
                revision=revision,
                run_id=run_id,
                base_branch=run.base_branch,
                base_commit=run.base_commit,
                head_commit=run.head_commit,
                event_hash=run.event_hash,
                rows=counted[0],
            )
            archive.finish(manifest.model_dump(mode="json"))
    return ExportAnswer(file=str(path), size_bytes=path.stat().st_size, manifest=manifest)


def _lines(session: RowSession, run_pk: int, counted: list[int]) -> Iterator[bytes]:
    for table, row in store.read_rows(session, run_pk):
        counted[0] += 1
        yield f'{{"table": "{table}", "row": {row}}}\n'.encode()
