"""No agent reviews or judges its own work where the ruleset asks for another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.api.conftest import with_remote
from tests.api.test_actors import keyed  # noqa: F401 - a fixture
from tests.api.test_keys import Team, call_tool, team  # noqa: F401 - fixtures

from autopack.config import Settings
from autopack.domain.access import AccessRole

if TYPE_CHECKING:
    from httpx2 import Response
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


def test_a_category_may_have_the_rule_and_the_high_risk_ones_have_it_by_default(api: Api) -> None:
    default = api.client.get("/project/ruleset").json()["categories"]
    assert {name for name, rule in default.items() if rule["independence"] == "agent"} == {
        name for name, rule in default.items() if rule["default_severity"] == "major"
    }
    for run_id, rule, status in (("run-001", "none", 200), ("run-002", "agent", 409)):
        ruleset = api.client.get("/project/ruleset").json()
        ruleset["categories"]["security_auth_change"]["independence"] = rule
        assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
        api.start(run_id, phase=HIGH_RISK)
        api.result(run_id, agent="codex@host", patch=api.new_file("src/a.py"))
        path = f"/runs/{run_id}/phases/P0.0/auditor_result"
        own = api.client.post(path, json={**APPROVE, "agent": "codex@host"})
        assert own.status_code == status, own.text


def change_rule(api: Api, **rule: object) -> None:
    ruleset = api.client.get("/project/ruleset").json()
    ruleset["categories"]["security_auth_change"] |= rule
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200


def test_two_auditors_approve_by_claims_and_the_record_names_both(api: Api) -> None:
    change_rule(api, approvals=2)
    api.start(phase=HIGH_RISK)
    api.result(agent="codex@host", patch=api.new_file("src/auth.py"))

    def claim(agent: str) -> Response:
        wanted = {"role": "auditor", "agent": agent}
        return api.client.post("/claim", json=wanted)

    def approve(token: str) -> Response:
        body = {**APPROVE, "lease_token": token}
        return api.client.post(f"{PHASE}/auditor_result", json=body)

    own = claim("codex@host")
    assert own.status_code == 204
    waits = "run run-001: P0.0 waits for another Auditor: local:codex@host built it"
    assert own.headers["Autopack-Waits"] == waits
    first = claim("claude@host").json()
    assert (first["review"]["approvals_needed"], first["review"]["approved_by"]) == (2, [])
    answer = approve(first["lease"]["token"]).json()
    assert (answer["phase_state"], answer["patches_applied"]) == ("GATE", 0)
    again = claim("claude@host")
    assert again.headers["Autopack-Waits"].endswith("local:claude@host has approved it")
    second = claim("gemini@host").json()
    assert second["review"]["approved_by"] == ["local:claude@host"]
    answer = approve(second["lease"]["token"]).json()
    assert (answer["phase_state"], answer["patches_applied"]) == ("COMPLETE", 1)
    (phase,) = api.document("run-001", "run.json")["phases"]
    assert (phase["approvals_needed"], phase["auditor_attempts_used"]) == (2, 1)
    assert phase["approved_by"] == ["local:claude@host", "local:gemini@host"]
    page = api.file("run-001", "phases/phase_0_P0.0.md")
    assert "`local:claude@host`, `local:gemini@host`" in page
    assert "2 Auditors must approve" in page


def test_one_auditor_cannot_approve_twice_and_nothing_changes(api: Api) -> None:
    change_rule(api, approvals=2)
    api.start(phase=HIGH_RISK)
    api.result(agent="codex@host", patch=api.new_file("src/auth.py"))
    for name in (None, "claude@host"):
        body = {**APPROVE, "agent": name}
        taken = api.client.post(f"{PHASE}/auditor_result", json=body)
        if name is None:
            assert taken.json()["phase_state"] == "GATE"
            before = api.run()
            other = {**body, "review_notes": "good, again"}
            refused = api.client.post(f"{PHASE}/auditor_result", json=other)
            api.refused(refused, 409, "already_approved", "agent name")
            assert api.run() == before
    assert api.run()["tiers"][0]["phases"][0]["state"] == "COMPLETE"


def test_models_must_differ_by_claim_and_by_result(api: Api) -> None:
    change_rule(api, independence="model")
    api.start(phase=HIGH_RISK)
    api.result(agent="codex@host", model="openai/gpt-5", patch=api.new_file("src/auth.py"))
    same = {"role": "auditor", "agent": "other@host", "model": "GPT-5"}
    waits = api.client.post("/runs/run-001/claim", json=same).headers["Autopack-Waits"]
    assert waits.endswith("the model 'GPT-5' built it")
    own = api.client.post(f"{PHASE}/auditor_result", json={**APPROVE, "model": "gpt-5"})
    api.refused(own, 409, "not_independent", "the model 'gpt-5' built it")
    wanted = {"role": "auditor", "agent": "codex@host", "model": "opus"}
    item = api.client.post("/claim", json=wanted).json()
    body = {**APPROVE, "lease_token": item["lease"]["token"]}
    assert api.client.post(f"{PHASE}/auditor_result", json=body).is_success
    (attempt,) = (
        each
        for each in api.client.get(f"{PHASE}/attempts").json()["attempts"]
        if each["role"] == "auditor"
    )
    assert attempt["model"] == "opus", "the result has the model of its claim"


def test_with_a_key_a_patch_and_a_review_name_their_model_where_models_must_differ(
    team: Team,  # noqa: F811 - the fixture
    keyed: Api,  # noqa: F811 - the fixture
) -> None:
    ruleset = team.ask("GET", "/project/ruleset", "operator").json()
    ruleset["categories"]["security_auth_change"]["independence"] = "model"
    assert team.ask("PUT", "/project/ruleset", "operator", json=ruleset).is_success
    team.ask("POST", "/runs/start", "operator", json=keyed.plan(phase=HIGH_RISK))
    built = {"status": "success", "patch_content": keyed.new_file("src/auth.py")}
    path = f"{PHASE}/builder_result"
    keyed.refused(team.ask("POST", path, "builder", json=built), 409, "not_independent", "`model`")
    assert team.ask("POST", path, "builder", json={**built, "model": "gpt-5"}).is_success
    path = f"{PHASE}/auditor_result"
    refused = team.ask("POST", path, "auditor", json=APPROVE)
    keyed.refused(refused, 409, "not_independent", "`model`")
    assert team.ask("POST", path, "auditor", json={**APPROVE, "model": "opus"}).is_success


class TestExternalCi:
    @pytest.fixture
    def settings(self, settings: Settings, tmp_path: Path) -> Settings:
        """A service with a remote, from which CI could fetch."""
        return with_remote(settings, tmp_path)

    def test_neither_the_builder_nor_an_auditor_judges(
        self,
        team: Team,  # noqa: F811 - the fixture
        keyed: Api,  # noqa: F811 - the fixture
    ) -> None:
        """A key that built or approved cannot post the verdict on it, whatever roles it has."""
        for name in ("maker", "checker"):
            team.make(name, *(role for role in AccessRole if role is not AccessRole.OPERATOR))
        ruleset = team.ask("GET", "/project/ruleset", "operator").json()
        ruleset["ci"]["mode"] = "external"
        ruleset["categories"]["security_auth_change"]["approvals"] = 2
        assert team.ask("PUT", "/project/ruleset", "operator", json=ruleset).is_success
        started = team.ask("POST", "/runs/start", "operator", json=keyed.plan(phase=HIGH_RISK))
        assert started.status_code == 201, started.text
        built = {"status": "success", "patch_content": keyed.new_file("src/auth.py")}
        assert team.ask("POST", f"{PHASE}/builder_result", "maker", json=built).is_success
        for auditor in ("checker", "auditor"):
            assert team.ask("POST", f"{PHASE}/auditor_result", auditor, json=APPROVE).is_success
        run = team.ask("GET", "/runs/run-001", "viewer").json()
        verdict = {"commit_sha": run["head_commit"], "verdict": "green"}
        path = f"{PHASE}/ci_result"
        for judge in ("maker", "checker"):
            refused = team.ask("POST", path, judge, json=verdict)
            keyed.refused(refused, 409, "not_independent", f"key:{judge}")
        assert team.ask("GET", "/runs/run-001", "viewer").json() == run
        assert team.ask("POST", path, "ci", json=verdict).is_success
        (phase,) = team.ask("GET", "/runs/run-001", "viewer").json()["tiers"][0]["phases"]
        assert (phase["state"], phase["judged_by"]) == ("COMPLETE", "key:ci:ci")


def test_one_key_reviews_or_approves_its_own_work_in_no_way(
    team: Team,  # noqa: F811 - the fixture
    keyed: Api,  # noqa: F811 - the fixture
) -> None:
    """Another name, MCP, another's lease, a new secret, a second approval: each is refused."""
    team.make("both", AccessRole.BUILDER, AccessRole.AUDITOR)
    ruleset = team.ask("GET", "/project/ruleset", "operator").json()
    ruleset["categories"]["security_auth_change"]["approvals"] = 2
    assert team.ask("PUT", "/project/ruleset", "operator", json=ruleset).is_success
    team.ask("POST", "/runs/start", "operator", json=keyed.plan(phase=HIGH_RISK))
    work = {"role": "builder", "agent": "codex"}
    item = team.ask("POST", "/claim", "both", json=work).json()
    built = {
        "status": "success",
        "patch_content": keyed.new_file("src/auth.py"),
        "lease_token": item["lease"]["token"],
    }
    assert team.ask("POST", f"{PHASE}/builder_result", "both", json=built).is_success
    path = f"{PHASE}/auditor_result"

    def refuse(key: str, code: str, **body: str) -> None:
        before = team.ask("GET", "/runs/run-001", "viewer").json()
        keyed.refused(team.ask("POST", path, key, json={**APPROVE, **body}), 409, code)
        where = {"run_id": "run-001", "phase_id": "P0.0"}
        by_mcp = call_tool(team, key, "submit_auditor_result", {**APPROVE, **body, **where})
        assert by_mcp["structuredContent"]["code"] == code
        assert team.ask("GET", "/runs/run-001", "viewer").json() == before

    refuse("both", "not_independent", agent="claude", model="opus")
    wanted = {"role": "auditor", "agent": "claude"}
    lease = team.ask("POST", "/claim", "auditor", json=wanted).json()["lease"]["token"]
    refuse("both", "not_independent", lease_token=lease)
    rotated = team.ask("POST", "/keys/both/rotate", "operator").json()["api_key"]
    assert team.ask("POST", "/claim", rotated, json=wanted).status_code == 204
    body = {**APPROVE, "lease_token": lease}
    assert team.ask("POST", path, "auditor", json=body).json()["phase_state"] == "GATE"
    refuse(rotated, "not_independent")
    refuse("auditor", "already_approved", agent="another")
    again = team.ask("POST", "/claim", "auditor", json={**wanted, "agent": "another"})
    assert again.headers["Autopack-Waits"].endswith("key:auditor has approved it")
    team.make("gemini", AccessRole.AUDITOR)
    assert team.ask("POST", path, "gemini", json=APPROVE).json()["phase_state"] == "COMPLETE"


