"""A backup of everything that the service alone has, and its restore. (docs/backup.md)

Postgres is the truth, so a backup is a dump of one moment of it. Beside the dump are the objects
that Postgres cannot give again: the base commits of runs, with their history. They are read after
the dump, so they may show more than it; the list of refs says what each was at that moment.

A restore puts the objects into the repository first, then the refs, then the database in one
transaction. If it is killed in between, it is simply called again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import ValidationError
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from .. import __version__
from ..domain.errors import AutopackError, ConflictError
from ..domain.naming import branch_ref, snapshot_ref
from ..domain.printable import one_line
from ..gitrepo import Repository
from ..mirror import Mirror
from ..models import Run
from ..store import backups as store
from ..store import nodes, runs
from ..store.nodes import Checkpoint
from ..store.session import RowSession
from ..views.backups import BackupAnswer, BackupManifest, RestoreAnswer, RestoredRun
from .archives import Archive, ArchiveError, chunks_of, new_archive, open_archive
from .context import AppContext
from .opening import locked_session
from .projection import is_behind, project, project_backlog, roll_forward
from .verifying import run_problems

KIND: Final = "autopack-backup"
DUMP: Final = "database.dump"
REFS: Final = "refs"
RULESET: Final = "ruleset.json"
BUNDLE: Final = "repository.bundle"
MEMBERS: Final = (DUMP, REFS, RULESET, BUNDLE)

_HEADS: Final = "refs/heads/autonomous/"
_TAGS: Final = "refs/tags/autonomous/"
_ASIDE: Final = "refs/autopack/before-restore"
_LINE: Final = re.compile(r"([0-9a-f]{40}) (refs/(?:heads|tags)/[^\0-\x20\x7f~^:?*\[\\]+)")

# Takes a dump of a snapshot, of this schema, snapshot and major version of the server. Returns the
# major version of the program that made it, and the bytes.
TakeDump = Callable[[str, str, int], tuple[int, Iterator[bytes]]]
LoadDump = Callable[[Iterator[bytes]], None]


class NothingToBackUpError(ConflictError):
    code = "nothing_to_back_up"


class DatabaseInUseError(ConflictError):
    """The database has a service, or rows that a restore would remove."""

    code = "database_in_use"


class OtherRepositoryError(ConflictError):
    """The backup is of another repository or project."""

    code = "other_repository"


def back_up(
    engine: Engine, repository: Repository, mirror: Mirror, project_id: str, path: Path,
    take_dump: TakeDump,
) -> BackupAnswer:  # fmt: skip
    """Write a backup of this moment; services may go on working.

    Raises ArchiveExistsError, ArchiveNotWrittenError, NothingToBackUpError, and what git or
    `take_dump` raise; no file is left then.
    """
    with new_archive(path) as archive:
        with store.open_snapshot(engine) as snapshot:
            revision = snapshot.revision()
            if revision is None:
                raise NothingToBackUpError(
                    "the database has no tables: there is nothing to back up"
                )
            known, tags, schema = snapshot.runs(), snapshot.tags(), snapshot.schema()
            server = snapshot.server_major()
            program, dump = take_dump(schema, snapshot.name, server)
            archive.add(DUMP, dump)
        bundles = repository.bundles
        base = repository.base().branch
        bases = {f"refs/heads/{name}" for name in {base, *(run.base_branch for run in known)}}
        # The objects of all that is there now, and the ids that the moment of the dump had.
        now = bundles.list_refs(_HEADS, _TAGS, *bases)
        refs = _refs_at(known, tags, now)
        archive.add(REFS, ["".join(f"{oid} {ref}\n" for ref, oid in refs.items()).encode()])
        archive.add(RULESET, [mirror.read_ruleset(project_id) or b""])
        named = {oid for run in known for oid in (run.base_commit, run.head_commit)}
        archive.add(BUNDLE, bundles.write(now, sorted(bundles.existing(named))))
        manifest = BackupManifest(
            autopack=__version__,
            created_at=datetime.now(UTC),
            project_id=project_id,
            revision=revision,
            postgres=server,
            dump_program=program,
            schema_name=schema,
            root_commits=list(repository.root_commits()),
            is_shallow=(repository.git_dir / "shallow").exists(),
            runs=len(known),
            refs=len(refs),
        )
        archive.finish(manifest.model_dump(mode="json"))
    warnings = []
    if manifest.is_shallow:
        warnings.append(
            "the clone is shallow, so the archive lacks older commits: restore it into a clone of"
            " the remote, or run `git fetch --unshallow` and make another backup"
        )
    return BackupAnswer(
        file=str(path), size_bytes=path.stat().st_size, manifest=manifest, warnings=warnings
    )


def _refs_at(
    known: list[store.KnownRun], tags: list[tuple[str, str]], now: dict[str, str]
) -> dict[str, str]:
    """Return what each ref was at the moment of the dump, by what the database says of it.

    A ref that is not there now stays out: a person removed it, or it comes from Postgres again.
    """
    refs = dict(now)
    recorded = {branch_ref(run.run_id): run.head_commit for run in known if not run.is_moved}
    recorded |= {snapshot_ref(tag): oid for tag, oid in tags}
    refs.update({ref: oid for ref, oid in recorded.items() if ref in now})
    mine = {branch_ref(run.run_id).replace(_HEADS, _TAGS) + "/" for run in known}
    for ref in now:
        of_run = f"{_TAGS}{ref.removeprefix(_TAGS).split('/')[0]}/"
        if ref.startswith(_TAGS) and ref not in recorded and of_run in mine:
            del refs[ref]  # a phase was completed after the dump
    return refs


@contextmanager
def open_backup(path: Path) -> Iterator[tuple[Archive, BackupManifest]]:
    """Open a backup and check every byte of it. Raises ArchiveError."""
    with open_archive(path, KIND, MEMBERS) as archive:
        try:
            manifest = BackupManifest.model_validate(archive.manifest)
        except ValidationError as error:
            place = ".".join(map(str, error.errors()[0]["loc"]))
            raise ArchiveError(f"{path}: manifest.json: {one_line(place)} is wrong") from None
        yield archive, manifest


def require_same_project(
    manifest: BackupManifest, repository: Repository, project: str, *, is_default: bool
) -> None:
    """Check that a backup belongs to this repository and project; an empty repository may be any.

    Raises OtherRepositoryError.
    """
    if manifest.project_id != project and not is_default:
        raise OtherRepositoryError(
            f"the backup is of the project '{manifest.project_id}', not of '{project}': a further"
            " project gets back its own backups alone"
        )
    if manifest.project_id != project:
        raise OtherRepositoryError(
            f"the backup is of the project '{manifest.project_id}', and this home is of"
            f" '{project}': restore it with AUTOPACK_PROJECT_ID={manifest.project_id}, or in"
            " another home"
        )
    has_commits = bool(repository.bundles.list_refs("refs/heads/", "refs/remotes/"))
    roots = manifest.root_commits
    if has_commits and roots and not repository.bundles.existing(roots):
        raise OtherRepositoryError(
            f"the backup is of a repository whose first commit is {roots[0]}, and"
            f" {repository.git_dir} does not have it: call this in a clone of that repository, or"
            " in an empty one"
        )


def restore_repository(
    archive: Archive, repository: Repository
) -> tuple[dict[str, str], list[str]]:
    """Put a backup's objects and refs into the repository.

    Refs of runs that are elsewhere now are kept below `refs/autopack/before-restore`; branches that
    are not of runs are only made if they are missing. Returns what was set aside, with its new
    place, and the branches of runs that the backup does not know.
    """
    bundles = repository.bundles
    wanted = _read_refs(archive)
    bundles.read(archive.open(BUNDLE))
    now = bundles.list_refs("refs/heads/", "refs/tags/")
    ours = {ref: oid for ref, oid in now.items() if ref.startswith((_HEADS, _TAGS))}
    mine = {_run_of(ref) for ref in wanted if ref.startswith(_HEADS)}
    aside = {
        ref: oid for ref, oid in ours.items() if _run_of(ref) in mine and wanted.get(ref) != oid
    }
    places = {ref: f"{_ASIDE}/{oid[:12]}/{ref.removeprefix('refs/')}" for ref, oid in aside.items()}
    kept = bundles.list_refs(_ASIDE)
    bundles.put_refs({places[ref]: oid for ref, oid in aside.items()}, kept)
    bundles.remove_refs(aside)
    here = bundles.existing(wanted.values())
    # An object that is not in the bundle was not written yet; Postgres gives it again.
    bundles.put_refs(
        {
            ref: oid
            for ref, oid in wanted.items()
            if oid in here and (ref.startswith((_HEADS, _TAGS)) or ref not in now)
        },
        {ref: oid for ref, oid in now.items() if ref not in aside},
    )
    unknown = [ref for ref in ours if ref.startswith(_HEADS) and ref not in wanted]
    return places, [ref.removeprefix("refs/heads/") for ref in unknown if ref not in aside]


def _run_of(ref: str) -> str:
    return ref.removeprefix(_HEADS).removeprefix(_TAGS).split("/")[0]


def _read_refs(archive: Archive) -> dict[str, str]:
    refs = {}
    for line in archive.open(REFS).read().decode(errors="surrogateescape").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or ".." in line:
            raise ArchiveError(f"{REFS} has the line {one_line(line)[:100]!r}, which is no ref")
        refs[match[2]] = match[1]
    return refs


@contextmanager
def alone(engine: Engine, *, is_replacing: bool, is_known: bool) -> Iterator[None]:
    """Hold a database that may be restored into, so that no service starts meanwhile.

    `is_known`: this Autopack knows the present schema, and can remove it. Raises
    DatabaseInUseError where a service or an earlier restore works on the database, or it has rows
    and is not to be replaced.
    """
    with Session(engine) as session:
        if nodes.is_served(session):
            raise DatabaseInUseError("a service works on this database: stop it first")
        found = store.work_in(session.connection())
        if found is not None and not is_replacing:
            raise DatabaseInUseError(
                f"the database is not empty: it has {found}. --replace removes all of it"
            )
        if not is_known:
            raise DatabaseInUseError(
                "the database has a schema that this Autopack does not know: restore into an empty"
                " database"
            )
        # Only the advisory lock goes on; a lock on a table would stop the restore.
        session.commit()
        if nodes.is_served(session, is_kept=True):
            raise DatabaseInUseError("a service works on this database: stop it first")
        if store.is_being_restored(session.connection()):
            raise DatabaseInUseError(
                "the pg_restore of a restore that was killed still works on this database: call it"
                " again in a moment"
            )
        yield


def restore_rows(engine: Engine, archive: Archive, load: LoadDump) -> None:
    """Put a backup's rows into the database, whose schema is then the backup's.

    `load` is one transaction, so a restore that is killed leaves an empty database or a whole one.
    """
    with engine.begin() as connection:
        store.remove_everything(connection)
    load(chunks_of(archive.open(DUMP)))


def restore_ruleset(context: AppContext, archive: Archive, *, is_replacing: bool) -> None:
    """Put the operator's ruleset file back.

    Call it before the process is a member of its node, which writes a missing file again by the
    version of the last run: the operator may have edited the file since.
    """
    context.mirror.prepare()
    ruleset = archive.open(RULESET).read()
    if ruleset:
        context.mirror.write_ruleset(
            context.settings.project_id, ruleset, only_if_absent=not is_replacing
        )


def rebuild(
    context: AppContext, archive: Archive, told: Callable[[int], None]
) -> list[RestoredRun]:
    """Rebuild what is lost of branches and files from Postgres, and verify every run.

    `told` is called with the number of runs that are done. A problem of one run does not stop the
    others.
    """
    refs = _read_refs(archive)
    with context.reading() as session:
        project_backlog(context, session)
        names = runs.list_names(session)
    found = []
    for number, run_id in enumerate(names, 1):
        found.append(_rebuild_run(context, run_id, has_branch=branch_ref(run_id) in refs))
        told(number)
    return found


def _rebuild_run(context: AppContext, run_id: str, *, has_branch: bool) -> RestoredRun:
    problem: list[str] = []
    with locked_session(context, run_id) as session:
        run = runs.lock_run(session, run_id)
        try:
            context.mirror.remove_files(run_id)
            if has_branch or run.ended_at is None or is_behind(context, session, run):
                roll_forward(context, session, run, Checkpoint(0))
            else:  # a person removed the branch of a finished run, as after a merge
                project(context, session, run, phases=None, index=None)
                runs.mark_mirrored(session, run, context.node_id)
        except AutopackError as error:
            problem.append(error.detail)
        session.commit()
        return _restored(context, session, run, problem)


def _restored(
    context: AppContext, session: RowSession, run: Run, problems: list[str]
) -> RestoredRun:
    return RestoredRun(
        run_id=run.run_id,
        state=run.state,
        head_commit=run.head_commit,
        events=run.event_sequence,
        has_branch=context.repository.read_ref(branch_ref(run.run_id)) is not None,
        problems=problems or run_problems(context.repository, session, run),
    )


def restore_answer(
    path: Path, manifest: BackupManifest, revision: str,
    refs: tuple[dict[str, str], list[str]], found: list[RestoredRun],
) -> RestoreAnswer:  # fmt: skip
    """Return the report of a restore."""
    set_aside, unknown = refs
    return RestoreAnswer(
        file=str(path),
        manifest=manifest,
        revision=revision,
        set_aside=set_aside,
        unknown_branches=unknown,
        runs=found,
        problems=sum(bool(run.problems) for run in found),
    )
