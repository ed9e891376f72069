"""What needs a person: each kind appears with its cause and goes with it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import event, text

from autopack.contexts import create_key, revoke_key
from autopack.domain.access import AccessRole, Caller
from autopack.domain.attention import AttentionKind, Disk
from autopack.domain.evidence import Evidence
from autopack.domain.keys import NewKey
from autopack.domain.terms import EvidenceKind, EvidenceResult
from autopack.models import Push
from autopack.services import attention as service
from autopack.services.context import utc_now

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI
    from tests.api.conftest import Agents, Api
    from tests.conftest import Explain

    from autopack.config import Settings

pytestmark = pytest.mark.integration

Json = dict[str, Any]


def listed(api: Api) -> dict[str, Json]:
    """Return all items by their ids."""
    response = api.client.get("/attention")
    assert response.status_code == 200, response.text
    answer = response.json()
    items: list[Json] = answer["items"]
    assert answer["count"] == len(items)
    assert answer["is_complete"]
    for item in items:
        if item["action"]["method"] == "GET":
            path = item["action"]["path"]
            assert api.client.get(path).status_code in (200, 503), path
        assert api.client.get(item["evidence"]).status_code in (200, 503), item["evidence"]
    return {item["id"]: item for item in items}


def merge(api: Api, run_id: str, *how: str) -> None:
    api.repo.git("merge", "--quiet", *how, f"autonomous/{run_id}")


def test_nothing_needs_a_person_at_first(api: Api, agents: Agents) -> None:
    assert listed(api) == {}
    api.start()
    agents.claim()
    assert listed(api) == {}


def test_a_failed_run_needs_a_person_until_an_operator_dismisses_it(
    api: Api, agents: Agents
) -> None:
    api.start(max_duration_minutes=1)
    agents.wait(minutes=2)
    agents.upkeep()
    item = listed(api)["run_failed:run-001"]
    assert item["severity"] == "error"
    assert "max_duration_minutes" in item["text"]
    assert item["since"] == api.run()["ended_at"]
    assert item["action"]["command"] == "autopack run retry run-001"
    assert item["is_dismissible"]
    closed = api.client.post("/attention/run_failed:run-001/dismiss")
    assert closed.status_code == 200, closed.text
    assert closed.json()["closed_as"] == "dismissed"
    assert closed.json()["closed_by"].startswith("local:operator@")
    assert listed(api) == {}
    assert api.client.post("/attention/run_failed:run-001/dismiss").json() == closed.json()
    entries = api.client.get("/audit").json()["entries"]
    assert [(each["action"], each["subject"]) for each in entries] == [
        ("attention_dismissed", "run-001")
    ]


def test_a_failed_run_that_another_one_continues_needs_nobody(api: Api, agents: Agents) -> None:
    api.start(max_duration_minutes=1)
    agents.wait(minutes=2)
    agents.upkeep()
    action = listed(api)["run_failed:run-001"]["action"]
    continued = api.client.post(action["path"], json=action["body"])
    assert continued.status_code == 201, continued.text
    assert listed(api) == {}
    closed = api.client.post("/attention/run_failed:run-001/dismiss").json()
    assert closed["closed_as"] == "continued"


def test_a_run_that_was_cancelled_needs_nobody(api: Api, agents: Agents) -> None:
    api.start()
    api.client.post("/runs/run-001/cancel", json={"reason": "not needed"})
    assert listed(api) == {}


def test_what_is_no_end_of_a_run_cannot_be_dismissed(api: Api, agents: Agents) -> None:
    api.start()
    for item, status, code in (
        ("budget_low:run-001", 409, "not_dismissible"),
        ("run_failed:run-001", 409, "not_dismissible"),
        ("run_failed:nobody", 404, "not_found"),
        ("run_failed", 404, "not_found"),
        ("nothing:run-001", 404, "not_found"),
        ("run_failed:%0Arun-001", 404, "not_found"),
    ):
        api.refused(api.client.post(f"/attention/{item}/dismiss"), status, code)


@pytest.mark.parametrize("how", [(), ("--squash",)])
def test_an_eligible_run_waits_until_its_branch_is_merged(
    api: Api, agents: Agents, how: tuple[str, ...]
) -> None:
    api.start()
    api.result()
    item = listed(api)["run_eligible:run-001"]
    assert (item["severity"], item["text"]) == ("notice", "succeeded and may be merged into main")
    merge(api, "run-001", *how)
    if how:
        api.repo.git("commit", "--quiet", "--message", "Take it over")
    assert listed(api) == {}
    agents.upkeep()
    closed = api.client.post("/attention/run_eligible:run-001/dismiss").json()
    assert (closed["closed_as"], closed["closed_by"]) == ("merged", "supervisor")


def test_a_run_that_conflicts_with_todays_base_is_blocked_until_it_does_not(
    api: Api, agents: Agents
) -> None:
    api.start()
    api.result()
    base = api.repo.git("rev-parse", "main")
    api.repo.commit({"src/P0.0.txt": "another text\n"})
    found = listed(api)
    assert list(found) == ["promotion_blocked:run-001"]
    assert "does not merge with main" in found["promotion_blocked:run-001"]["text"]
    api.repo.git("reset", "--quiet", "--hard", base)
    assert list(listed(api)) == ["run_eligible:run-001"]


def test_a_run_that_succeeded_with_reasons_against_it_is_blocked(api: Api, agents: Agents) -> None:
    api.start(phases=2)
    api.result()
    api.status("SKIPPED", phase_id="P0.1")
    item = listed(api)["promotion_blocked:run-001"]
    assert "'P0.1' was skipped by hand" in item["text"]
    assert api.client.post(item["action"]["path"]).status_code == 200
    assert listed(api) == {}


def test_a_strangers_hand_on_a_ref_is_told_from_other_failures(api: Api, agents: Agents) -> None:
    api.start(phases=2)
    api.result()
    theirs = api.repo.commit({"theirs.txt": "x\n"})
    api.repo.git("update-ref", "refs/heads/autonomous/run-001", theirs)
    api.result(phase_id="P0.1")
    found = listed(api)
    assert list(found) == ["branch_moved:run-001"]
    assert theirs in found["branch_moved:run-001"]["text"]
    assert api.client.post("/attention/branch_moved:run-001/dismiss").status_code == 200
    assert listed(api) == {}


def test_a_budget_that_is_nearly_used_up_is_told_while_the_run_lives(
    api: Api, agents: Agents
) -> None:
    api.start(token_cap=1_000, max_duration_minutes=100, phases=2)
    api.result(tokens_used=800)
    item = listed(api)["budget_low:run-001"]
    assert item["text"] == "has used 80 % of its 1,000 tokens"
    counted = [each["at"] for each in agents.events() if each["kind"] == "TokensCounted"]
    assert item["since"] == counted[0]
    agents.wait(minutes=81)
    item = listed(api)["budget_low:run-001"]
    assert item["text"].endswith("80 % of its 1,000 tokens and 81 % of its 100 minutes")
    answer = api.client.post(item["action"]["path"], json=item["action"]["body"])
    assert answer.status_code == 200, answer.text
    assert listed(api) == {}


def test_money_that_is_nearly_used_up_is_told_too(api: Api, agents: Agents) -> None:
    api.start(cost_cap_usd="10", phases=2)
    api.result(cost_usd="7.99")
    assert listed(api) == {}
    api.result(phase_id="P0.1", cost_usd="0.01", status="failed", patch="")
    item = listed(api)["budget_low:run-001"]
    assert item["text"].startswith("has used 80 % of its $10")
    counted = [each["at"] for each in agents.events() if each["kind"] == "TokensCounted"]
    assert item["since"] == counted[-1]


def test_a_phase_whose_agents_have_no_capacity_is_told_until_one_has(
    api: Api, agents: Agents
) -> None:
    api.start()
    held = agents.claim()
    body = {
        "lease_token": held["lease"]["token"],
        "reason": "rate limit \x1b[31m",
        "retry_at": (agents.now + timedelta(hours=1)).isoformat(),
        "account": "mine",
    }
    released = api.client.post("/runs/run-001/phases/P0.0/release", json=body)
    assert released.status_code == 200, released.text
    item = listed(api)["agents_unavailable:run-001:P0.0"]
    assert "had no capacity (rate limit" in item["text"]
    assert "\x1b" not in item["text"]
    agents.claim(account="theirs")
    assert listed(api) == {}


def test_a_phase_that_none_has_claimed_for_ten_minutes_is_told(api: Api, agents: Agents) -> None:
    api.start(phases=2)
    agents.wait(minutes=9)
    api.issue()  # which is no reason to wait anew
    assert listed(api) == {}
    agents.wait(minutes=1)
    item = listed(api)["phase_unclaimed:run-001:P0.0"]
    assert item["action"]["command"] == "autopack work --run run-001 --builder COMMAND"
    claimed = agents.claim()
    assert listed(api) == {}
    agents.build(claimed)
    agents.wait(minutes=9)
    assert listed(api) == {}
    agents.wait(minutes=1)
    assert list(listed(api)) == ["phase_unclaimed:run-001:P0.1"]


def test_a_review_that_none_has_claimed_is_told_too(api: Api, agents: Agents) -> None:
    api.start(phase={"task_category": "security_auth_change", "complexity": "high"})
    agents.build(agents.claim())
    assert api.phase()["state"] == "GATE"
    agents.wait(minutes=10)
    item = listed(api)["phase_unclaimed:run-001:P0.0"]
    assert item["text"] == "phase P0.0 waits for an Auditor, and none has claimed it"


class TestWithARemote:
    @pytest.fixture
    def settings(self, settings: Settings, tmp_path: Path) -> Settings:
        return settings.model_copy(update={"git_remote": SecretStr(str(tmp_path / "gone.git"))})

    def test_pushes_that_fail_are_one_item(self, api: Api, agents: Agents, app: FastAPI) -> None:
        api.start("run-1")
        api.start("run-2")
        for run in api.client.get("/runs").json()["runs"]:
            with app.state.context.writing() as session:
                session.execute(
                    text(
                        "INSERT INTO pushes (run_pk, wanted_revision, attempts, next_try_at,"
                        " last_error) SELECT id, 1, 1, now(), 'no such remote' FROM runs"
                        " WHERE run_id = :run ON CONFLICT (run_pk) DO UPDATE SET"
                        " last_error = 'no such remote', next_try_at = now()"
                    ),
                    {"run": run["run_id"]},
                )
                session.commit()
        item = listed(api)["push_failing"]
        assert item["text"] == "2 runs wait to be pushed: no such remote"
        assert item["run_id"] == "run-1"
        with app.state.context.writing() as session:
            session.query(Push).update({"last_error": None})
            session.commit()
        assert listed(api) == {}

    def test_ci_that_cannot_run_is_told_while_the_run_lives_and_after_it(
        self, api: Api, agents: Agents, app: FastAPI
    ) -> None:
        document = {"project_id": "Autopack", "ci": {"mode": "external"}}
        assert api.client.put("/project/ruleset", json=document).status_code == 200
        api.start()
        api.result()
        with app.state.context.writing() as session:  # what the first of two tries leaves
            session.execute(
                text(
                    "INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt, verdict,"
                    " reason, requested_at, ended_at, is_flaky)"
                    " SELECT run_pk, id, 'x', 'strict', 9, 'did_not_run', 'no bwrap', now(), now(),"
                    " false FROM phases"
                )
            )
            session.commit()
        item = listed(api)["ci_did_not_run:run-001:P0.0"]
        assert item["text"] == "CI could not run for phase P0.0: no bwrap"
        body = {"commit_sha": api.head(), "verdict": "did_not_run", "summary": "no runner"}
        api.client.post("/runs/run-001/phases/P0.0/ci_result", json=body)
        found = listed(api)
        assert list(found) == ["ci_did_not_run:run-001"]
        assert "no runner" in found["ci_did_not_run:run-001"]["text"]
        assert api.client.post("/attention/ci_did_not_run:run-001/dismiss").status_code == 200
        assert listed(api) == {}


def test_a_deaf_gate_is_an_item_until_seeded_faults_are_noticed(api: Api, app: FastAPI) -> None:
    reason = "deaf_gate: the command is green with the seeded fault: a.py:3"
    insert = text(
        "INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt, verdict, reason,"
        " requested_at, ended_at, is_flaky, evidence) SELECT run_pk, id, 'x', 'strict', :attempt,"
        " 'red', 'deaf', now(), now(), false, CAST(:evidence AS jsonb) FROM phases"
    )
    api.start()
    for attempt, result in ((1, "passed"), (2, "failed"), (3, "not_needed"), (4, "passed")):
        entry = Evidence(
            kind=EvidenceKind.SEEDED_FAULTS, result=EvidenceResult(result), reason=reason
        ).document()
        with app.state.context.writing() as session:
            session.execute(insert, {"attempt": attempt, "evidence": json.dumps([entry])})
            session.commit()
        found = listed(api)
        if result == "passed":
            assert "deaf_gate:run-001" not in found
        else:
            item = found["deaf_gate:run-001"]
            assert item["text"] == f"CI does not notice faults in the new code: {reason}"
            assert item["action"]["command"] == "autopack gate prove"


def test_aged_issues_are_one_item_until_they_are_resolved(api: Api, agents: Agents) -> None:
    for number in range(3):
        api.start(f"run-{number}")
        for key in ("a/b", "two", "three", "four"):
            api.issue(key, f"run-{number}")
    item = listed(api)["issues_aged"]
    assert item["text"] == "4 issues are old enough for a cleanup: a/b, two, three and 1 more"
    assert item["action"]["command"] == "autopack issues resolve a/b"
    assert api.client.post(item["action"]["path"]).status_code == 200
    for key in ("two", "three", "four"):
        api.client.post(f"/project/issues/{key}/resolve")
    assert listed(api) == {}


def test_a_disk_that_is_nearly_full_is_one_item(
    api: Api, agents: Agents, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 900_000_000

    def disk_of(name: str, folder: Path) -> Disk:
        return Disk(
            name=name,
            folder=str(folder),
            free_bytes=room,
            total_bytes=10**12,
            free_inodes=10**6,
            total_inodes=10**7,
        )

    monkeypatch.setattr(service, "disk_of", disk_of)
    found = listed(api)
    assert list(found) == ["disk_low:home"]
    assert "0.9 GB left" in found["disk_low:home"]["text"]
    room = 10**11
    assert listed(api) == {}


def test_a_key_that_is_about_to_expire_is_told_to_operators_alone(
    api: Api, agents: Agents, app: FastAPI
) -> None:
    context = app.state.context.for_caller(Caller(name="ada@host"))
    expires_at = agents.now + timedelta(days=8)
    wanted = NewKey(name="ci-1", roles=(AccessRole.CI,), expires_at=expires_at)
    create_key(context, wanted)
    assert listed(api) == {}
    agents.wait(days=6)
    item = listed(api)["key_expiring:ci-1"]
    assert item["action"]["command"] == (
        "autopack keys create --name ci-1-2 --role ci --expires 90d"
    )
    viewer = Caller(key="eye-1", roles=frozenset({AccessRole.VIEWER}))
    assert service.attention(app.state.context.for_caller(viewer)).items == []
    revoke_key(context, "ci-1")
    assert listed(api) == {}


def test_a_webhook_that_is_off_is_told_until_it_is_enabled(
    api: Api, agents: Agents, app: FastAPI
) -> None:
    """How it comes to be off is in test_webhooks.py."""
    with app.state.context.writing() as session:
        session.execute(
            text(
                "INSERT INTO webhooks (name, url, kinds, format, secret, position, created_at,"
                " created_by, off_at, off_reason) VALUES ('hook', 'https://example.org/', '{*}',"
                " 'cloudevents', 'whsec_', 0, now(), 'ada', now(), 'a delivery failed for a day')"
            )
        )
        session.commit()
    item = listed(api)["webhook_off:hook"]
    assert item["text"] == "webhook hook is off: a delivery failed for a day"
    assert api.client.post(item["action"]["path"]).status_code == 200
    assert listed(api) == {}


def test_the_most_urgent_come_first(api: Api, agents: Agents) -> None:
    api.start("run-1")
    api.result("run-1")
    api.start("run-2", max_duration_minutes=20)
    agents.wait(minutes=17)
    api.start("run-3", max_duration_minutes=1)
    agents.wait(minutes=2)
    agents.upkeep()
    severities = [item["severity"] for item in listed(api).values()]
    assert severities == ["error", "warning", "warning", "notice"]


@pytest.mark.parametrize(
    ("plan", "results", "most"),
    [
        ({}, 1, 2),  # runs that may be merged
        ({"token_cap": 10, "phases": 2}, 1, 1),  # runs with a low budget
        ({}, 0, 1),  # phases that wait for an agent
    ],
)
def test_a_list_that_may_leave_something_out_says_so(
    api: Api, monkeypatch: pytest.MonkeyPatch, plan: Json, results: int, most: int
) -> None:
    monkeypatch.setattr(service, "MOST_OF_A_KIND", 2)
    for number in range(most + 1):
        assert api.client.get("/attention").json()["is_complete"]
        api.start(f"run-{number}", **plan)
        for _ in range(results):
            api.result(f"run-{number}", patch=api.new_file(f"{number}.txt"), tokens_used=9)
    assert not api.client.get("/attention").json()["is_complete"]


def test_old_ends_are_left_to_the_list_of_runs(api: Api, agents: Agents) -> None:
    api.start()
    api.result()
    agents.wait(days=31)
    assert listed(api) == {}


def test_every_kind_has_a_test_above() -> None:
    with open(__file__) as file:
        tests = file.read()
    assert [kind for kind in AttentionKind if str(kind) not in tests] == []


def test_the_number_of_statements_does_not_grow_with_the_runs(api: Api, app: FastAPI) -> None:
    app.state.context = replace(app.state.context, now=utc_now)
    counted: list[str] = []
    for engine in (app.state.context.engine, app.state.context.autocommit):
        event.listen(
            engine,
            "before_cursor_execute",
            lambda _connection, _cursor, statement, *_: counted.append(statement),
        )
    api.client.get("/attention")
    first = len(counted)
    for number in range(3):
        api.start(f"run-{number}", token_cap=10, phases=2)
        api.result(f"run-{number}", tokens_used=9)
    counted.clear()
    assert api.client.get("/attention").json()["count"] == 3
    assert len(counted) == first == 7


def test_reads_by_indexes_that_hold_what_is_open(api: Api, app: FastAPI, explain: Explain) -> None:
    statements: list[tuple[str, Any]] = []
    engine = app.state.context.engine

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        statements.append((statement, values))

    event.listen(engine, "before_cursor_execute", note)
    api.client.get("/attention")
    event.remove(engine, "before_cursor_execute", note)
    plans = "\n".join(
        explain(statement, values, without=["seqscan"]) for statement, values in statements
    )
    for index in (
        "ix_runs_unclosed_ended_at",
        "ix_runs_live_deadline_at",
        "ix_pushes_pending_next_try_at",
        "ix_backlog_needs_cleanup_at",
    ):
        assert index in plans, plans
