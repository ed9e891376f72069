"""One clone a database: a service on another clone is refused by name."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from autopack.config import Settings
from autopack.main import holding_clone, open_context
from autopack.migrating import DatabaseError
from autopack.services import serving
from autopack.services.context import AppContext
from autopack.services.serving import ClonePlace

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo

Serve = Callable[..., AbstractContextManager[AppContext]]

PLAN = {
    "run": {"run_id": "run-001"},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "Tier"}],
    "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Phase"}],
}


@pytest.fixture(autouse=True)
def _looks_when_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LOOK_SECONDS", 3_600)


@pytest.fixture
def serve(settings: Settings) -> Serve:
    """Serve the database as another process would, until the block ends."""

    @contextmanager
    def serve(*, has_ci_alone: bool = False, **places: Path) -> Iterator[AppContext]:
        with (
            open_context(settings.model_copy(update=places)) as context,
            holding_clone(context, has_ci_alone=has_ci_alone),
        ):
            yield context

    return serve


@pytest.fixture
def other_clone(git_repo: GitRepo, tmp_path: Path) -> dict[str, Path]:
    git_repo.git("clone", "--quiet", str(git_repo.path), str(tmp_path / "clone"))
    return places_at(tmp_path, "clone")


@pytest.fixture
def other_repository(tmp_path: Path) -> dict[str, Path]:
    from tests.conftest import make_git_repo

    make_git_repo(tmp_path / "stranger").git("commit", "--amend", "--quiet", "-m", "Another start")
    return places_at(tmp_path, "stranger")


def places_at(folder: Path, name: str) -> dict[str, Path]:
    return {
        "repo_path": folder / name,
        "home": folder / f"{name}-home",
        "autonomous_runs_dir": folder / f"{name}-runs",
    }


def test_a_service_on_another_clone_is_refused_by_name_while_the_first_is_alive(
    serve: Serve, git_repo: GitRepo, other_clone: dict[str, Path]
) -> None:
    with serve(), pytest.raises(DatabaseError) as refused, serve(**other_clone):
        pass
    for words in (str(git_repo.path), str(other_clone["repo_path"]), "DATABASE_URL"):
        assert words in str(refused.value)


def test_a_service_on_another_clone_takes_over_after_the_first_has_stopped(
    serve: Serve, other_clone: dict[str, Path]
) -> None:
    with serve():
        pass
    with serve(**other_clone), pytest.raises(DatabaseError), serve():
        pass


def test_services_on_one_clone_share_the_database(serve: Serve) -> None:
    with serve(), serve():
        pass


@pytest.mark.parametrize("name", ["home", "autonomous_runs_dir"])
def test_services_on_one_clone_are_refused_with_folders_of_their_own(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    with serve(), pytest.raises(DatabaseError), serve(**{name: tmp_path / "another"}):
        pass


def test_a_copy_of_the_clone_with_its_home_is_another_one(
    serve: Serve, git_repo: GitRepo, settings: Settings, tmp_path: Path
) -> None:
    with serve():
        copies = places_at(tmp_path, "copy")
        shutil.copytree(git_repo.path, copies["repo_path"])
        shutil.copytree(settings.home, copies["home"])
        runs_dir = settings.autonomous_runs_dir
        with (
            pytest.raises(DatabaseError),
            serve(**copies | {"autonomous_runs_dir": runs_dir}),
        ):
            pass


def test_a_clone_that_was_moved_with_its_home_is_the_same(
    serve: Serve, git_repo: GitRepo, settings: Settings, tmp_path: Path
) -> None:
    with serve():
        moved = places_at(tmp_path, "moved")
        git_repo.path.rename(moved["repo_path"])
        settings.home.rename(moved["home"])
        with serve(**moved | {"autonomous_runs_dir": settings.autonomous_runs_dir}):
            pass


def test_a_repository_without_common_history_is_refused_once_there_are_runs(
    app: FastAPI, serve: Serve, other_repository: dict[str, Path]
) -> None:
    from starlette.testclient import TestClient

    with serve():
        pass
    with serve(**other_repository):  # no run is lost by it
        pass
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        assert client.post("/runs/start", json=PLAN).status_code == 201
    with pytest.raises(DatabaseError, match="no history"), serve(**other_repository):
        pass


def test_only_ci_may_run_in_any_clone_of_the_repository(
    client: TestClient,
    serve: Serve,
    other_clone: dict[str, Path],
    other_repository: dict[str, Path],
) -> None:
    assert client.post("/runs/start", json=PLAN).status_code == 201
    with serve(has_ci_alone=True, **other_clone):
        pass
    with pytest.raises(DatabaseError), serve(has_ci_alone=True, **other_repository):
        pass


@pytest.fixture
def place(app: FastAPI, client: TestClient) -> Iterator[ClonePlace]:
    """The application's own hold; its connection is the only one that holds such a lock."""
    place = ClonePlace(app.state.context)
    yield place
    place.close()


def _cut_connections(context: AppContext) -> None:
    """Let Postgres lose every connection that holds the database for a clone."""
    with context.engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND objsubid = 1 AND pid <> pg_backend_pid()"
                # Other processes of the tests have locks in other databases of this server.
                " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )


def test_a_lost_connection_is_made_again(
    app: FastAPI, client: TestClient, place: ClonePlace, serve: Serve, other_clone: dict[str, Path]
) -> None:
    _cut_connections(app.state.context)
    place.look()
    with pytest.raises(DatabaseError), serve(**other_clone):
        pass
    assert client.post("/runs/start", json=PLAN).status_code == 201


def test_a_service_that_was_superseded_during_an_outage_records_nothing_more(
    app: FastAPI, client: TestClient, place: ClonePlace, serve: Serve, other_clone: dict[str, Path]
) -> None:
    _cut_connections(app.state.context)
    with serve(**other_clone):
        place.look()
        answer = client.post("/runs/start", json=PLAN)
        assert (answer.status_code, answer.json()["code"]) == (503, "superseded")
        health = client.get("/health")
        assert health.status_code == 503
        assert "another clone" in health.json()["checks"]["database"]["detail"]
    place.look()
    assert client.post("/runs/start", json=PLAN).status_code == 201
