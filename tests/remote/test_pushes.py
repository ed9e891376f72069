"""A run's branch is pushed in spite of failures of the remote, and nothing waits for it."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text
from tests.waiting import PATIENCE_SECONDS

from autopack.config import Settings
from autopack.contexts import as_node, open_context
from autopack.gitrepo import GitFailedError, Remote
from autopack.services.context import AppContext
from autopack.services.pushes import (
    LONGEST_WAIT,
    push_branch,
    resume_pushes,
    retry_wait,
)
from autopack.store import nodes

from .conftest import Bare
from .git_server import GitServer

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

Json = dict[str, Any]
BRANCH = "refs/heads/autonomous/run-001"
TAGS = "refs/tags/autonomous/run-001/tier-T0"


@pytest.fixture
def settings(settings: Settings, server: GitServer) -> Settings:
    address = server.url.replace("://", "://ada:s3cr3t@") + "/bare.git"
    return settings.model_copy(update={"git_remote": SecretStr(address)})


@dataclass
class Desk:
    """The service, its remote, and a worker by hand with a clock that only pushes go by."""

    client: TestClient
    repo: GitRepo
    bare: Bare
    context: AppContext
    # Ahead of the service's: what is wanted now is due, and no slow machine makes more due.
    now: datetime = field(default_factory=lambda: datetime.now(UTC) + timedelta(hours=1))

    def start(self, run_id: str = "run-001", phases: int = 3) -> None:
        plan = {
            "run": {"run_id": run_id},
            "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "Tier"}],
            "phases": [
                {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T0", "name": "Phase"}
                for index in range(phases)
            ],
        }
        assert self.client.post("/runs/start", json=plan).status_code == 201

    def build(self, phase_id: str, run_id: str = "run-001") -> None:
        """Let a phase be completed, by a patch that adds a file of its name."""
        response = self.client.post(
            f"/runs/{run_id}/phases/{phase_id}/builder_result",
            json={"status": "success", "patch_content": new_file(phase_id)},
        )
        assert response.status_code == 200, response.text

    def post(self, path: str, **body: object) -> None:
        response = self.client.post(f"/runs/run-001/{path}", json=body)
        assert response.status_code == 200, response.text

    def push(self, seconds: float = 0) -> float:
        """Do the job that is due so many seconds later; if none is, return how long none is."""
        self.now += timedelta(seconds=seconds)
        now = self.now
        with self.context.engine.begin() as connection:
            job = connection.execute(
                text(
                    "SELECT id, args, coalesce(scheduled_at, :now) AS due FROM procrastinate_jobs"
                    " WHERE task_name = 'push_branch' AND status = 'todo' ORDER BY due, id LIMIT 1"
                    " FOR UPDATE"
                ),
                {"now": now},
            ).one_or_none()
            if job is None:
                return math.inf
            if job.due > now:
                return float((job.due - now).total_seconds())
            begin = "UPDATE procrastinate_jobs SET status = 'doing' WHERE id = :id"
            connection.execute(text(begin), {"id": job.id})
        push_branch(replace(self.context, now=lambda: now), self.remote, **job.args)
        with self.context.engine.begin() as connection:
            end = "DELETE FROM procrastinate_jobs WHERE id = :id"
            connection.execute(text(end), {"id": job.id})
        return 0

    @property
    def remote(self) -> Remote:
        assert self.context.repository.remote is not None
        return self.context.repository.remote

    def status(self, run_id: str = "run-001") -> Json:
        response = self.client.get(f"/runs/{run_id}/integration_status")
        assert response.status_code == 200, response.text
        status: Json = response.json()["remote"]
        return status

    def health(self) -> Json:
        response = self.client.get("/health")
        assert response.status_code == 200
        answer: Json = response.json()
        assert answer["status"] == "healthy"
        return answer["checks"]["remote"]  # type: ignore[no-any-return]

    def head(self, run_id: str = "run-001") -> str:
        return self.repo.git("rev-parse", f"refs/heads/autonomous/{run_id}")

    def rows(self) -> int:
        with self.context.engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM pushes")).scalar_one())


@pytest.fixture
def desk(client: TestClient, app: FastAPI, git_repo: GitRepo, bare: Bare) -> Desk:
    return Desk(client, git_repo, bare, app.state.context)


# When and what


def test_a_snapshot_brings_the_branch_and_its_tag_to_the_remote(desk: Desk) -> None:
    desk.start()
    assert desk.rows() == 0  # no snapshot yet
    desk.build("P0")
    assert desk.status()["is_up_to_date"] is False
    assert desk.push() == 0
    tag = desk.repo.git("rev-parse", f"{TAGS}/phase-P0")
    assert desk.bare.refs() == {BRANCH: desk.head(), f"{TAGS}/phase-P0": tag}
    status = desk.status()
    assert status.pop("pushed_at")
    assert status == {
        "url": desk.remote.url,
        "pushed_commit": desk.head(),
        "is_up_to_date": True,
        "attempts": 0,
        "last_error": None,
        "next_try_at": None,
    }


def test_what_ci_elsewhere_has_to_judge_is_pushed_before_its_verdict(desk: Desk) -> None:
    rules = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert desk.client.put("/project/ruleset", json=rules).status_code == 200
    desk.start(phases=1)
    desk.build("P0")
    assert desk.rows() == 1
    assert desk.push() == 0
    assert desk.bare.refs() == {BRANCH: desk.head()}  # without a snapshot: nothing is green yet


def test_several_snapshots_are_one_push(desk: Desk, server: GitServer) -> None:
    desk.start()
    for phase_id in ("P0", "P1", "P2"):
        desk.build(phase_id)
    assert desk.push() == 0
    assert desk.push() > 0  # nothing is left
    assert server.push_count == 1
    assert desk.bare.refs()[BRANCH] == desk.head()
    assert len(desk.bare.refs()) == 4


def test_a_run_that_ends_without_a_snapshot_is_pushed_too(desk: Desk) -> None:
    desk.start()
    desk.post("cancel", reason="enough")
    desk.push()
    assert desk.bare.refs() == {BRANCH: desk.head()}


def test_what_is_rolled_back_after_the_end_is_pushed(desk: Desk) -> None:
    desk.start(phases=2)
    desk.build("P0")
    desk.build("P1")
    desk.push()
    before = desk.head()
    desk.post("rollback", to_phase="P0", reason="no good")
    assert desk.head() != before
    assert desk.status()["is_up_to_date"] is False
    desk.push()
    assert desk.bare.refs()[BRANCH] == desk.head()
    changed = desk.bare.git("diff", "--name-only", before, desk.head()).split()
    assert [path for path in changed if not path.startswith(".autonomous_runs/")] == ["P1"]


@pytest.mark.safety_critical
def test_main_never_arrives_on_the_remote(desk: Desk) -> None:
    desk.start(phases=1)
    desk.repo.commit({"on-main.txt": "not yours\n"})
    desk.build("P0")
    desk.push()
    assert all("/autonomous/run-001" in ref for ref in desk.bare.refs())


@pytest.mark.safety_critical
def test_the_wish_to_push_is_recorded_with_the_change_or_not_at_all(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.start()

    def fail(_: object) -> None:
        raise GitFailedError("git died")

    with monkeypatch.context() as patch:
        patch.setattr(desk.context.repository, "prepare_refs", fail)
        response = desk.client.post(
            "/runs/run-001/phases/P0/builder_result",
            json={"status": "success", "patch_content": new_file("P0")},
        )
        assert response.status_code == 503
        assert desk.rows() == 0
    desk.build("P0")
    assert desk.rows() == 1


# Remotes that fail


@pytest.mark.safety_critical
def test_a_remote_that_fails_is_shown_and_tried_again_ever_less_often(desk: Desk) -> None:
    desk.bare.refuse_pushes("frozen")
    desk.start()
    desk.build("P0")
    assert desk.health() == {"status": "ok", "detail": None}
    desk.push()
    status = desk.status()
    assert status["attempts"] == 1
    assert "frozen" in status["last_error"]
    assert status["next_try_at"]
    assert status["pushed_commit"] is None
    health = desk.health()
    assert health["status"] == "degraded"
    assert health["detail"].startswith("1 run waits to be pushed: ")
    assert "s3cr3t" not in json.dumps([status, health])
    waits = [desk.push()]
    for _ in range(3):
        desk.push(seconds=waits[-1] + 1)
        waits.append(desk.push())
    assert waits == [2, 4, 8, 16]
    desk.build("P1")  # it stops nothing
    desk.bare.take_pushes()
    assert desk.push(seconds=waits[-1] + 1) == 0
    assert desk.bare.refs()[BRANCH] == desk.head()
    assert desk.health() == {"status": "ok", "detail": None}
    assert desk.status()["attempts"] == 0


def test_tries_continue_without_a_limit_at_bounded_intervals() -> None:
    waits = [retry_wait(attempts).total_seconds() for attempts in (1, 2, 3, 4, 20, 10_000)]
    assert waits == [2, 4, 8, 16, *[LONGEST_WAIT.total_seconds()] * 2]


def test_a_new_snapshot_does_not_shorten_the_wait_of_a_failing_push(
    desk: Desk, server: GitServer
) -> None:
    desk.bare.refuse_pushes()
    desk.start()
    desk.build("P0")
    desk.push()
    desk.build("P1")
    assert desk.push() > 0
    assert server.push_count == 1


def test_a_start_tries_at_once_what_waits(desk: Desk) -> None:
    desk.bare.refuse_pushes()
    desk.start()
    desk.build("P0")
    desk.push()
    desk.bare.take_pushes()
    assert desk.push() > 0
    resume_pushes(desk.context)
    assert desk.push() == 0
    assert desk.status()["is_up_to_date"] is True


def test_one_run_that_cannot_be_pushed_keeps_no_other_back(desk: Desk) -> None:
    desk.start("run-001")
    desk.start("run-002")
    desk.bare.git("update-ref", BRANCH, desk.bare.commit_on(_some_commit(desk.bare)))
    desk.build("P0", "run-001")
    desk.build("P0", "run-002")
    desk.push()
    desk.push()
    assert "another process moved it" in desk.status("run-001")["last_error"]
    assert desk.status("run-002")["is_up_to_date"] is True


def test_a_run_whose_branch_was_moved_here_is_not_pushed_any_more(desk: Desk) -> None:
    desk.start()
    desk.build("P0")
    theirs = desk.repo.git("commit-tree", "-m", "Mine", "main^{tree}")
    desk.repo.git("update-ref", BRANCH, theirs)
    desk.client.post("/runs/run-001/cancel", json={"reason": "x"})
    assert desk.client.get("/runs/run-001").json()["failure_code"] == "branch_moved"
    desk.push()
    assert desk.bare.refs() == {}
    assert "moved the run's branch" in desk.status()["last_error"]
    assert desk.health() == {"status": "ok", "detail": None}
    assert desk.push(seconds=10_000) > 0


def test_another_remote_is_not_said_to_have_what_the_last_one_got(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.start(phases=1)
    desk.build("P0")
    desk.push()
    monkeypatch.setattr(Remote, "url", "https://example.org/other.git")
    status = desk.status()
    assert status["url"] == "https://example.org/other.git"
    assert (status["pushed_commit"], status["is_up_to_date"]) == (None, False)


# Many at once


def test_a_run_is_pushed_by_one_at_a_time_and_others_take_the_next(
    desk: Desk, server: GitServer
) -> None:
    desk.start("run-001")
    desk.start("run-002")
    desk.build("P0", "run-001")
    server.hold_pushes()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(desk.push)
        assert server.has_push.wait(PATIENCE_SECONDS)
        resume_pushes(desk.context)
        assert desk.push(seconds=60) == 0  # due by the clock, but another worker is pushing
        assert server.push_count == 1
        server.has_push.clear()
        desk.build("P0", "run-002")
        second = pool.submit(desk.push)
        assert server.has_push.wait(PATIENCE_SECONDS)
        server.may_push.set()
        assert (first.result(), second.result()) == (0, 0)
    assert server.push_count == 2
    assert desk.status("run-001")["is_up_to_date"] is True
    assert desk.status("run-002")["is_up_to_date"] is True


def test_what_happens_during_a_push_is_pushed_after_it(desk: Desk, server: GitServer) -> None:
    desk.start()
    desk.build("P0")
    server.hold_pushes()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(desk.push)
        assert server.has_push.wait(PATIENCE_SECONDS)
        desk.build("P1")  # neither the run's lock nor its push's row is held meanwhile
        assert desk.status()["is_up_to_date"] is False
        assert desk.push(seconds=60) == 0  # another worker comes for that, and is put off
        server.may_push.set()
        first.result()
    assert desk.bare.refs()[BRANCH] == desk.head()
    assert desk.status()["is_up_to_date"] is True
    assert server.push_count == 2
    assert desk.push(seconds=60) == 0
    assert desk.push() == math.inf
    assert server.push_count == 2


@pytest.fixture
def other(
    desk: Desk, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    """A worker by hand of another node, with a clone of its own; no node follows the other."""
    from tests.conftest import GitRepo

    monkeypatch.setattr(nodes, "has_others", lambda *_, **__: False)
    clone = GitRepo(tmp_path / "clone")
    desk.repo.git("clone", "--quiet", str(desk.repo.path), str(clone.path))
    places = {
        "repo_path": clone.path,
        "home": tmp_path / "clone-home",
        "autonomous_runs_dir": tmp_path / "clone-runs",
    }
    with (
        open_context(settings.model_copy(update=places)) as opened,
        as_node(opened) as context,
    ):
        yield Desk(desk.client, clone, desk.bare, context, desk.now)


def test_two_nodes_push_a_run_one_at_a_time_and_each_state_of_it(
    desk: Desk, other: Desk, server: GitServer
) -> None:
    """Neither worker has the commits of the other node before it pushes them."""
    desk.start()
    desk.build("P0")
    server.hold_pushes()
    with ThreadPoolExecutor() as pool:
        first = pool.submit(other.push)
        assert server.has_push.wait(PATIENCE_SECONDS)
        resume_pushes(desk.context)
        assert desk.push(seconds=60) == 0  # put off, as the other node is pushing
        desk.build("P1")
        assert server.push_count == 1
        server.may_push.set()
        assert first.result() == 0
    assert desk.bare.refs()[BRANCH] == desk.head()
    assert desk.status()["is_up_to_date"] is True
    assert server.push_count == 2
    desk.build("P2")
    assert desk.push(seconds=120) == 0
    assert other.push(seconds=240) in (0, math.inf)
    assert server.push_count == 3
    assert desk.bare.refs()[BRANCH] == desk.head()


class Killed(BaseException):
    """The end of a process amid its push."""


@pytest.mark.parametrize("has_arrived", [False, True], ids=["before", "after it arrived"])
def test_the_push_of_a_node_that_is_killed_is_made_by_another_node(
    desk: Desk,
    other: Desk,
    server: GitServer,
    monkeypatch: pytest.MonkeyPatch,
    has_arrived: bool,
) -> None:
    desk.start()
    desk.build("P0")
    push = Remote.push

    def push_and_die(remote: Remote, *arguments: Any, **named: Any) -> None:
        if has_arrived:
            push(remote, *arguments, **named)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Remote, "push", push_and_die)
        with pytest.raises(Killed):
            desk.push()
    assert other.status()["is_up_to_date"] is False
    with other.context.engine.begin() as connection:  # what the job engine does for a killed worker
        retry = "UPDATE procrastinate_jobs SET status = 'todo' WHERE status = 'doing'"
        assert connection.execute(text(retry)).rowcount == 1
    assert other.push() == 0
    assert server.push_count == int(has_arrived)  # the try that was cut has its wait
    assert other.push(seconds=60) == 0
    assert server.push_count == 1
    assert other.status()["is_up_to_date"] is True
    assert desk.bare.refs()[BRANCH] == desk.head()


class TestWithWorkers:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"jobs": "inside"})

    @pytest.fixture
    def pushed(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
        """Wait until the remote has taken one more push and that is recorded."""
        done = threading.Semaphore(0)
        from autopack.store import pushes

        mark = pushes.mark_pushed

        def mark_and_tell(session: Any, *arguments: Any, **named: Any) -> None:
            mark(session, *arguments, **named)
            session.commit()
            done.release()

        monkeypatch.setattr(pushes, "mark_pushed", mark_and_tell)

        def wait() -> None:
            assert done.acquire(timeout=PATIENCE_SECONDS)

        return wait  # type: ignore[return-value]

    @pytest.mark.safety_critical
    def test_a_slow_remote_blocks_no_request(
        self, desk: Desk, server: GitServer, pushed: Callable[[], None]
    ) -> None:
        server.hold_pushes()
        desk.start("run-001")
        desk.start("run-002")
        desk.build("P0", "run-001")
        assert server.has_push.wait(PATIENCE_SECONDS)
        desk.build("P1", "run-001")
        desk.build("P2", "run-001")
        desk.build("P0", "run-002")
        assert desk.status("run-001")["is_up_to_date"] is False
        assert desk.health() == {"status": "ok", "detail": None}
        assert desk.bare.refs() == {}
        server.may_push.set()
        for _ in range(3):  # run-001 as it was then, as it is now, and run-002
            pushed()
        assert desk.status("run-001")["is_up_to_date"] is True
        assert desk.status("run-002")["is_up_to_date"] is True

    def test_a_snapshot_is_pushed_at_once(self, desk: Desk, pushed: Callable[[], None]) -> None:
        desk.start()
        desk.build("P0")
        pushed()
        assert desk.bare.refs()[BRANCH] == desk.head()

    def test_the_end_of_the_service_does_not_wait_for_a_slow_remote(
        self, desk: Desk, server: GitServer
    ) -> None:
        server.hold_pushes()
        desk.start()
        desk.build("P0")
        assert server.has_push.wait(PATIENCE_SECONDS)
        # The client's exit ends the application, with the push still held back.


class TestWithoutRemote:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"git_remote": None})

    def test_nothing_is_recorded_shown_or_asked(self, desk: Desk) -> None:
        statements: list[str] = []
        for engine in (desk.context.engine, desk.context.autocommit):
            event.listen(
                engine,
                "before_cursor_execute",
                lambda _c, _cursor, statement, *_: statements.append(statement),
            )
        desk.start(phases=1)
        desk.build("P0")
        assert desk.status() is None
        assert "remote" not in desk.client.get("/health").json()["checks"]
        assert statements
        assert not [statement for statement in statements if "pushes" in statement]


def new_file(name: str) -> str:
    return (
        f"diff --git a/{name} b/{name}\nnew file mode 100644\n"
        f"--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+new\n"
    )


def _some_commit(bare: Bare) -> str:
    tree = bare.git("hash-object", "-t", "tree", "-w", "/dev/null")
    return bare.git("commit-tree", "-m", "Theirs", tree)
