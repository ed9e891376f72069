"""`autopack db upgrade` brings every project of a service to this version's schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import make_url, text
from tests.cli.test_commands import configure
from tests.conftest import make_git_repo
from tests.recovery.test_backup import must, service, start
from tests.test_database import migrate_to

from autopack.config import Settings
from autopack.contexts import of_project
from autopack.database import open_database
from autopack.migrating import newest_revision

if TYPE_CHECKING:
    from tests.cli.conftest import Terminal

pytestmark = pytest.mark.integration

EARLIER = "node_removed"


def test_all_open_projects_are_upgraded_and_one_that_cannot_be_stops_no_other(
    terminal: Terminal,
    settings: Settings,
    tmp_path: Path,
    copied_databases: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(monkeypatch, settings)
    of: dict[str, Settings] = {"": settings}
    with service(settings) as client:
        start(client, "run-1")
        for name in ("alpha", "beta"):
            folder = str(make_git_repo(tmp_path / name).path)
            must(client, "/projects", {"name": name, "repository": folder})
            with of_project(settings, name) as found:
                of[name] = found.settings
        client.base_url = client.base_url.join("/projects/beta/")
        start(client, "run-1")
    for each in of.values():
        with open_database(each) as database:
            migrate_to(database.engine, EARLIER)

    def asked(*arguments: str, exit_code: int) -> list[tuple[str, Any]]:
        """Return the revision of each project, or why there is none."""
        told = terminal.json("db", "upgrade", *arguments, exit_code=exit_code)
        found = [("", told["revision"])]
        for each in told["projects"]:
            found.append((each["project"], each["problem"] or each["revision"]))
            assert each["problem"] or ("pending" in each) == bool(arguments)
        return found

    old = [(name, EARLIER) for name in ("", "alpha", "beta")]
    assert asked("--check", exit_code=1) == old
    shown = terminal.run("db", "upgrade", "--check", exit_code=1)
    assert shown.count("beside a running service") == 3
    assert "Project 'beta':" in shown
    with open_database(settings) as database, database.autocommit.connect() as connection:
        name = make_url(str(of["alpha"].database_url)).database or ""
        connection.execute(text(f'ALTER DATABASE "{name}" RENAME TO "{name[:-1]}"'))
        (_, default), (_, alpha), (_, beta) = asked(exit_code=3)
        assert default == beta == newest_revision()
        assert "does not exist" in alpha
        connection.execute(text(f'ALTER DATABASE "{name[:-1]}" RENAME TO "{name}"'))
    assert "Project 'alpha':\nThe database is at" in terminal.run("db", "upgrade")
    assert asked("--check", exit_code=0) == [(name, newest_revision()) for name, _ in old]
    for its in (settings, of["beta"]):
        with open_database(its) as database, database.autocommit.connect() as connection:
            assert connection.scalars(text("SELECT run_id FROM runs")).all() == ["run-1"]
            connection.execute(text("UPDATE projects SET closed_at = now() WHERE name = 'alpha'"))
    assert [name for name, _ in asked("--check", exit_code=0)] == ["", "beta"]
