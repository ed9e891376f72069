"""No agent reviews or judges its own work where the ruleset asks for another."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from tests.api.test_actors import keyed  # noqa: F401 - a fixture
from tests.api.test_keys import Team, team  # noqa: F401 - fixtures

from autopack.domain.access import AccessRole

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

PHASE = "/runs/run-001/phases/P0.0"
HIGH_RISK = {"task_category": "security_auth_change"}
APPROVE = {"recommendation": "approve", "review_notes": "good", "confidence": "high"}
WARNING = "independence rests on names that agents gave themselves"


def test_a_key_with_both_roles_cannot_review_what_it_built(
    team: Team,  # noqa: F811 - the fixture
    keyed: Api,  # noqa: F811 - the fixture
) -> None:
    team.make("both", AccessRole.BUILDER, AccessRole.AUDITOR, AccessRole.CI)
    plan = keyed.plan(phase=HIGH_RISK, safety_profile="safety_critical")
    assert team.ask("POST", "/runs/start", "operator", json=plan).status_code == 201
    built = {"status": "success", "patch_content": keyed.new_file("src/auth.py")}
    assert team.ask("POST", f"{PHASE}/builder_result", "both", json=built).is_success
    wanted = {"role": "auditor", "agent": "another name"}
    for path in ("/claim", "/runs/run-001/claim"):
        assert team.ask("POST", path, "both", json=wanted).status_code == 204
    before = team.ask("GET", "/runs/run-001", "viewer").json()
    refused = team.ask("POST", f"{PHASE}/auditor_result", "both", json=APPROVE)
    keyed.refused(refused, 409, "not_independent", "key:both")
    assert team.ask("GET", "/runs/run-001", "viewer").json() == before
    assert team.ask("POST", "/claim", "auditor", json=wanted).status_code == 200
    team.make("claude", AccessRole.AUDITOR)


def test_another_key_reviews_and_the_record_shows_both(
    team: Team,  # noqa: F811 - the fixture
    keyed: Api,  # noqa: F811 - the fixture
) -> None:
    team.ask(
        "POST",
        "/runs/start",
        "operator",
        json=keyed.plan(phase=HIGH_RISK, safety_profile="safety_critical"),
    )
    built = {"status": "success", "patch_content": keyed.new_file("src/auth.py")}
    assert team.ask("POST", f"{PHASE}/builder_result", "builder", json=built).is_success
    assert team.ask("POST", f"{PHASE}/auditor_result", "auditor", json=APPROVE).is_success
    record = json.loads(keyed.file("run-001", "run.json"))
    (phase,) = record["phases"]
    assert (phase["independence"], phase["built_by"], phase["reviewed_by"]) == (
        "agent",
        "key:builder:builder",
        "key:auditor:auditor",
    )
    assert WARNING not in record["promotion"]["warnings"]


def test_without_keys_the_names_count_and_promotion_warns(api: Api) -> None:
    api.start(phase=HIGH_RISK, safety_profile="safety_critical")
    api.result(agent="codex@host", patch=api.new_file("src/auth.py"))
    wanted = {"role": "auditor", "agent": "codex@host"}
    assert api.client.post("/runs/run-001/claim", json=wanted).status_code == 204
    own = api.client.post(f"{PHASE}/auditor_result", json={**APPROVE, "agent": "codex@host"})
    api.refused(own, 409, "not_independent", "local:codex@host")
    other = api.client.post(f"{PHASE}/auditor_result", json={**APPROVE, "agent": "claude@host"})
    assert other.status_code == 200, other.text
    assert (
        WARNING
        in api.run()["promotion_reasons"]
        + api.document("run-001", "run.json")["promotion"]["warnings"]
    )


def test_a_result_that_names_no_agent_is_accepted_without_keys(api: Api) -> None:
    api.start(phase=HIGH_RISK, safety_profile="safety_critical")
    api.result(patch=api.new_file("src/auth.py"))
    assert api.client.post(f"{PHASE}/auditor_result", json=APPROVE).status_code == 200


def test_a_category_may_have_the_rule_and_has_none_by_default(api: Api) -> None:
    for run_id, rule, status in (("run-001", "none", 200), ("run-002", "agent", 409)):
        ruleset = api.client.get("/project/ruleset").json()
        ruleset["categories"]["security_auth_change"]["independence"] = rule
        assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
        api.start(run_id, phase=HIGH_RISK)
        api.result(run_id, agent="codex@host", patch=api.new_file("src/a.py"))
        path = f"/runs/{run_id}/phases/P0.0/auditor_result"
        own = api.client.post(path, json={**APPROVE, "agent": "codex@host"})
        assert own.status_code == status, own.text
