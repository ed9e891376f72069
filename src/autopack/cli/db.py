"""`autopack db`: the service's Postgres, embedded or not; of one project, `upgrade` of all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..config import Settings, SettingsError
from ..database import Database, open_database
from ..domain.errors import AutopackError, ErrorKind
from ..domain.projects import ProjectNotFoundError
from ..domain.retention import read_retention
from ..gitrepo.errors import RepositoryUnusableError
from ..gitrepo.tracked import require_untracked
from ..migrating import DatabaseError, one_line_errors
from .command import FINE, NO, UNAVAILABLE, WRONG_USE, CommandError, command_app, importing
from .completion import RunId
from .service import wanted_project
from .settings import read_service_settings, read_settings
from .terminal import JsonOption, hint, log_warnings_alone, print_json, print_table, say

if TYPE_CHECKING:
    from ..contexts import OpenProject
    from ..views.backups import RestoreAnswer

app = command_app()


@app.command()
def upgrade(
    check: Annotated[
        bool, typer.Option("--check", help="Show what would run, and change nothing.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Upgrade the schema of all open projects to this version's; `autopack serve` does so too.

    The default project is first, and its failure ends the command. One of the others that fails is
    named, the rest is done, and the command ends with 3. With --check it ends with 0 when every
    schema is this version's, 1 when migrations are pending.
    """
    look, tell = (_pending, _tell_pending) if check else (_upgraded, _tell_revision)
    with _opened(must_exist=check) as database:
        found = look(database)
        if not json:
            tell(found)
        further = []
        for project in _further(database):
            try:
                with open_database(project.settings, is_further=True) as its:
                    further.append({"project": project.name, "problem": None, **look(its)})
            except DatabaseError as error:
                further.append({"project": project.name, "problem": str(error)})
            if not json:
                _tell_project(further[-1], tell)
    if json:
        print_json({**found, "projects": further})
    if any(each["problem"] for each in further):
        return UNAVAILABLE
    return FINE if all(each["is_current"] for each in (found, *further)) else NO


def _further(database: Database) -> list[OpenProject]:
    with importing():
        from ..contexts import list_open_in  # slow
    with one_line_errors(database.engine):
        return list_open_in(read_settings(), database.engine)


def _upgraded(database: Database) -> dict[str, Any]:
    database.migrate()
    return _look(database)


def _pending(database: Database) -> dict[str, Any]:
    """Return the migrations that are pending, and which of them a running service notices."""
    found = _look(database)
    # No service uses an empty database.
    steps = [] if found["revision"] is None else database.pending_steps()
    pending = [
        {
            "revision": step.revision,
            "title": step.title,
            "is_safe": step.is_safe,
            "stop_first": step.stop_first,
            "long_locks": step.faults.long_locks,
        }
        for step in steps
    ]
    return {**found, "is_safe": all(step.is_safe for step in steps), "pending": pending}


def _tell_project(found: Mapping[str, Any], tell: Callable[[Mapping[str, Any]], None]) -> None:
    if found["problem"]:
        hint(f"autopack: project '{found['project']}': {found['problem']}")
        return
    say(f"Project '{found['project']}':")
    tell(found)


def _tell_revision(found: Mapping[str, Any]) -> None:
    say(f"The database is at revision {found['revision']}.")


def _tell_pending(found: Mapping[str, Any]) -> None:
    if found["is_current"]:
        say(f"The database is at revision {found['revision']}: no migration is pending.")
    elif not found["pending"]:
        say("The database is empty: `autopack db upgrade` makes its tables.")
    else:
        print_table(
            ("migration", "changes", "beside a running service"),
            [(step["revision"], step["title"], _safety(step)) for step in found["pending"]],
        )
        if not found["is_safe"]:
            say("Stop every service of an older version before `autopack db upgrade`.")


def _safety(step: Mapping[str, Any]) -> str:
    reasons = "; ".join(filter(None, (step["stop_first"], *step["long_locks"])))
    return "safe" if step["is_safe"] else f"stop it first: {reasons}"


@app.command()
def status(json: JsonOption = False) -> int:
    """Show where the database is and whether its schema is this version's.

    Ends with 0 when it is, 1 when it is not.
    """
    with _opened(must_exist=True, is_of_project=True) as database:
        found = _look(database)
    if json:
        print_json(found)
    else:
        print_table(("database", found["database"]), _rows(found))
    return FINE if found["is_current"] else NO


