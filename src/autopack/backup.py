"""Backup and restore: Postgres' programs, the archive and the services connected. (docs/backup.md)

Unlike a service, a backup never migrates the database, so that it can be made before an upgrade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .config import PROJECT_FILE, Settings
from .contexts import as_node, beside_database, of_project
from .database import Database, DatabaseClock, open_database
from .gitrepo import Repository
from .migrating import DatabaseError, known_revisions, newest_revision
from .mirror import Mirror
from .postgres_tools import Address, PostgresToolError, dump, find_tool, restore
from .services import backups, exports, imports
from .services.context import AppContext
from .services.projects import make_missing_database
from .views.backups import BackupAnswer, BackupManifest, RestoreAnswer
from .views.exports import ExportAnswer, ImportAnswer

__all__ = ["PostgresToolError", "make_backup", "read_run", "restore_backup", "write_run"]


def make_backup(settings: Settings, path: Path, project: str | None = None) -> BackupAnswer:
    """Write a backup of a project at this moment, beside services that work on.

    Raises DatabaseError, PostgresToolError, RepositoryUnusableError and the errors of `of_project`
    and `back_up`.
    """
    with of_project(settings, project, may_be_closed=True) as its:
        return _make_backup(its.settings, path)


def _make_backup(settings: Settings, path: Path) -> BackupAnswer:
    repository = Repository.open(settings)
    with open_database(settings) as database:
        database.status()  # one line if it cannot be reached
        address = _address(database)

        def take_dump(schema: str, snapshot: str, server: int) -> tuple[int, Iterator[bytes]]:
            tool = find_tool("pg_dump", oldest=server, wanted=server)
            return tool.major, dump(tool, address, schema=schema, snapshot=snapshot)

        return backups.back_up(
            database.engine,
            repository,
            Mirror(settings.autonomous_runs_dir),
            settings.project_id,
            path.absolute(),
            take_dump,
        )


def write_run(
    settings: Settings, run_id: str, path: Path, project: str | None = None
) -> ExportAnswer:
    """Write a run that is over into an archive. Raises the errors of `export_run`."""
    with beside_database(settings, "cli", project) as context:
        return exports.export_run(context, run_id, path.absolute(), newest_revision())


def read_run(settings: Settings, path: Path, project: str | None = None) -> ImportAnswer:
    """Put a run's archive beside a project's runs. Raises the errors of `import_run`."""
    with beside_database(settings, "cli", project) as found, as_node(found) as context:
        return imports.import_run(context, path, known_revisions())


def restore_backup(
    settings: Settings,
    path: Path,
    project: str | None = None,
    *,
    is_replacing: bool = False,
    told: Callable[[int, int], None] = lambda _done, _all: None,
) -> RestoreAnswer:
    """Put a backup into the database, the repository and the runs directory of a project.

    The archive is checked whole before anything changes. A further project gets its database back
    if the server does not have it. `told` is called with the number of runs that are rebuilt, and
    of all. Raises ArchiveError, DatabaseError, PostgresToolError, RepositoryUnusableError and the
    errors of `of_project` and `services.backups`.
    """
    with (
        of_project(settings, project, may_be_closed=True) as its,
        backups.open_backup(path) as (archive, manifest),
    ):
        if manifest.revision not in known_revisions():
            raise DatabaseError(
                f"{path} has the schema {manifest.revision}, which this Autopack does not know: it"
                f" was made by Autopack {manifest.autopack}, which is newer. Update Autopack."
            )
        settings = _named(its.settings, manifest) if its.is_default else its.settings
        repository = Repository.open(settings, may_be_empty=True)
        backups.require_same_project(
            manifest, repository, settings.project_id, is_default=its.is_default
        )
        if its.beside is not None:
            make_missing_database(its.beside.autocommit, settings)
        with open_database(settings) as database:
            load = _loader(database, manifest)
            is_known = database.status().revision in {None, *known_revisions()}
            with backups.alone(database.engine, is_replacing=is_replacing, is_known=is_known):
                refs = backups.restore_repository(archive, repository)
                backups.restore_rows(database.engine, archive, load)
                database.migrate()
            repository.check()
            context = AppContext(
                settings,
                database.engine,
                database.autocommit,
                repository,
                Mirror(settings.autonomous_runs_dir),
                now=DatabaseClock(database.autocommit),
                is_default=its.is_default,
                node_id=repository.node_identity().node_id,
            )
            backups.restore_ruleset(context, archive, is_replacing=is_replacing)
            with as_node(context) as context:
                found = backups.rebuild(context, archive, lambda done: told(done, manifest.runs))
            revision = database.status().revision or ""
    return backups.restore_answer(path, manifest, revision, refs, found)


def _address(database: Database) -> Address:
    url = database.engine.url.set(drivername="postgresql")
    password = None if url.password is None else str(url.password)
    return Address(url.set(password=None).render_as_string(hide_password=False), password)


def _loader(database: Database, manifest: BackupManifest) -> Callable[[Iterator[bytes]], None]:
    """Return the function that loads the dump. Raises DatabaseError, PostgresToolError."""
    server = int(database.status().server_version.split(".")[0].split(" ")[0])
    if server < manifest.postgres:
        raise DatabaseError(
            f"the backup is of Postgres {manifest.postgres}, and this server is Postgres {server}:"
            f" restore it into Postgres {manifest.postgres} or newer"
        )
    tool = find_tool("pg_restore", oldest=manifest.dump_program, wanted=server)
    address = _address(database)
    return lambda chunks: restore(tool, address, chunks, schema=manifest.schema_name)


def _named(settings: Settings, manifest: BackupManifest) -> Settings:
    """Give a new home the project of the backup, unless the settings name one."""
    if (settings.home / PROJECT_FILE).exists() or "project_id" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"project_id": manifest.project_id})
