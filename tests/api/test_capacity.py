"""Agents that could not work, and what agents cost, as clients see them."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration

Json = dict[str, Any]
NEEDS_APPROVAL = {"task_category": "debt_cleanup"}  # its patches wait for an Auditor
LIMIT = "You've hit your usage limit"


def give_back(api: Api, item: Json, **fields: Any) -> Response:
    path = f"/runs/{item['run_id']}/phases/{item['phase_id']}/release"
    return api.client.post(path, json={"lease_token": item["lease"]["token"], **fields})


def later(agents: Agents, **time: float) -> str:
    return (agents.now + timedelta(**time)).isoformat()


def told(api: Api) -> str:
    return str(api.run()["next"]["detail"])


def attempts(api: Api) -> list[Json]:
    page = api.client.get("/runs/run-001/phases/P0.0/attempts").json()
    found: list[Json] = page["attempts"]
    return found


class TestRelease:
    def test_uses_no_try_and_another_account_may_claim_at_once(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim(account="mine")
        agents.beat(item, 70, cost_usd="0.5")
        retry_at = later(agents, minutes=30)
        answer = give_back(api, item, reason=LIMIT, retry_at=retry_at, account="mine").json()
        assert answer["phase_state"] == "QUEUED"
        phase = api.phase()
        assert phase["builder_attempts_used"] == 0
        assert (phase["tokens_used"], phase["cost_usd"]) == (70, "0.500000"), "as of the last beat"
        assert phase["unavailable_reason"] == LIMIT
        assert phase["retry_account"] == "mine"
        assert phase["deadline_at"] is None
        assert agents.reserved() == (0, 0)
        for waits in ("mine", None):
            assert agents.ask(account=waits).status_code == 204
            assert agents.ask(run_id=None, account=waits).status_code == 204
        other = agents.claim(run_id=None, account="theirs")
        assert agents.build(other).json()["run_state"] == "DONE_SUCCESS"

    def test_is_waited_for_until_its_time(self, api: Api, agents: Agents) -> None:
        api.start()
        give_back(api, agents.claim(), reason=LIMIT, retry_at=later(agents, minutes=30))
        agents.nothing_for()
        assert agents.peek().status_code == 204
        assert f"unavailable until {agents.now + timedelta(minutes=30):%Y-%m-%d}" in told(api)
        agents.wait(minutes=31)
        assert told(api).endswith(f"the last agent was unavailable: {LIMIT}"), "no time gone by"
        assert api.run()["next"]["until"] == api.run()["deadline_at"]
        (listed,) = api.client.get("/runs").json()["runs"]
        assert listed["next"] == api.run()["next"]
        assert agents.claim()["phase_id"] == "P0.0"

    def test_sent_twice_has_one_effect_and_a_lost_lease_none(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        first, second = (give_back(api, item, reason=LIMIT) for _ in range(2))
        assert first.json() == second.json()
        assert second.headers["Idempotency-Replayed"] == "true"
        api.refused(give_back(api, item, reason="another"), 409, "lease_lost")
        agents.claim()
        api.refused(give_back(api, item), 409, "lease_lost")
        kinds = [event["kind"] for event in agents.events()]
        assert kinds.count("AgentUnavailable") == 1

    def test_of_a_review_leaves_its_patch_pending(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        agents.build(agents.claim())
        item = agents.claim("auditor")
        assert give_back(api, item, reason=LIMIT).json()["phase_state"] == "GATE"
        assert api.phase()["auditor_attempts_used"] == 0
        again = agents.claim("auditor")
        assert again["review"]["is_pending"]
        assert agents.review(token=again["lease"]["token"]).json()["phase_state"] == "COMPLETE"

    def test_of_a_review_says_until_when_the_run_waits(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        agents.build(agents.claim())
        reviewed_until = datetime.fromisoformat(api.run()["next"]["until"])
        back = agents.now + timedelta(minutes=7)
        give_back(api, agents.claim("auditor"), reason=LIMIT, retry_at=back.isoformat())
        waits = api.run()["next"]
        assert datetime.fromisoformat(waits["until"]) == back
        assert f"unavailable until {back:%Y-%m-%dT%H:%M:%SZ}: {LIMIT}" in waits["detail"]
        assert reviewed_until > back, "the review's own deadline is later"

    @pytest.mark.parametrize(
        ("fields", "word"),
        [
            ({"retry_at": "tomorrow"}, "retry_at"),
            ({"retry_at": "2026-01-01T12:00:00"}, "retry_at"),  # of no zone
            ({"account": ""}, "account"),
            ({"until": "2026-01-01T12:00:00Z"}, "until"),
        ],
    )
    def test_that_makes_no_sense_is_refused(
        self, api: Api, agents: Agents, fields: Json, word: str
    ) -> None:
        api.start()
        api.refused(give_back(api, agents.claim(), **fields), 422, None, word)


class TestUnavailableResults:
    def test_of_a_builder_are_recorded_and_no_try(self, api: Api, agents: Agents) -> None:
        api.start()
        answer = agents.build(
            agents.claim(account="mine"),
            status="unavailable",
            patch="",
            reason=LIMIT,
            retry_at=later(agents, minutes=5),
            tokens_used=12,
        ).json()
        assert answer["phase_state"] == "QUEUED"
        assert LIMIT in answer["next"]["detail"]
        phase, (attempt,) = api.phase(), attempts(api)
        assert (phase["builder_attempts_used"], phase["tokens_used"]) == (0, 12)
        assert (attempt["outcome"], attempt["reason"]) == ("unavailable", LIMIT)
        assert attempt["account"] == "mine"
        page = (api.runs_dir / "run-001" / "phases" / "phase_0_P0.0.md").read_text()
        assert "**Waits:** for an agent until" in page

    def test_of_an_auditor_are_recorded_and_no_try(self, api: Api, agents: Agents) -> None:
        api.start(phase=NEEDS_APPROVAL)
        agents.build(agents.claim())
        token = agents.claim("auditor")["lease"]["token"]
        assert agents.review("unavailable", token).json()["phase_state"] == "GATE"
        assert api.phase()["auditor_attempts_used"] == 0
        assert agents.review().json()["phase_state"] == "COMPLETE"

    def test_carry_no_patch_and_others_no_reason(self, api: Api, agents: Agents) -> None:
        api.start()
        item = agents.claim()
        api.refused(agents.build(item, status="unavailable"), 422, None, "patch_content")
        api.refused(agents.build(item, reason=LIMIT), 422, None, "reason")
        assert api.phase()["state"] == "EXECUTING"  # nothing has happened

    def test_that_outlast_the_run_end_it_as_the_environments_fault(
        self, api: Api, agents: Agents
    ) -> None:
        api.start(max_duration_minutes=60)
        give_back(api, agents.claim(), reason=LIMIT, retry_at=later(agents, hours=5))
        agents.wait(minutes=61)
        agents.upkeep()
        run = api.run()
        assert run["state"] == "DONE_FAILED_ENVIRONMENT"
        assert run["failure_code"] == "agents_unavailable"
        assert LIMIT in run["failure_reason"]
        assert "capacity" in (api.runs_dir / "run-001" / "incident.md").read_text()


class TestCost:
    def test_is_summed_exactly_and_shown_everywhere(self, api: Api, agents: Agents) -> None:
        api.start(phases=2, cost_cap_usd="1.50")
        for cost in (0.1, "0.2"):
            agents.build(agents.claim(), status="failed", patch="", cost_usd=cost, model="m-1")
        agents.build(agents.claim(), cost_usd=0, tokens_used=100)
        run = api.run()
        assert (run["cost_usd"], run["cost_cap_usd"]) == ("0.300000", "1.500000")
        assert run["tiers"][0]["cost_usd"] == "0.300000"
        assert [phase["cost_usd"] for phase in run["tiers"][0]["phases"]] == [
            "0.300000",
            "0.000000",
        ]
        assert [attempt["cost_usd"] for attempt in attempts(api)] == [
            "0.100000",
            "0.200000",
            "0.000000",
        ]
        summary = api.client.get("/reports/run_summary/run-001").json()
        assert summary["attempts"]["builder"]["cost_usd"] == "0.300000"
        budget = next(each for each in summary["budgets"] if each["name"] == "cost_cap_usd")
        assert budget == {
            "name": "cost_cap_usd",
            "cap": "1.500000",
            "used": "0.300000",
            "left": "1.200000",
            "utilization": 0.2,
            "is_passed": False,
        }
        metrics = api.client.get("/metrics/runs").json()["runs"][0]
        assert (metrics["cost_usd"], metrics["cost_cap_usd"]) == ("0.300000", "1.500000")
        assert api.client.get("/metrics/tiers/run-001").json()["tiers"][0]["cost_usd"] == "0.300000"
        assert 'autopack_live_cost_usd{project="Autopack"} 0.3\n' in api.client.get("/metrics").text
        page = (api.runs_dir / "run-001" / "run_summary.md").read_text()
        assert "| Cost | $0.3000 | $1.50 | 20% |" in page

    def test_that_passes_the_cap_ends_the_run_and_applies_nothing(
        self, api: Api, agents: Agents
    ) -> None:
        api.start(cost_cap_usd=1)
        answer = agents.build(agents.claim(), cost_usd="1.000001").json()
        assert (answer["run_state"], answer["commit_sha"]) == (
            "DONE_FAILED_BUDGET_EXHAUSTED",
            None,
        )
        run = api.run()
        assert run["failure_code"] == "cost_cap"
        assert run["failure_reason"] == "run cost_cap_usd 1.000000 passed: 1.000001 USD spent"
        failure = api.client.get("/reports/budget_analysis").json()["failures"][0]
        assert failure["broken_budget"]["name"] == "cost_cap_usd"
        assert failure["broken_budget"]["used"] == failure["cost_usd"] == "1.000001"
        incident = json.loads((api.runs_dir / "run-001" / "incident.json").read_text())
        assert {"name": "run cost_cap_usd", "cap": "1.000000", "used": "1.000001"}.items() <= next(
            budget for budget in incident["budgets"] if "cost" in budget["name"]
        ).items()
        record = json.loads((api.runs_dir / "run-001" / "run.json").read_text())
        assert record["budgets"]["cost_usd"] == "1.000001"

    def test_is_made_by_the_rulesets_prices_where_none_is_given(
        self, api: Api, agents: Agents
    ) -> None:
        price = {"input": 1.25, "output": "10", "cached": "0.125", "date": "2026-11-01"}
        ruleset = {
            "project_id": "Autopack",
            "prices": {"m-1": price},
            "run": {"cost_cap_usd": 5, "token_cap": 10_000_000},
        }
        assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
        assert api.start(phases=3)["cost_cap_usd"] == "5.000000"
        kinds = {"input_tokens": 1_000_000, "output_tokens": 100_000, "cached_tokens": 2_000_000}
        agents.build(agents.claim(), model="m-1", **kinds)
        agents.build(agents.claim(), model="m-2", **kinds)  # of no known price
        agents.build(agents.claim(), model="m-1", cost_usd="0.5", **kinds)  # the agent knows better
        found = [
            api.client.get(f"/runs/run-001/phases/P0.{number}/attempts").json()["attempts"][0]
            for number in range(3)
        ]
        assert [each["cost_usd"] for each in found] == ["2.500000", None, "0.500000"]
        assert found[0]["price"] == {
            "model": "m-1",
            "input": "1.250000",
            "output": "10.000000",
            "cached": "0.125000",
            "date": "2026-11-01",
        }
        assert [each["price"] for each in found[1:]] == [None, None]
        assert [each["tokens_used"] for each in found] == [3_100_000] * 3
        assert api.run()["cost_usd"] == "3.000000"

    def test_of_an_attempt_replaces_what_its_heartbeats_said(
        self, api: Api, agents: Agents
    ) -> None:
        api.start()
        item = agents.claim()
        for tokens in (100, 200):
            agents.beat(item, tokens)
        agents.build(item, tokens_used=250)
        assert api.run()["tokens_used"] == 250

    @pytest.mark.parametrize("cost", [-1, "a lot", "NaN", True, 2_000_000_000])
    def test_that_is_no_amount_is_refused(self, api: Api, agents: Agents, cost: object) -> None:
        api.start()
        api.refused(agents.build(agents.claim(), cost_usd=cost), 422, None, "cost_usd")