@app.command()
def shell(
    command: Annotated[
        str | None, typer.Option("--command", "-c", help="Run this SQL and exit.")
    ] = None,
) -> int:
    """Open psql on the database; the embedded Postgres runs until psql ends."""
    with _opened(must_exist=True, is_of_project=True) as database:
        url = database.engine.url.set(drivername="postgresql")
        address = url.set(password=None).render_as_string(hide_password=False)
        environment = dict(os.environ)
        if url.password is not None:
            environment["PGPASSWORD"] = str(url.password)  # not in the arguments, which `ps` shows
        words = [_psql(), "--dbname", address]
        # Ctrl-C is for psql, which cancels a statement.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            done = subprocess.run(
                [*words, "--command", command] if command else words,
                env=environment,
                check=False,
                preexec_fn=_handle_interrupts,
            )
        finally:
            signal.signal(signal.SIGINT, before)
    return done.returncode


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="The new file, which must not exist.")],
    json: JsonOption = False,
) -> None:
    """Write a backup of one project, database and repository, while services may work.

    The file has digests of keys, secrets of webhooks and all code of the runs: keep it safe.
    """
    with _one_line_errors() as settings:
        from ..backup import make_backup

        _require_database(settings)
        made = make_backup(settings, file, wanted_project())
    for warning in made.warnings:
        hint(f"autopack: warning: {warning}")
    if json:
        print_json(made)
    else:
        say(
            f"{made.file} has {made.manifest.runs} runs in"
            f" {made.size_bytes / 1_000_000:,.1f} MB, at revision {made.manifest.revision}."
        )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A backup.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove what the database has now.")
    ] = False,
    json: JsonOption = False,
) -> int:
    """Put a backup into database, repository and runs directory, and verify every run.

    Ends with 0 when every run is as it was, else with each problem and 1.
    """
    with _one_line_errors() as settings:
        from ..backup import restore_backup

        project = wanted_project()
        if project is not None:
            _require_database(settings)
        try:
            found = restore_backup(
                settings, file, project, is_replacing=replace, told=_tell_progress
            )
        except ProjectNotFoundError as error:
            raise CommandError(
                f"{error.detail}: `autopack projects create` adds it, then restore again"
            ) from error
    if json:
        print_json(found)
    else:
        say(*_report(found))
    return NO if found.problems else FINE


