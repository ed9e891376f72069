"""What else may fail in the midst of a change: the database, a ref's lock, a ref, a leftover."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx
import psycopg2
import pytest
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient

from autopack.config import Settings
from autopack.gitrepo import RecordedRef
from autopack.gitrepo.errors import GitFailedError
from autopack.gitrepo.refs import PreparedRefs
from autopack.gitrepo.repository import Repository
from autopack.main import create_app
from autopack.store import runs
from autopack.store.session import RowSession

from .consistency import assert_consistent

if TYPE_CHECKING:
    from tests.conftest import GitRepo

    from .conftest import Stage

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]
RUN = "run-001"
REF = f"refs/heads/autonomous/{RUN}"
RESULT = f"/runs/{RUN}/phases/P0/builder_result"
PLAN: Json = {
    "run": {"run_id": RUN},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
    "phases": [
        {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T1", "name": "Do it"}
        for index in range(3)
    ],
}
PATCH: Json = {
    "status": "success",
    "patch_content": "diff --git a/new.txt b/new.txt\nnew file mode 100644\n"
    "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+new\n",
}


@pytest.fixture
def started(client: TestClient) -> TestClient:
    assert client.post("/runs/start", json=PLAN).status_code == 201
    return client


def terminate_backends(database_url: str) -> None:
    """End every connection of the service, as a restart of Postgres does."""
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND application_name = 'autopack'"
        )
    connection.close()


STEPS_BEFORE_THE_COMMIT = {
    "under_the_lock": (runs, "read_state"),
    "with_objects_written": (Repository, "write_commit"),
    "with_refs_prepared": (PreparedRefs, "__init__"),
}


@pytest.mark.parametrize("step", STEPS_BEFORE_THE_COMMIT)
def test_a_database_that_goes_away_before_the_commit_leaves_nothing(
    started: TestClient,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    owner, name = STEPS_BEFORE_THE_COMMIT[step]
    _fail_once_after(monkeypatch, settings, owner, name)
    refused = started.post(RESULT, json=PATCH)
    assert refused.status_code == 503, refused.text
    answer = started.post(RESULT, json=PATCH)
    assert answer.status_code == 200, answer.text
    assert "Idempotency-Replayed" not in answer.headers
    assert_consistent(settings)


def test_a_database_failure_after_the_commit_is_reported_as_a_recorded_change(
    started: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_once_after(monkeypatch, settings, PreparedRefs, "commit")
    refused = started.post(RESULT, json=PATCH)
    assert refused.status_code == 503, refused.text
    assert refused.json()["code"] == "projection_lagging"
    answer = started.post(RESULT, json=PATCH)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert_consistent(settings)


def test_a_commit_whose_answer_is_lost_is_reported_as_unknown_and_has_one_effect(
    started: TestClient, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection breaks between Postgres' commit and its word for it."""
    commit = RowSession.commit
    lost = threading.Event()

    def commit_and_lose(session: RowSession) -> None:
        commit(session)
        if not lost.is_set():
            lost.set()
            raise OperationalError("COMMIT", {}, Exception("gone"), connection_invalidated=True)

    def arm(*arguments: Any) -> None:
        prepared(*arguments)
        monkeypatch.setattr(RowSession, "commit", commit_and_lose)

    prepared = PreparedRefs.__init__
    monkeypatch.setattr(PreparedRefs, "__init__", arm)
    refused = started.post(RESULT, json=PATCH)
    assert refused.status_code == 503, refused.text
    assert refused.json()["code"] == "outcome_unknown"
    answer = started.post(RESULT, json=PATCH)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert_consistent(settings)


def test_a_fresh_lock_on_the_branch_uses_no_try_and_a_stale_one_is_removed(
    started: TestClient, settings: Settings, git_repo: GitRepo
) -> None:
    lock = git_repo.path / ".git" / f"{REF}.lock"
    lock.touch()
    refused = started.post(RESULT, json=PATCH)
    assert refused.status_code == 503, refused.text
    assert refused.json()["code"] == "branch_locked"
    assert started.get(f"/runs/{RUN}/phases/P0/attempts").json()["attempts"] == []
    os.utime(lock, (0, 0))  # as a git that was killed with its machine leaves it
    assert started.post(RESULT, json=PATCH).status_code == 200
    assert_consistent(settings)


