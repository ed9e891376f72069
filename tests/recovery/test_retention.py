"""Old runs lose their details and keep their record. (rules §10)"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from starlette.testclient import TestClient

from autopack.background import queues_of
from autopack.checker.command import main as check
from autopack.config import Settings
from autopack.contexts import beside_database
from autopack.domain.retention import read_retention
from autopack.services import retention
from autopack.services.retention import retain
from autopack.services.upkeep import UPKEEP_QUEUE
from autopack.store import pulses
from autopack.store import retention as store

from .test_backup import must, service, start, submit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

AGE = timedelta(days=90)


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with service(settings) as client:
        yield client


@pytest.fixture
def sql(worker_database: tuple[str, Engine], client: TestClient) -> Any:
    """Change the database behind the service's back: time passes."""
    _, engine = worker_database

    def execute(statement: str, **values: object) -> Any:
        with engine.begin() as connection:
            done = connection.execute(text(statement), values)
            return done.all() if done.returns_rows else None

    return execute


@pytest.fixture
def old(client: TestClient, sql: Any, settings: Settings) -> str:
    """A run that succeeded and was dismissed a year ago."""
    start(client, "old")
    submit(client, "old", "P0", "old.txt")
    settle(client, sql, "old")
    return "old"


def settle(client: TestClient, sql: Any, run_id: str) -> None:
    must(client, f"/attention/{item_of(client, run_id)}/dismiss", {})
    age(sql, run_id)


def item_of(client: TestClient, run_id: str) -> str:
    items = must(client, "/attention")["items"]
    return next(str(each["id"]) for each in items if each["run_id"] == run_id)


def age(sql: Any, run_id: str) -> None:
    sql(
        "UPDATE runs SET is_counted = true, ended_at = ended_at - interval '1 year',"
        " closed_at = closed_at - interval '1 year' WHERE run_id = :run",
        run=run_id,
    )


def removal(settings: Settings, *, is_dry_run: bool = False) -> dict[str, Any]:
    with beside_database(settings, "test") as context:
        return retain(context, AGE, is_dry_run=is_dry_run).model_dump()


def test_a_settled_run_loses_its_details_and_keeps_record_sums_and_summary(
    client: TestClient,
    sql: Any,
    settings: Settings,
    git_repo: GitRepo,
    old: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    phase = must(client, "/runs/old/phases/P0/attempts")
    events = must(client, "/runs/old/events")["events"]
    run = must(client, "/runs/old")
    promotion = must(client, "/runs/old/promotion")
    (patch,) = phase["attempts"][0]["patches"]
    assert client.get(patch["content"]).content.startswith(b"diff --git")

    shown = removal(settings, is_dry_run=True)
    assert (shown["runs"], shown["kept_not_settled"]) == (1, 0)
    assert shown["bytes"] > len(client.get(patch["content"]).content)
    assert must(client, "/runs/old") == run
    sql("INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt, is_flaky, log_tail,"
        " requested_at) SELECT r.id, p.id, r.head_commit, 'normal', 1, false, 'a log', now()"
        " FROM runs r JOIN phases p ON p.run_pk = r.id")  # fmt: skip
    sql("INSERT INTO nodes (id, place, version, generation, position, started_at, heartbeat_at)"
        " VALUES ('other', '/other', '1', 'g', 0, now(), now())")  # fmt: skip
    sql("INSERT INTO node_runs (run_pk, node_id, revision)"
        " SELECT id, 'other', revision FROM runs")  # fmt: skip
    assert removal(settings)["runs"] == 1
    assert sql("SELECT log_tail FROM ci_runs") == [(None,)]
    # Another node's files still show what is gone: it has to write them again.
    assert sql("SELECT revision, lacks FROM node_runs") == [(0, "its details were removed")]
    assert removal(settings)["runs"] == 0

    after = must(client, "/runs/old")
    assert after.pop("details") == "removed"
    since = after.pop("details_removed_at")
    changed = {"details", "details_removed_at"}
    assert {k: v for k, v in after.items() if k not in changed} == {
        k: v for k, v in run.items() if k not in changed
    }
    refused = client.get(patch["content"])
    assert (refused.status_code, refused.json()["code"]) == (410, "details_removed")
    assert refused.json()["details_removed_at"][:19] == since[:19]
    (kept,) = must(client, "/runs/old/phases/P0/attempts")["attempts"][0]["patches"]
    assert (kept["sha256"], kept["size_bytes"]) == (patch["sha256"], None)

    left = must(client, "/runs/old/events")["events"]
    assert left[0]["sequence"] == 1
    assert [event for event in events if event["sequence"] == left[-1]["sequence"]] == left[-1:]
    assert len(left) < len(events)
    for path in ("", "/phases/P0", "/timeline", "/integration_status", "/ci", "/issues/index"):
        must(client, f"/runs/old{path}")
    assert must(client, "/runs/old/promotion") == promotion
    must(client, "/reports/run_summary/old")
    assert client.get("/dashboard/runs/old").is_success
    folder = settings.autonomous_runs_dir / "old"
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["run_summary.md"]
    code = check(
        ["--run-id=old", "--branch=autonomous/old", f"--repository={git_repo.path}", "--json"]
    )
    assert code == 0, capsys.readouterr().out
    # A stream from before the removal goes on behind what is gone.
    headers = {"Accept": "text/event-stream", "Last-Event-ID": "2"}
    stream = client.get("/runs/old/events", headers=headers).text
    told = [line.removeprefix("id: ") for line in stream.splitlines() if line.startswith("id: ")]
    assert told[-1] == str(left[-1]["sequence"])
    assert "event: end" in stream


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("/runs/old/rebase", {}),
    ("/runs/old/phases/P0/auditor_request", {}),
    ("/runs/old/phases/P0/update_status", {"state": "QUEUED"}),
    (
        "/runs/old/phases/P0/record_issue",
        {"issue_key": "k", "severity": "minor", "source": "test", "category": "test_failure"},
    ),
]