@app.command("export")
def export_run(
    run_id: RunId,
    file: Annotated[
        Path | None, typer.Argument(help="The new file (RUN.autopack.tar in this folder).")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Write one run that is over into a file that another service can import.

    The file has the run's code, patches and logs; no keys and no webhooks.
    """
    with _one_line_errors() as settings:
        _require_database(settings)
        from ..backup import write_run

        made = write_run(settings, run_id, file or Path(f"{run_id}.autopack.tar"), wanted_project())
    if json:
        print_json(made)
    else:
        say(f"{made.file} has run '{run_id}' in {made.size_bytes / 1_000_000:,.1f} MB.")


@app.command("import")
def import_run(
    file: Annotated[Path, typer.Argument(help="A run's archive.")], json: JsonOption = False
) -> None:
    """Put a run of another service beside this one's, to be read and verified, never changed."""
    with _one_line_errors() as settings:
        _require_database(settings)
        from ..backup import read_run

        found = read_run(settings, file, wanted_project())
    if json:
        print_json(found)
    else:
        what = "is imported" if found.is_new else "is here already"
        say(f"Run '{found.run_id}' {what}: {found.state} at {found.head_commit}.")


@app.command()
def retain(
    older_than: Annotated[
        str | None,
        typer.Option(metavar="AGE", help="Instead of AUTOPACK_RETENTION, such as 90d or 12w."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    json: JsonOption = False,
) -> None:
    """Remove the details of runs that were settled so long ago, as the service does every hour.

    Their records stay on their branches. Services may go on working.
    """
    with _one_line_errors() as settings:
        age = settings.retention
        try:
            age = read_retention(older_than) if older_than is not None else age
        except ValueError as error:
            raise CommandError(f"--older-than: {error}") from error
        if age is None:
            raise CommandError("AUTOPACK_RETENTION is not set: --older-than says an age")
        _require_database(settings)
        from ..contexts import as_node, beside_database, retain

        with (
            beside_database(settings, "cli", wanted_project()) as opened,
            as_node(opened) as context,
        ):
            found = retain(context, age, is_dry_run=dry_run)
    if json:
        print_json(found)
        return
    verb = "would lose" if dry_run else "have lost"
    say(f"{found.runs} runs {verb} their details: {found.bytes / 1_000_000:,.1f} MB.")
    for count, why in (
        (found.kept_not_settled, "are not merged, dismissed, continued or cancelled so long ago"),
        (found.kept_without_record, "have no whole record in the repository"),
        (found.kept_in_use, "wait for a push, or a run that builds on them has its details"),
    ):
        if count:
            say(f"{count} older runs keep them: they {why}.")


def _tell_progress(done: int, total: int) -> None:
    if done % 1000 == 0:
        hint(f"{done} of {total} runs are rebuilt.")


def _report(found: RestoreAnswer) -> Iterator[str]:
    for run in found.runs:
        for problem in run.problems:
            yield f"{run.run_id}: {problem}"
    for ref, place in found.set_aside.items():
        yield f"{ref} was elsewhere: its commits are at {place}"
    for branch in found.unknown_branches:
        yield f"{branch}: the backup has no such run; its branch stays"
    without = sum(not run.has_branch for run in found.runs)
    if without:
        yield f"{without} runs had no branch in the repository when the backup was made."
    good = len(found.runs) - found.problems
    yield (
        f"{good} of {len(found.runs)} runs are as they were at"
        f" {found.manifest.created_at:%Y-%m-%d %H:%M:%S} UTC; the database is at revision"
        f" {found.revision}."
    )


@contextmanager
def _one_line_errors() -> Iterator[Settings]:
    """Read the settings, and turn every error into one line. Raises CommandError."""
    log_warnings_alone()
    with importing():
        from ..postgres_tools import PostgresToolError
    try:
        settings = read_service_settings()
        require_untracked(settings)
        yield settings
    except SettingsError as error:
        raise CommandError(str(error)) from error
    except (DatabaseError, PostgresToolError) as error:
        raise CommandError(str(error), UNAVAILABLE) from error
    except AutopackError as error:
        code = UNAVAILABLE if error.kind is ErrorKind.UNAVAILABLE else WRONG_USE
        raise CommandError(error.detail, code) from error


def _require_database(settings: Settings) -> None:
    if not exists(settings):
        raise CommandError(
            f"{settings.home} has no database yet: `autopack serve` creates one there;"
            " DATABASE_URL names another.",
            NO,
        )


def _handle_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _look(database: Database) -> dict[str, Any]:
    status = database.status()
    url = database.engine.url.set(drivername="postgresql")
    return {
        "database": url.render_as_string(hide_password=True),
        "is_current": status.is_current,
        **asdict(status),
        "now": status.now.isoformat(),
    }


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    revision = found["revision"] or "none: it is empty"
    wanted = "" if found["is_current"] else f"; this version's: {found['head']}"
    yield "schema", f"{revision}{wanted}"
    yield "Postgres", found["server_version"]
    yield "size", f"{found['size_bytes'] / 1_000_000:,.1f} MB"


@contextmanager
def _opened(*, must_exist: bool = False, is_of_project: bool = False) -> Iterator[Database]:
    """Open the default project's database, or that of the chosen project. Raises CommandError."""
    log_warnings_alone()
    try:
        settings = read_service_settings() if is_of_project else read_settings()
        require_untracked(settings)
        if must_exist:
            _require_database(settings)
        with ExitStack() as stack:
            if is_of_project and (project := wanted_project()) is not None:
                with importing():
                    from ..contexts import of_project  # slow, and the default project needs it not

                its = stack.enter_context(of_project(settings, project, may_be_closed=True))
                settings = its.settings
            yield stack.enter_context(open_database(settings))
    except (SettingsError, RepositoryUnusableError) as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        raise CommandError(str(error), UNAVAILABLE) from error
    except AutopackError as error:
        raise CommandError(error.detail) from error


def exists(settings: Settings) -> bool:
    """Return whether there is a database; showing its status must not create one."""
    is_made = (settings.home / "postgres" / "data" / "PG_VERSION").exists()
    return settings.database_url is not None or is_made


def _psql() -> str:
    """Return the system's psql, else the bundled one. Raises CommandError."""
    found = shutil.which("psql")
    if found is not None:
        return found
    try:
        from ..embedded_postgres import EmbeddedPostgresError, programs

        return str(programs() / "psql")
    except (ImportError, EmbeddedPostgresError) as error:
        why = f"psql is not installed, and the bundled one is missing: {error}"
        raise CommandError(why) from error