def test_a_stale_lock_met_while_rolling_forward_is_removed(
    started: TestClient, settings: Settings, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = git_repo.path / ".git" / f"{REF}.lock"
    with monkeypatch.context() as broken:
        broken.setattr(PreparedRefs, "commit", _fail)
        assert started.post(RESULT, json=PATCH).json()["code"] == "projection_lagging"
    lock.touch()
    os.utime(lock, (0, 0))
    answer = started.post(RESULT, json=PATCH)
    assert answer.headers["Idempotency-Replayed"] == "true"
    assert_consistent(settings)


def test_a_snapshot_whose_tag_was_not_made_is_made_by_the_next_request(
    started: TestClient, settings: Settings, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Branch and tag are two files: a machine may stop between them."""
    with monkeypatch.context() as broken:
        broken.setattr(runs, "mark_mirrored", _fail)
        assert started.post(RESULT, json=PATCH).status_code == 503
    (tag,) = git_repo.git("tag").split()
    git_repo.git("tag", "-d", tag)
    started.post(RESULT, json=PATCH)
    assert git_repo.git("tag").split() == [tag]
    assert_consistent(settings)


def test_a_run_that_cannot_follow_keeps_no_other_from_it_nor_the_service_from_starting(
    settings: Settings, started: TestClient, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = {**PLAN, "run": {"run_id": "run-002"}}
    assert started.post("/runs/start", json=second).status_code == 201
    with monkeypatch.context() as broken:
        broken.setattr(runs, "mark_mirrored", _fail)
        for name in (RUN, "run-002"):
            assert started.post(RESULT.replace(RUN, name), json=PATCH).status_code == 503
    roll_forward = Repository.roll_refs_forward
    (tag,) = git_repo.git("tag", "--list", "autonomous/run-002/*").split()
    git_repo.git("tag", "-d", *git_repo.git("tag").split())

    def roll_but_one_forward(repository: Repository, wanted: Sequence[RecordedRef]) -> None:
        if wanted[0].ref == REF:
            raise ZeroDivisionError("a fault of ours")
        roll_forward(repository, wanted)

    with monkeypatch.context() as broken:
        broken.setattr(Repository, "roll_refs_forward", roll_but_one_forward)
        with TestClient(create_app(settings)):
            assert git_repo.git("tag").split() == [tag]
    started.post(RESULT, json=PATCH)
    assert_consistent(settings)


def test_what_a_killed_service_left_in_its_scratch_folder_is_removed(stage: Stage) -> None:
    stage.must("POST", "/runs/start", PLAN)
    stage.kill_at("objects_verified")
    with pytest.raises(httpx.TransportError):
        stage.call("POST", RESULT, PATCH)
    stage.await_death()
    (left,) = (stage.settings.home / "scratch").iterdir()
    os.utime(left, (0, 0))
    stage.start()
    assert not list((stage.settings.home / "scratch").iterdir())
    stage.must("POST", RESULT, PATCH)
    stage.assert_consistent()


def test_a_scratch_folder_that_another_service_works_in_stays(
    settings: Settings, started: TestClient
) -> None:
    repository = Repository.open(settings)
    with repository.quarantine() as quarantine:
        os.utime(quarantine.folder, (0, 0))
        Repository.open(settings)
        assert quarantine.folder.is_dir()


def _fail(*_: object, **__: object) -> None:
    raise GitFailedError("for the sake of the test")


def _fail_once_after(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, owner: Any, name: str
) -> None:
    original = getattr(owner, name)
    assert settings.database_url is not None
    url = settings.database_url.replace("+psycopg2", "")
    failed = threading.Event()

    def failing(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if not failed.is_set():
            failed.set()
            terminate_backends(url)
        return result

    monkeypatch.setattr(owner, name, failing)
