"""Who did it stands in events, submissions, pages, the record and the pull request."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from alembic import command
from sqlalchemy import Engine, text
from tests.api.test_keys import Team, team  # noqa: F401 - the fixture's name

from autopack.database import make_engine
from autopack.domain.access import AccessRole
from autopack.migrating import alembic_config, migrate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.api.conftest import Api
    from tests.conftest import GitRepo

    from autopack.config import Settings

pytestmark = pytest.mark.integration

PHASE = "/runs/run-001/phases/P0.0"
REVIEWED = {"task_category": "security_auth_change", "ci": {"profile": "normal"}}


@pytest.fixture
def keyed(team: Team, git_repo: GitRepo, settings: Settings) -> Api:  # noqa: F811 - as above
    from tests.api.conftest import Api

    return Api(team.client, git_repo, settings.autonomous_runs_dir)


def test_a_run_by_keys_tells_each_of_them_everywhere(team: Team, keyed: Api) -> None:  # noqa: F811
    team.make("codex-3", AccessRole.BUILDER)
    team.make("claude-1", AccessRole.AUDITOR)
    plan = keyed.plan(phase={"task_category": "security_auth_change"})
    assert team.ask("POST", "/runs/start", "operator", json=plan).status_code == 201
    wanted = {"role": "builder", "agent": "a name of its own"}
    item = team.ask("POST", "/claim", "codex-3", json=wanted).json()
    built = {
        "status": "success",
        "patch_content": keyed.new_file("src/auth.py"),
        "lease_token": item["lease"]["token"],
    }
    assert team.ask("POST", f"{PHASE}/builder_result", "codex-3", json=built).status_code == 200
    issue = {"issue_key": "k", "source": "test", "category": "tests"}
    team.ask("POST", f"{PHASE}/record_issue", "claude-1", json=issue)
    review = {"recommendation": "approve", "review_notes": "good", "confidence": "high"}
    assert team.ask("POST", f"{PHASE}/auditor_result", "claude-1", json=review).is_success

    events = team.ask("GET", "/runs/run-001/events", "viewer").json()["events"]
    actors = {event["kind"]: event["actor"] for event in events}
    assert actors["RunStarted"] == "key:operator:operator"
    assert actors["LeaseGranted"] == actors["BuilderResultReceived"] == "key:codex-3:builder"
    assert actors["AuditorResultReceived"] == "key:claude-1:auditor"
    assert actors["IssueRecorded"] == "key:claude-1:auditor"
    assert actors["RunEnded"] == "supervisor"
    attempts = team.ask("GET", f"{PHASE}/attempts", "viewer").json()["attempts"]
    assert [each["actor"] for each in attempts] == ["key:codex-3:builder", "key:claude-1:auditor"]
    run = team.ask("GET", "/runs/run-001", "viewer").json()
    phase = run["tiers"][0]["phases"][0]
    assert run["started_by"] == "key:operator:operator"
    assert (phase["built_by"], phase["reviewed_by"], phase["judged_by"]) == (
        "key:codex-3:builder",
        "key:claude-1:auditor",
        None,
    )
    request = team.ask("GET", "/runs/run-001/promotion", "viewer").json()["pull_request"]["body"]
    page = keyed.file("run-001", "phases", "phase_0_P0.0.md")
    for actor in ("key:codex-3:builder", "key:claude-1:auditor"):
        assert actor in request
        assert actor in page
    assert "key:operator:operator" in request
    assert "key:operator:operator" in keyed.file("run-001", "run_summary.md")
    record = json.loads(keyed.file("run-001", "run.json"))
    assert record["started_by"] == "key:operator:operator"
    assert record["phases"][0]["reviewed_by"] == "key:claude-1:auditor"


def test_without_keys_agents_are_told_by_the_names_that_they_give_themselves(api: Api) -> None:
    host = socket.gethostname()
    api.start(phases=3)
    claim = {"role": "builder", "agent": "codex@far"}
    item = api.client.post("/runs/run-001/claim", json=claim).json()
    api.result(lease_token=item["lease"]["token"])
    api.result(phase_id="P0.1", agent="claude")
    api.result(phase_id="P0.2")
    phases = api.run()["tiers"][0]["phases"]
    assert [phase["built_by"] for phase in phases] == [
        "local:codex@far",
        f"local:claude@{host}",
        f"local:builder@{host}",
    ]
    assert api.run()["started_by"] == f"local:operator@{host}"
    api.start("run-002")
    api.client.post("/runs/run-002/cancel", json={})
    events = api.client.get("/runs/run-002/events").json()["events"]
    assert f"local:operator@{host}" in {event["actor"] for event in events}


@pytest.fixture
def empty_engine(empty_database_url: str) -> Iterator[Engine]:
    engine = make_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg2:"), 15)
    yield engine
    engine.dispose()


def test_the_migrations_keep_what_is_there_and_know_no_actor_of_it(empty_engine: Engine) -> None:
    from tests.test_database import _insert

    def to(revision: str, *, is_up: bool) -> None:
        with empty_engine.begin() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            (command.upgrade if is_up else command.downgrade)(config, revision)

    to("portable_names", is_up=True)
    with empty_engine.begin() as connection:
        _insert(connection, "runs", run_id="old", state="DONE_SUCCESS")
        _insert(connection, "tiers", run_pk=1, state="COMPLETE")
        _insert(connection, "phases", run_pk=1, tier_pk=1, state="COMPLETE")
        _insert(connection, "submissions", run_pk=1, phase_pk=1, tokens_used=5)
    migrate(empty_engine)
    with empty_engine.begin() as connection:
        found = connection.execute(
            text(
                "SELECT run_id, started_by, built_by, actor FROM runs"
                " JOIN phases ON run_pk = runs.id JOIN submissions ON phase_pk = phases.id"
            )
        ).one()
        assert tuple(found) == ("old", None, None, None)
        connection.execute(
            text(
                "INSERT INTO api_keys (name, roles, sha256, created_at, created_by)"
                " VALUES ('k', '{ci}', 'x', now(), 'local')"
            )
        )
    to("portable_names", is_up=False)
    migrate(empty_engine)
    with empty_engine.begin() as connection:
        assert connection.scalar(text("SELECT run_id FROM runs")) == "old"
        assert connection.scalar(text("SELECT count(*) FROM api_keys")) == 0
