"""The service's own CI says by which check an aged issue is closed. (rules §7.1)"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.api.test_evidence import PROFILE, base, context, patched, work_all

from autopack.domain.record_text import JsonObject
from autopack.services.context import AppContext

if TYPE_CHECKING:
    from tests.api.conftest import Api

__all__ = ["context"]

pytestmark = pytest.mark.integration

KEY = "no_flag"
CHECK = "tests/a.t.flag"


def rule(api: Api, *evidence: str, **ci: Any) -> None:
    profile = {**PROFILE, "evidence": list(evidence)}
    document = {
        "project_id": "Autopack",
        "auto_debt_cleanup": True,
        "ci": {"mode": "local", "profiles": {"normal": profile, "strict": profile}, **ci},
    }
    response = api.client.put("/project/ruleset", json=document)
    assert response.status_code == 200, response.text


def issue(api: Api) -> JsonObject:
    return dict(api.client.get(f"/project/issues/{KEY}").json())


def cleaned(api: Api, context: AppContext, *changes: dict[str, str | None]) -> str:
    """Let a run's two phases, the work and the cleanup, make changes; return the last state."""
    run = api.start("clean", run_scope="multi_tier")
    assert run["tiers"][-1]["tier_id"] == "DEBT"
    phases = ("P0.0", "DEBT-1")
    for phase_id, change in zip(phases, changes, strict=True):
        assert api.result("clean", phase_id, patched(api, change)).status_code == 200
        body = {"recommendation": "approve", "review_notes": "seen"}
        api.client.post(f"/runs/clean/phases/{phase_id}/auditor_result", json=body)
        work_all(context)
    return str(api.phase("clean", "DEBT-1")["state"])


def test_a_test_that_fails_without_the_cleanup_closes_the_issue(
    api: Api, context: AppContext
) -> None:
    base(api, **{"tests__a.t": "flag:test -e src/flag\n"})
    rule(api, "baseline")
    for number in range(3):
        api.start(f"age-{number}", run_scope="single_tier")
        api.issue(KEY, run_id=f"age-{number}")
    assert cleaned(api, context, {"src/other": "1\n"}, {"src/flag": "1\n"}) == "COMPLETE"
    found = issue(api)
    assert (found["status"], found["life"][0]["checks"]) == ("resolved", [CHECK])
    assert found["life"][0]["reason"] == "it fails on the code before the phase, and passes now"


def test_a_cleanup_without_such_a_test_is_red_where_ci_can_measure_it(
    api: Api, context: AppContext
) -> None:
    base(api, **{"tests__a.t": "one:true\n"})
    rule(api, "baseline")
    for number in range(3):
        api.start(f"age-{number}", run_scope="single_tier")
        api.issue(KEY, run_id=f"age-{number}")
    assert cleaned(api, context, {"src/other": "1\n"}, {"src/more": "1\n"}) == "QUEUED"
    assert issue(api)["status"] == "needs_cleanup"


def test_a_check_that_was_red_where_the_issue_was_seen_closes_it_by_its_name(
    api: Api, context: AppContext
) -> None:
    base(api, **{"tests__a.t": "flag:test -e src/flag\n"})
    rule(api, test_paths=[])  # so that no evidence can be measured
    for number in range(3):
        run_id = f"age-{number}"
        api.start(run_id, run_scope="single_tier")
        if number == 0:
            api.result(run_id, patch=patched(api, {"src/other": "1\n"}))
            work_all(context)
        api.issue(KEY, run_id=run_id, evidence_refs=[CHECK])
    assert issue(api)["red_checks"] == [CHECK]
    assert cleaned(api, context, {"src/flag": "1\n"}, {"src/more": "1\n"}) == "COMPLETE"
    found = issue(api)
    assert (found["status"], found["life"][0]["checks"]) == ("resolved", [CHECK])