def test_a_key_stays_the_builder_over_a_rotation_and_a_release(
    team: Team,  # noqa: F811 - the fixture
    keyed: Api,  # noqa: F811 - the fixture
) -> None:
    """The key is rotated while its agent works; work that was only claimed makes no Builder."""
    team.make("both", AccessRole.BUILDER, AccessRole.AUDITOR)
    team.make("idle", AccessRole.BUILDER, AccessRole.AUDITOR)
    team.ask("POST", "/runs/start", "operator", json=keyed.plan(phase=HIGH_RISK))

    def claim(key: str, role: str) -> Response:
        return team.ask("POST", "/claim", key, json={"role": role, "agent": "codex"})

    def give_back(key: str, taken: Response) -> None:
        body = {"lease_token": taken.json()["lease"]["token"]}
        assert team.ask("POST", f"{PHASE}/release", key, json=body).is_success

    give_back("idle", claim("idle", "builder"))
    lease = claim("both", "builder").json()["lease"]["token"]
    first = team.ask("POST", "/keys/both/rotate", "operator").json()["api_key"]
    second = team.ask("POST", "/keys/both/rotate", "operator").json()["api_key"]
    built = {
        "status": "success",
        "patch_content": keyed.new_file("src/auth.py"),
        "lease_token": lease,
    }
    path = f"{PHASE}/builder_result"
    keyed.refused(team.ask("POST", path, "both", json=built), 401)
    assert team.ask("POST", path, first, json=built).is_success
    review = claim("idle", "auditor")
    assert review.status_code == 200
    give_back("idle", review)
    for secret in (first, second):
        assert claim(secret, "auditor").status_code == 204
        refused = team.ask("POST", f"{PHASE}/auditor_result", secret, json=APPROVE)
        keyed.refused(refused, 409, "not_independent", "key:both")
    assert claim("idle", "auditor").status_code == 200
