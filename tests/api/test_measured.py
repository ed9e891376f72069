"""Tokens that a gateway counted, beside those that agents tell. (docs/rules.md §3.1)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.dashboard.test_pages import words

from autopack.dashboard.rendering import HOME

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration

KINDS = {"input_tokens": 600, "cached_tokens": 300, "output_tokens": 100, "reasoning_tokens": 40}
MEASURED: dict[str, Any] = KINDS | {"is_measured": True, "cost_usd": "0.25"}


def attempts(api: Api) -> list[dict[str, Any]]:
    page = api.client.get("/runs/run-001/phases/P0.0/attempts").json()
    found: list[dict[str, Any]] = page["attempts"]
    return found


def test_the_mark_of_a_result_is_shown_wherever_its_tokens_are(api: Api, agents: Agents) -> None:
    """The first try is told by its agent, the second is measured, and so is the review."""
    api.start(phase={"task_category": "debt_cleanup"})
    agents.build(agents.claim(), status="failed", patch="", tokens_used=500)
    agents.build(agents.claim(), **MEASURED)
    review = {"recommendation": "approve", "review_notes": "seen", **MEASURED}
    assert api.client.post("/runs/run-001/phases/P0.0/auditor_result", json=review).is_success

    run, phase = api.run(), api.phase()
    assert run["state"] == "DONE_SUCCESS"
    for figures in (run, run["tiers"][0], phase):
        assert (figures["tokens_used"], figures["tokens_measured"]) == (2_500, 2_000)
    told, measured, reviewed = attempts(api)
    assert (told["is_measured"], told["reasoning_tokens"]) == (False, None)
    for each in (measured, reviewed):
        assert (each["is_measured"], each["tokens_used"]) == (True, 1_000)
        assert {name: each[name] for name in KINDS} == KINDS

    record = api.document("run-001", "run.json")
    for figures in (record["budgets"], record["tiers"][0], record["phases"][0]):
        assert figures["tokens_measured"] == 2_000
    assert api.client.get("/runs/run-001/promotion").json()["eligible"]
    assert "| Tokens measured | 2,000 |" in api.file("run-001", "run_summary.md")
    assert "1,000 (measured)" in api.file("run-001", "phases", "phase_0_P0.0.md")

    shown = words(api.client.get(f"{HOME}/runs/run-001", params={"phase": "P0.0"}))
    assert "$0.2500 measured" in shown
    assert "$0.5000 partly measured" in shown
    assert "2,000 measured" in shown

    (group,) = api.client.get("/metrics/costs", params={"by": "category"}).json()["groups"]
    assert (group["tokens"], group["tokens_measured"]) == (2_500, 2_000)
    assert api.client.get("/metrics/runs").json()["runs"][0]["tokens_measured"] == 2_000


def test_what_an_agent_spent_that_could_then_not_work_keeps_its_mark(
    api: Api, agents: Agents
) -> None:
    api.start()
    agents.build(agents.claim(), status="unavailable", patch="", reason="quota", **MEASURED)
    assert api.phase()["tokens_measured"] == 1_000
    assert (
        'autopack_live_tokens_measured{project="Autopack"} 1000.0\n'
        in api.client.get("/metrics").text
    )


def test_a_mark_buys_nothing(api: Api, agents: Agents) -> None:
    """Anyone who may send a result may claim it, so a cap counts marked tokens as others."""
    api.start(token_cap=900)
    agents.build(agents.claim(), **MEASURED)
    assert api.run()["failure_code"] == "token_cap"


def test_a_failed_try_and_its_retry_keep_their_own_kinds_of_tokens(
    api: Api, agents: Agents
) -> None:
    """Also after a claim between them, and on the page of the run."""
    failed = {"input_tokens": 70, "cached_tokens": 20, "output_tokens": 10, "reasoning_tokens": 4}
    api.start()
    agents.build(agents.claim(), status="failed", patch="", **failed)
    agents.build(agents.claim(), **KINDS)
    first, second = attempts(api)
    assert (first["outcome"], second["outcome"]) == ("failed", "applied")
    for each, told in ((first, failed), (second, KINDS)):
        assert {name: each[name] for name in KINDS} == told
    assert (first["tokens_used"], second["tokens_used"], api.phase()["tokens_used"]) == (
        100,
        1_000,
        1_100,
    )
    shown = words(api.client.get(f"{HOME}/runs/run-001", params={"phase": "P0.0"}))
    assert "Tokens: 70 input, 20 from a cache, 10 output, 4 of it reasoning" in shown
    assert "Tokens: 600 input, 300 from a cache, 100 output, 40 of it reasoning" in shown


def test_the_api_documents_each_kind_of_tokens(api: Api) -> None:
    schemas = api.client.get("/openapi.json").json()["components"]["schemas"]
    for name in ("BuilderReport", "AuditorReport"):
        fields = schemas[name]["properties"]
        assert all(fields[kind]["description"] for kind in KINDS)
    assert KINDS.keys() <= schemas["AttemptAnswer"]["properties"].keys()


@pytest.mark.parametrize("output", [None, 39])
def test_reasoning_is_a_part_of_the_output(api: Api, agents: Agents, output: int | None) -> None:
    api.start()
    fields = {"reasoning_tokens": 40, "output_tokens": output}
    refused = agents.build(agents.claim(), **fields)
    api.refused(refused, 422, None, "reasoning_tokens is 40")
    assert api.phase()["builder_attempts_used"] == 0
