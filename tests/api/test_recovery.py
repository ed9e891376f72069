"""Recovery after a crash, a full disk, a lost database, a branch that was moved."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, event, text

from autopack.config import Settings
from autopack.database import make_engine
from autopack.main import create_app
from autopack.mirror.files import MirrorUnusableError
from autopack.services.context import utc_now
from autopack.store import issues

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration

BRANCH = "refs/heads/autonomous/run-001"


@contextmanager
def restarted(settings: Settings) -> Iterator[TestClient]:
    """Start the service once more over the same data, as after a crash."""
    from starlette.testclient import TestClient

    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50_000)) as client:
        yield client


def sql(settings: Settings, statement: str) -> None:
    engine = create_engine(settings.database_url or "")
    with engine.begin() as connection:
        connection.execute(text(statement))
    engine.dispose()


def lags(settings: Settings) -> bool:
    """Say whether the one run's branch and files have not caught up, as far as is noted."""
    engine = create_engine(settings.database_url or "")
    with engine.begin() as connection:
        is_lagging = connection.scalar(text("SELECT mirrored_revision < revision FROM runs"))
    engine.dispose()
    return bool(is_lagging)


@pytest.fixture
def no_room(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A runs directory that takes no file until `undo` is called."""

    def refuse(top: Any, files: Any) -> None:
        raise MirrorUnusableError(top.path, OSError(28, "No space left on device"))

    monkeypatch.setattr("autopack.mirror.mirror.replace_files", refuse)
    yield monkeypatch
    monkeypatch.undo()


class TestACrashBetweenDatabaseAndBranch:
    """Postgres is at the new head; the ref and the files are as they were before."""

    @pytest.fixture
    def crashed(self, api: Api, settings: Settings) -> Json:
        api.start(phases=3)
        api.result()
        run = api.run()
        summary = api.runs_dir / "run-001" / "run_summary.md"
        old = summary.read_text()
        assert api.result(phase_id="P0.1").status_code == 200
        summary.write_text(old)
        api.repo.git("update-ref", BRANCH, run["head_commit"])
        api.repo.git("tag", "-d", "autonomous/run-001/tier-T0/phase-P0.1")
        sql(settings, f"UPDATE runs SET mirrored_revision = {run['revision']}")
        return api.run()

    def healed(self, api: Api, crashed: Json) -> None:
        assert api.head() == crashed["head_commit"] or len(api.commits()) == 3
        tags = api.repo.git("tag", "--list", "autonomous/run-001/*").split()
        assert "autonomous/run-001/tier-T0/phase-P0.1" in tags

    def test_is_rolled_forward_at_the_next_start(
        self, api: Api, settings: Settings, crashed: Json
    ) -> None:
        with restarted(settings):
            assert api.head() == crashed["head_commit"]
            assert f"revision={crashed['revision']} " in api.file("run-001", "run_summary.md")
            self.healed(api, crashed)

    def test_is_rolled_forward_by_the_next_result(self, api: Api, crashed: Json) -> None:
        response = api.result(phase_id="P0.2")
        assert response.status_code == 200, response.text
        assert api.repo.git("rev-parse", f"{api.head()}~1") == crashed["head_commit"]
        self.healed(api, crashed)

    def test_is_rolled_forward_before_the_lost_answer_is_given_again(
        self, api: Api, crashed: Json
    ) -> None:
        response = api.result(phase_id="P0.1")
        assert response.headers["idempotency-replayed"] == "true"
        assert response.json()["commit_sha"] == crashed["head_commit"] == api.head()
        self.healed(api, crashed)

    def test_is_rolled_forward_by_an_issue_and_by_the_same_plan(
        self, api: Api, settings: Settings, crashed: Json
    ) -> None:
        again = api.client.post("/runs/start", json=api.plan(phases=3))
        assert again.status_code == 200
        assert api.head() == crashed["head_commit"]
        api.repo.git("update-ref", "-d", BRANCH)
        assert api.issue(phase_id="P0.2").status_code == 201
        assert api.head() == crashed["head_commit"]

    def test_ends_the_run_when_another_process_moved_the_branch_meanwhile(
        self, api: Api, settings: Settings, crashed: Json
    ) -> None:
        theirs = api.repo.git("commit-tree", "-m", "theirs", "main^{tree}")
        api.repo.git("update-ref", BRANCH, theirs)
        with restarted(settings):
            run = api.run()
        assert run["state"] == "DONE_FAILED_POLICY_VIOLATION"
        assert api.head() == theirs
        for name in ("phase_0_P0.0", "phase_1_P0.1", "phase_2_P0.2"):
            assert f"revision={run['revision']} " in api.file("run-001", "phases", f"{name}.md")


class TestABranchAtAnEarlierRecordedHead:
    """Nothing lags in the tables; the ref alone was lost, as by a power cut."""

    @pytest.fixture
    def lost(self, api: Api) -> Json:
        api.start(phases=3)
        api.result()
        earlier = api.head()
        api.result(phase_id="P0.1")
        api.repo.git("update-ref", BRANCH, earlier)
        return api.run()

    def test_is_rolled_forward_at_the_next_start(
        self, api: Api, settings: Settings, lost: Json
    ) -> None:
        with restarted(settings):
            assert api.head() == lost["head_commit"]
        assert api.run()["ended_at"] is None

    def test_is_rolled_forward_by_the_next_request(self, api: Api, lost: Json) -> None:
        response = api.result(phase_id="P0.2")
        assert response.status_code == 200, response.text
        assert api.repo.git("rev-parse", f"{api.head()}~1") == lost["head_commit"]


class TestAStrangersHand:
    def test_a_branch_that_was_moved_is_not_overwritten_and_ends_the_run(self, api: Api) -> None:
        api.start(phases=2)
        api.result()
        theirs = api.repo.git("commit-tree", "-m", "theirs", "-p", api.head(), "main^{tree}")
        api.repo.git("update-ref", BRANCH, theirs)

        problem = api.refused(api.result(phase_id="P0.1"), 409, "branch_moved", theirs)

        assert problem["actual"] == theirs
        assert api.head() == theirs
        run = api.run()
        assert run["state"] == "DONE_FAILED_POLICY_VIOLATION"
        assert run["failure_code"] == "branch_moved"
        assert theirs in run["failure_reason"]
        assert run["promotion_eligible_to_main"] is False
        assert "DONE_FAILED_POLICY_VIOLATION" in api.file("run-001", "run_summary.md")
        api.refused(api.result(phase_id="P0.1"), 409, "run_over")
        assert api.head() == theirs

    def test_a_symbolic_branch_leads_nowhere(self, api: Api) -> None:
        api.start(phases=2)
        main = api.repo.git("rev-parse", "main")
        api.repo.git("symbolic-ref", BRANCH, "refs/heads/main")
        api.result()
        assert api.repo.git("rev-parse", "main") == main

    def test_a_tag_whose_name_was_taken_is_not_overwritten_and_ends_the_run(self, api: Api) -> None:
        api.start()
        api.repo.git("tag", "autonomous/run-001/tier-T0/phase-P0.0", "main")
        base = api.head()
        api.refused(api.result(), 409, None, "phase-P0.0")
        assert api.head() == base
        assert api.run()["state"] == "DONE_FAILED_POLICY_VIOLATION"

    def test_a_branch_that_was_deleted_is_made_again(self, api: Api) -> None:
        api.start(phases=2)
        first = api.result().json()["commit_sha"]
        api.repo.git("update-ref", "-d", BRANCH)
        second = api.result(phase_id="P0.1")
        assert second.status_code == 200, second.text
        assert api.repo.git("rev-parse", f"{api.head()}~1") == first


class TestAFullDisk:
    def test_what_happened_is_recorded_and_shown_when_there_is_room_again(
        self, api: Api, no_room: pytest.MonkeyPatch
    ) -> None:
        no_room.undo()
        api.start(phases=3)
        summary = api.file("run-001", "run_summary.md")
        _fill(no_room)

        first = api.result()
        problem = api.refused(first, 503, "projection_lagging", "No space left on device")
        assert "do not send" in problem["detail"]
        assert first.headers["retry-after"]
        assert api.phase()["state"] == "COMPLETE"
        assert len(api.commits()) == 1
        assert api.file("run-001", "run_summary.md") == summary
        assert api.client.get("/health").status_code in (200, 503)

        api.refused(api.result(phase_id="P0.1"), 503)
        assert api.phase(phase_id="P0.1")["state"] == "QUEUED"

        no_room.undo()
        again = api.result()
        assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
        assert api.phase()["state"] in api.file("run-001", "phases", "phase_0_P0.0.md")
        assert api.result(phase_id="P0.1").status_code == 200

    def test_a_start_without_room_is_there_and_is_shown_later(
        self, api: Api, no_room: pytest.MonkeyPatch
    ) -> None:
        api.refused(api.client.post("/runs/start", json=api.plan()), 503, "projection_lagging")
        assert api.run()["state"] == "RUN_CREATED"
        no_room.undo()
        assert api.client.post("/runs/start", json=api.plan()).status_code == 200
        assert "RUN_CREATED" in api.file("run-001", "run_summary.md")

    def test_the_upkeep_shows_it_without_being_asked(
        self, api: Api, no_room: pytest.MonkeyPatch, app: FastAPI
    ) -> None:
        from autopack.services.upkeep import keep_up

        api.client.post("/runs/start", json=api.plan())
        keep_up(app.state.context)
        no_room.undo()
        keep_up(app.state.context)
        assert "RUN_CREATED" in api.file("run-001", "run_summary.md")


class TestACountedReport:
    """It makes its issue age, and its service falls before it has decided that."""

    KEY = "seen-in-three-runs"

    @pytest.fixture
    def counted(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        for run_id in ("first", "second", "run-001"):
            api.start(run_id)
        for run_id in ("first", "second"):
            api.issue(run_id=run_id)
        with monkeypatch.context() as patch:
            patch.setattr(issues, "list_entries", self._fall)
            api.refused(api.issue(key=self.KEY), 503, "projection_lagging", "RuntimeError")
        assert entry_of(api)["status"] == "open"

    @staticmethod
    def _fall(*arguments: Any) -> None:
        raise RuntimeError

    def test_the_next_start_lets_it_age_once(
        self, api: Api, counted: None, settings: Settings
    ) -> None:
        for _ in range(2):
            with restarted(settings):
                pass
        entry = entry_of(api)
        assert (entry["status"], entry["age_in_runs"]) == ("needs_cleanup", 3)
        assert [(each["kind"], each["run_id"]) for each in entry["life"]] == [("aged", "run-001")]
        backlog = api.document("project_issue_backlog.json")["issues_by_key"]
        assert backlog["a_failing_test"]["status"] == "needs_cleanup"

    def test_the_request_again_gets_its_answer_with_the_entry_and_keeps_it(
        self, api: Api, counted: None
    ) -> None:
        again = api.issue(key=self.KEY)
        assert again.headers["idempotency-replayed"] == "true"
        entry = again.json()["project_backlog_entry"]
        assert (entry["status"], entry["total_occurrences"]) == ("needs_cleanup", 3)
        api.issue(run_id="first")
        assert api.issue(key=self.KEY).json() == again.json()

    @pytest.mark.parametrize("behind", [timedelta(), timedelta(seconds=1)])
    def test_what_was_reopened_by_hand_since_stays_open(
        self, api: Api, app: FastAPI, counted: None, settings: Settings, behind: timedelta
    ) -> None:
        """Also when the clock of the process that reopened it is behind."""
        app.state.context = replace(app.state.context, now=lambda: utc_now() - behind)
        for word in ("resolve", "reopen"):
            api.client.post(f"/project/issues/a_failing_test/{word}").raise_for_status()
        with restarted(settings):
            pass
        assert entry_of(api)["status"] == "open"

    def test_what_a_hand_closed_while_the_report_was_under_way_ages(
        self, api: Api, counted: None, settings: Settings
    ) -> None:
        """The report waited for the closing, which its own time does not tell."""
        api.client.post("/project/issues/a_failing_test/resolve").raise_for_status()
        sql(settings, "UPDATE backlog SET status = 'open', resolved_at = NULL")
        with restarted(settings):
            pass
        assert entry_of(api)["status"] == "needs_cleanup"

    def test_another_runs_report_lets_it_age_likewise(
        self, api: Api, counted: None, settings: Settings
    ) -> None:
        answer = api.issue(run_id="first").json()
        assert answer["project_backlog_entry"]["status"] == "needs_cleanup"
        with restarted(settings):
            pass
        assert [each["run_id"] for each in entry_of(api)["life"]] == ["first"]


def entry_of(api: Api) -> Json:
    found: Json = api.client.get("/project/issues/a_failing_test").json()
    return found


class TestALostDatabase:
    def test_no_database_is_503_on_everything_but_the_signs_of_life(
        self, api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = api.start()
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))  # no process listens
            port = silent.getsockname()[1]
            context = app.state.context
            dead = make_engine(f"postgresql+psycopg2://x:hunter2@127.0.0.1:{port}/x", 15)
            app.state.context = replace(context, engine=dead, autocommit=dead)
            for response in (
                api.client.get("/runs"),
                api.client.get("/runs/run-001"),
                api.client.post("/runs/start", json=api.plan("other")),
                api.result(),
                api.issue(),
                api.status("EXECUTING"),
            ):
                api.refused(response, 503, "database_unavailable")
                assert response.headers["retry-after"]
                assert "hunter2" not in response.text
            health = api.client.get("/health")
            assert health.status_code == 503
            assert health.json()["checks"]["database"]["status"] == "failed"
            assert api.client.get("/health/live").status_code == 200
            assert api.client.get("/").status_code == 200
            dead.dispose()
            app.state.context = context
        assert api.run() == before
        assert api.result().status_code == 200

    @pytest.mark.parametrize(
        "moment", ["EXECUTE select_replies", "EXECUTE insert_submissions", "EXECUTE update_runs"]
    )
    def test_a_connection_cut_within_a_request_is_503_and_nothing_happened(
        self, api: Api, app: FastAPI, settings: Settings, moment: str
    ) -> None:
        before = api.start()
        engine = app.state.context.autocommit
        cuts: list[int] = []

        def cut(connection: Any, _cursor: object, statement: str, *_: Any) -> None:
            if moment in statement and not cuts:
                pid = connection.connection.driver_connection.info.backend_pid
                cuts.append(pid)
                sql(settings, f"SELECT pg_terminate_backend({pid}, 5000)")

        event.listen(engine, "before_cursor_execute", cut)
        try:
            response = api.result()
        finally:
            event.remove(engine, "before_cursor_execute", cut)
        assert cuts
        api.refused(response, 503, "database_unavailable")
        assert api.run() == before
        assert api.commits() == []

        assert api.result().status_code == 200
        assert len(api.commits()) == 1

    @pytest.mark.parametrize(
        ("moment", "status"),
        # By the second moment branch and files are as they should be: the mark alone is missing.
        [("EXECUTE select_attempts", 503), ("EXECUTE mark_mirrored", 200)],
    )
    def test_a_connection_cut_after_the_commit_is_rolled_forward(
        self, api: Api, app: FastAPI, settings: Settings, moment: str, status: int
    ) -> None:
        api.start(phases=2)
        engine = app.state.context.autocommit
        cuts: list[int] = []

        def cut(connection: Any, _cursor: object, statement: str, *_: Any) -> None:
            if moment in statement and not cuts:
                pid = connection.connection.driver_connection.info.backend_pid
                cuts.append(pid)
                sql(settings, f"SELECT pg_terminate_backend({pid}, 5000)")

        event.listen(engine, "before_cursor_execute", cut)
        try:
            response = api.result()
        finally:
            event.remove(engine, "before_cursor_execute", cut)
        assert cuts
        assert response.status_code == status
        assert lags(settings)
        again = api.result()
        assert not lags(settings)
        assert (again.status_code, len(api.commits())) == (200, 1)
        assert again.headers["idempotency-replayed"] == "true"

    def test_connections_cut_between_requests_cause_no_failed_request(
        self, api: Api, settings: Settings
    ) -> None:
        api.start()
        sql(
            settings,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert api.result().status_code == 200

    def test_a_run_whose_lock_is_held_for_long_is_503_and_others_go_on(
        self, api: Api, app: FastAPI, settings: Settings
    ) -> None:
        api.start("held")
        api.start("free")
        context = app.state.context
        hasty = make_engine(settings.database_url or "", 1, is_autocommit=True)
        app.state.context = replace(context, autocommit=hasty)
        holder = create_engine(settings.database_url or "")
        with holder.connect() as connection:
            connection.execute(text("SELECT pg_advisory_lock(hashtextextended('held', 0))"))
            answers: list[Any] = []
            waiting = threading.Thread(target=lambda: answers.append(api.result("held")))
            waiting.start()
            assert api.result("free").status_code == 200
            waiting.join(60)
        holder.dispose()
        api.refused(answers[0], 503, "database_unavailable", "another request")
        app.state.context = context
        hasty.dispose()
        assert api.result("held").status_code == 200


def _fill(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(top: Any, files: Any) -> None:
        raise MirrorUnusableError(top.path, OSError(28, "No space left on device"))

    monkeypatch.setattr("autopack.mirror.mirror.replace_files", refuse)