def test_no_change_of_it_is_taken_any_more(
    client: TestClient, sql: Any, settings: Settings, git_repo: GitRepo, old: str
) -> None:
    sql("UPDATE runs SET mirrored_by = NULL")  # its node was removed from the list
    assert removal(settings)["runs"] == 1
    assert sql("SELECT count(*) FROM runs WHERE mirrored_revision < revision") == [(0,)]
    assert not [*(settings.autonomous_runs_dir / "old").rglob("phase_*")]
    git_repo.commit({"new.txt": "new\n"})
    refs = git_repo.git("for-each-ref")
    for path, body in CHANGES:
        answer = client.post(path, json=body)
        assert answer.status_code in (409, 410), (path, answer.text)
        assert answer.json()["code"] in ("details_removed", "run_over"), (path, answer.text)
    assert git_repo.git("for-each-ref") == refs


def test_only_a_run_that_is_settled_recorded_and_unused_loses_details(
    client: TestClient, sql: Any, settings: Settings, git_repo: GitRepo
) -> None:
    at_rest = ("young", "norecord", "lost", "lagging", "base", "uncounted", "unpushed")
    for name in (*at_rest, "open", "failed"):
        start(client, name)
        submit(client, name, "P0", f"{name}.txt")
        if name in at_rest:
            settle(client, sql, name)
    git_repo.commit({"new.txt": "new\n"})
    must(client, "/runs/base/rebase", {"run_id": "later"})
    start(client, "cancelled")
    must(client, "/runs/cancelled/cancel", {"reason": "not needed"})
    age(sql, "cancelled")
    start(client, "live")
    age(sql, "open")
    age(sql, "failed")
    sql("UPDATE runs SET state = 'DONE_FAILED_REQUIRES_HUMAN_REVIEW',"
        " failure_code = 'phase_failed', failure_reason = 'it failed'"
        " WHERE run_id = 'failed'")  # fmt: skip
    sql("UPDATE runs SET is_counted = false WHERE run_id = 'uncounted'")
    sql("INSERT INTO pushes (run_pk, wanted_revision, next_try_at, attempts)"
        " SELECT id, revision, now(), 1 FROM runs WHERE run_id = 'unpushed'")  # fmt: skip
    sql("UPDATE runs SET closed_at = now() - interval '89 days' WHERE run_id = 'young'")
    sql("UPDATE runs SET work_commit = head_commit WHERE run_id = 'norecord'")
    sql("UPDATE runs SET mirrored_revision = 0 WHERE run_id = 'lagging'")
    sql("UPDATE runs SET head_commit = repeat('1', 40) WHERE run_id = 'lost'")
    with beside_database(settings, "test") as context:
        sql("UPDATE runs SET mirrored_revision = 0 WHERE run_id = 'lagging'")
        foretold = retain(context, AGE, is_dry_run=True)
        found = retain(context, AGE)
    assert foretold.model_dump(exclude={"is_dry_run", "before"}) == found.model_dump(
        exclude={"is_dry_run", "before"}
    )
    gone = sql("SELECT run_id FROM runs WHERE details_removed_at IS NOT NULL ORDER BY 1")
    assert [name for (name,) in gone] == ["cancelled"]
    assert (found.kept_not_settled, found.kept_without_record, found.kept_in_use) == (3, 2, 4)
    assert sql("SELECT count(*) FROM events e JOIN runs r ON r.id = run_pk"
               " WHERE run_id = 'cancelled'")[0][0] < 4  # fmt: skip


