"""An archive of a run, put beside a service's own runs to be read alone. (docs/backup.md)

An archive may come from anyone. Its members are checked byte for byte (`archives.py`), its commits
by their ids and its record by the offline checker's rules (`imported_commits.py`), its events by
their chain and its rows by the record (`imported_rows.py`). All of that happens in one transaction
and in a quarantine: a refused archive leaves nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from ..domain.errors import ConflictError, NotFoundError
from ..domain.identifiers import identifier_problem
from ..domain.naming import branch_name, branch_ref, snapshot_ref
from ..domain.printable import one_line
from ..models import Run
from ..store import runs
from ..store.nodes import Checkpoint
from ..views.exports import ImportAnswer, RunManifest
from .archives import Archive, ArchiveError, open_archive
from .context import AppContext
from .exports import BUNDLE, KIND, MEMBERS, ROWS
from .imported_commits import check_commits
from .imported_rows import check_rows, put_rows
from .opening import locked_session
from .projection import roll_forward

# What rows that Autopack did not write lead to, in the database or in a view of them.
_MISFITS: Final = (
    *(DBAPIError, ValidationError, NotFoundError),
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)


class ImportConflictError(ConflictError):
    """A run of that name is here already, with other content."""

    code = "run_exists"


class BaseMissingError(ConflictError):
    """The repository does not have the commit that the run started from."""

    code = "base_missing"


def import_run(context: AppContext, path: Path, revisions: Collection[str]) -> ImportAnswer:
    """Put a run of another service beside this one's, to be read alone.

    The same archive again changes nothing. `revisions` are those of the schema that this Autopack
    knows. Raises ArchiveError, ImportConflictError, BaseMissingError, RefNameTakenError.
    """
    with open_archive(path, KIND, MEMBERS) as archive:
        manifest = _read_manifest(archive, path, revisions)
        run_id = manifest.run_id
        with locked_session(context, run_id) as session:
            known = runs.find_run_by_any_case(session, run_id)
            if known is not None:
                return _known(known, manifest)
            repository = context.repository
            if not repository.has_commit(manifest.base_commit):
                raise BaseMissingError(
                    f"run '{run_id}' started from {manifest.base_commit} of"
                    f" '{manifest.base_branch}', which {repository.git_dir} does not have: fetch it"
                )
            repository.require_free_ref(branch_ref(run_id))
            repository.require_free_ref(snapshot_ref(branch_name(run_id)))
            record, tags = check_commits(context.repository, archive, manifest)
            session.commit()
            session.begin_change()
            try:
                put_rows(context, session, archive, manifest)
                run = runs.get_run(session, run_id)
                check_rows(session, run, manifest, record, tags)
            except _MISFITS as error:
                session.rollback()
                why = one_line(str(getattr(error, "orig", error)).strip())[:300]
                raise ArchiveError(f"{path}: {ROWS} is not what Autopack writes: {why}") from None
            except BaseException:
                session.rollback()
                raise
            # The same bytes as in the quarantine; no ref names these objects before the commit.
            repository.bundles.read(archive.open(BUNDLE), max_bytes=archive.size(BUNDLE))
            session.commit()
            run = runs.lock_run(session, run_id)
            roll_forward(context, session, run, Checkpoint(0))
            session.commit()
            return ImportAnswer(
                run_id=run_id, state=run.state, head_commit=run.head_commit, is_new=True
            )


def _read_manifest(archive: Archive, path: Path, revisions: Collection[str]) -> RunManifest:
    try:
        manifest = RunManifest.model_validate(archive.manifest)
    except ValidationError as error:
        place = one_line(".".join(map(str, error.errors()[0]["loc"])))
        raise ArchiveError(f"{path}: manifest.json: {place} is wrong") from None
    problem = identifier_problem(manifest.run_id)
    if problem:
        raise ArchiveError(f"{path}: manifest.json: {problem}")
    if manifest.revision not in revisions:
        raise ArchiveError(
            f"{path} has the schema {one_line(manifest.revision)[:80]}, which this Autopack does"
            f" not know: Autopack {one_line(manifest.autopack)[:40]} made it. Update Autopack."
        )
    return manifest


def _known(run: Run, manifest: RunManifest) -> ImportAnswer:
    same = (run.run_id, run.head_commit, run.event_hash) == (
        manifest.run_id,
        manifest.head_commit,
        manifest.event_hash,
    )
    if not same:
        raise ImportConflictError(
            f"there is a run '{run.run_id}' already, whose branch ends at {run.head_commit}; the"
            f" archive's ends at {manifest.head_commit}"
        )
    return ImportAnswer(
        run_id=run.run_id, state=run.state, head_commit=run.head_commit, is_new=False
    )