def test_a_killed_pass_leaves_each_run_whole_or_removed(
    client: TestClient, sql: Any, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        start(client, name)
        submit(client, name, "P0", f"{name}.txt")
        settle(client, sql, name)
    whole = sql("SELECT count(*) FROM events")

    class KilledError(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(store, "_REMOVALS", (*store._REMOVALS[:-1], "SELECT 1/0"))
        assert removal(settings)["runs"] == 0
    assert sql("SELECT count(*) FROM events") == whole
    with monkeypatch.context() as patch:
        patch.setattr(retention, "project", die)
        with pytest.raises(KilledError):
            removal(settings)
    removed = sql("SELECT count(*) FROM runs WHERE details_removed_at IS NOT NULL")[0][0]
    assert removed == 1
    assert removal(settings)["runs"] == 1
    with service(settings):  # whose start brings files up to date
        folders = [settings.autonomous_runs_dir / name for name in ("one", "two")]
        assert [[path.name for path in folder.rglob("phase_*")] for folder in folders] == [[], []]


def test_one_node_removes_at_a_time_and_once_an_hour(
    client: TestClient, settings: Settings, old: str
) -> None:
    with beside_database(settings.model_copy(update={"retention": AGE}), "test") as context:
        with context.writing() as session:
            assert pulses.try_turn(session, retention.TURN)
            periodic = retention.Retention(context)
            periodic()
            assert must(client, "/runs/old")["details"] == "kept"
            session.rollback()
        periodic()
        assert must(client, "/runs/old")["details"] == "removed"
        assert retention.Retention(context)() is None


def test_monitoring_sees_what_a_pass_removed_and_what_it_could_not(
    sql: Any, settings: Settings, client: TestClient, old: str
) -> None:
    start(client, "lost")
    submit(client, "lost", "P0", "lost.txt")
    settle(client, sql, "lost")
    good = sql("SELECT head_commit FROM runs WHERE run_id = 'lost'")[0][0]
    sql("UPDATE runs SET head_commit = repeat('1', 40) WHERE run_id = 'lost'")
    with service(settings.model_copy(update={"retention": AGE})) as kept:

        def figures() -> dict[str, float]:
            name = "autopack_retention_"
            lines = kept.get("/metrics").text.splitlines()
            found = [line.removeprefix(name) for line in lines if line.startswith(name)]
            return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in found}

        assert figures() == {}
        with beside_database(settings, "test") as context:
            retain(context, AGE, keep_turn=lambda: None)
        found = figures()
        assert 0 <= found.pop("idle_seconds") < 600
        assert found == {"removed_runs_total": 1, "due_runs": 1, "failed_runs": 1}
        sql("UPDATE runs SET head_commit = :good WHERE run_id = 'lost'", good=good)
        sql("UPDATE retention SET beaten_at = beaten_at - interval '4 hours'")
        assert removal(settings)["runs"] == 1  # by hand: it says nothing about the periodic pass
        assert figures()["idle_seconds"] > 4 * 3600
        with beside_database(settings, "test") as context:
            retain(context, AGE, keep_turn=lambda: None)
        found = figures()
        assert 0 <= found.pop("idle_seconds") < 600
        assert found == {"removed_runs_total": 2, "due_runs": 0, "failed_runs": 0}
    assert "autopack_retention_" not in client.get("/metrics").text  # without AUTOPACK_RETENTION


def test_a_further_project_is_cleared_up_too(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, copied_databases: None
) -> None:
    from tests.conftest import make_git_repo

    settings = settings.model_copy(update={"retention": AGE})
    folder = str(make_git_repo(tmp_path / "shop").path)
    with service(settings) as client:
        must(client, "/projects", {"name": "shop", "repository": folder})
        client.base_url = client.base_url.join("/projects/shop/")
        start(client, "old")
        submit(client, "old", "P0", "old.txt")
        with beside_database(settings, "test", "shop") as context:

            def execute(statement: str, **values: object) -> None:
                with context.engine.begin() as connection:
                    connection.execute(text(statement), values)

            settle(client, execute, "old")
            upkeep = next(each for each in queues_of(context) if each.name == UPKEEP_QUEUE)
            upkeep.every["retain"][1]()
        assert must(client, "/runs/old")["details"] == "removed"


@pytest.mark.parametrize(("text_", "days"), [("90d", 90), ("12w", 84), (" 1d ", 1)])
def test_an_age_is_days_or_weeks(text_: str, days: int) -> None:
    assert read_retention(text_) == timedelta(days=days)


@pytest.mark.parametrize("text_", ["", "0d", "90", "90m", "-1d", "d", "999999d", "9 d", "९d"])
def test_another_age_is_refused(text_: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no number of days or weeks"):
        read_retention(text_)
