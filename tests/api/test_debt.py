"""An aged issue is closed by a check that failed before, and by nothing less. (rules §7.1)"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote

from autopack.config import Settings
from autopack.domain.record_text import JsonObject
from autopack.services import judging

from .test_concurrency import before_commit

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

KEY = "test_failure__login"
CHECK = "tests/test_login.py::test_login"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


@pytest.fixture
def api(api: Api) -> Api:
    rules = {"project_id": "Autopack", "ci": {"mode": "external"}, "auto_debt_cleanup": True}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    return api


def judge(api: Api, run_id: str, phase_id: str, verdict: str, **fields: Any) -> JsonObject:
    body = {"commit_sha": api.head(run_id), "verdict": verdict, **fields}
    answer = api.client.post(f"/runs/{run_id}/phases/{phase_id}/ci_result", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def age(api: Api, **report: Any) -> None:
    """Let three runs report the issue; CI is red for it in the first."""
    for number in range(3):
        run_id = f"age-{number}"
        api.start(run_id, run_scope="single_tier")
        if number == 0:
            api.result(run_id)
            judge(api, run_id, "P0.0", "red", failing_checks=[CHECK, "tests/other.py::test_b"])
        api.issue(KEY, run_id=run_id, **{"evidence_refs": [CHECK], **report})


def clean(api: Api, run_id: str, **verdict: Any) -> JsonObject:
    """Let a run's cleanup phase end with a green verdict that says so much."""
    clean_up(api, run_id)
    return judge(api, run_id, "DEBT-1", "green", **verdict)


def clean_up(api: Api, run_id: str) -> None:
    """Let a run wait for the verdict on its cleanup phase."""
    api.start(run_id, run_scope="multi_tier")
    api.result(run_id)
    judge(api, run_id, "P0.0", "green")
    api.result(run_id, "DEBT-1", patch=api.new_file(f"src/{run_id}.txt"))
    body = {"recommendation": "approve", "review_notes": "seen"}
    api.client.post(f"/runs/{run_id}/phases/DEBT-1/auditor_result", json=body)


def issue(api: Api) -> JsonObject:
    answer = api.client.get(f"/project/issues/{KEY}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def life(api: Api) -> list[tuple[str, str | None, list[str]]]:
    """Return what happened, oldest first."""
    return [(e["kind"], e["run_id"], e["checks"]) for e in reversed(issue(api)["life"])]


def test_an_issue_lives_from_its_first_sighting_until_a_check_closes_it(api: Api) -> None:
    age(api, description="The login answers 500.")
    assert issue(api)["status"] == "needs_cleanup"
    assert issue(api)["red_checks"] == [CHECK]
    assert life(api) == [("aged", "age-2", [])]

    api.start("look", run_scope="multi_tier")
    api.result("look")
    judge(api, "look", "P0.0", "green")
    debt = api.client.get("/runs/look/next_phase").json()["debt"]
    assert (debt["issue_key"], debt["description"]) == (KEY, "The login answers 500.")
    assert (debt["evidence_refs"], debt["red_checks"]) == ([CHECK], [CHECK])
    assert {place["run_id"] for place in debt["places"]} == {"age-0", "age-1", "age-2"}
    api.client.post("/runs/look/cancel", json={"reason": "seen enough"})

    clean(api, "clean", passed_checks=[CHECK, "tests/new.py::test_c"])
    found = issue(api)
    assert found["status"] == "resolved"
    assert life(api)[-1] == ("closed", "clean", [CHECK])
    assert [each["run_id"] for each in found["cleanups"]] == ["clean", "look"]
    assert found["cleanups"][0]["verdict"] == "green"
    events = json.loads(api.file("clean", "run.json"))["events"]
    verdict = [event for event in events if event["kind"] == "CiVerdictReceived"][-1]
    assert verdict["data"]["mended_checks"] == [CHECK]

    api.start("later", run_scope="single_tier")
    api.issue(KEY, run_id="later")
    assert life(api)[-2:] == [("reopened", "later", []), ("aged", "later", [])]
    page = api.client.get(f"/dashboard/issues/{KEY}").text
    for words in ("Closed by a check", "Reopened", "Needs cleanup", CHECK, "Cleanup phases"):
        assert words in page


def test_a_cleanup_also_closes_what_another_run_reports_until_its_commit(api: Api) -> None:
    """So the issue's page does not say that it was opened again after it was closed."""
    age(api)
    clean_up(api, "clean")
    api.start("other", run_scope="single_tier")
    verdict = {"commit_sha": api.head("clean"), "verdict": "green", "passed_checks": [CHECK]}
    send = partial(api.client.post, "/runs/clean/phases/DEBT-1/ci_result", json=verdict)
    with before_commit(judging, send):
        api.issue(KEY, run_id="other")
    assert life(api) == [("aged", "age-2", []), ("closed", "clean", [CHECK])]
    found = issue(api)
    assert (found["status"], found["total_occurrences"]) == ("resolved", 4)
    assert found["resolved_at"] == found["life"][0]["at"] > found["last_seen_at"]


@pytest.mark.parametrize(
    ("report", "verdict"),
    [
        ({}, {}),  # CI does not name what passed
        ({}, {"passed_checks": ["tests/other.py::test_b"]}),  # red there, but no report names it
        ({}, {"passed_checks": ["tests/test_login.py::test_logout"]}),  # never red
        ({"evidence_refs": []}, {"passed_checks": [CHECK]}),
        ({"category": "ci_flaky"}, {"passed_checks": [CHECK]}),  # passes again by itself
    ],
)
def test_a_cleanup_without_such_a_check_does_not_close_the_issue(
    api: Api, report: JsonObject, verdict: JsonObject
) -> None:
    age(api, **report)
    assert clean(api, "clean", **verdict)["run_state"] == "DONE_SUCCESS"
    found = issue(api)
    assert found["status"] == "needs_cleanup"
    [last, _] = found["life"]
    assert (last["kind"], last["phase_id"]) == ("not_closed", "DEBT-1")
    assert last["reason"] == "no check is known to have failed before"
    assert api.start("again", run_scope="multi_tier")["tiers"][-1]["tier_id"] == "DEBT"


def test_a_check_that_only_the_cleanup_phase_made_red_closes_nothing(api: Api) -> None:
    for number in range(3):
        api.start(f"age-{number}", run_scope="single_tier")
        api.issue(KEY, run_id=f"age-{number}", evidence_refs=[CHECK])
    api.start("staged", run_scope="multi_tier")
    api.result("staged")
    judge(api, "staged", "P0.0", "green")
    review = "/runs/staged/phases/DEBT-1/auditor_result"
    for number, verdict in enumerate(("red", "green")):
        api.result("staged", "DEBT-1", patch=api.new_file(f"src/{number}.txt"))
        api.client.post(review, json={"recommendation": "approve", "review_notes": "seen"})
        if verdict == "red":
            api.issue(KEY, run_id="staged", phase_id="DEBT-1", evidence_refs=[CHECK])
        names = {"failing_checks": [CHECK]} if verdict == "red" else {"passed_checks": [CHECK]}
        judge(api, "staged", "DEBT-1", verdict, **names)
        if verdict == "red":
            break
    assert issue(api)["red_checks"] == []


def test_a_run_that_goes_on_as_a_new_one_plans_its_cleanup_anew(api: Api) -> None:
    """What needs cleanup is decided when the new run starts, not when the failed one did."""
    age(api)
    api.start("look", run_scope="multi_tier")

    def proceed(run_id: str) -> list[str]:
        api.client.post(f"/runs/{run_id}/cancel", json={"reason": "the machine was full"})
        answer = api.client.post(f"/runs/{run_id}/continue", json={})
        assert answer.status_code == 201, answer.text
        return [phase["phase_id"] for tier in answer.json()["tiers"] for phase in tier["phases"]]

    assert proceed("look") == ["P0.0", "DEBT-1"]
    api.client.post(f"/project/issues/{KEY}/resolve")
    assert proceed("look.2") == ["P0.0"]


def test_what_an_operator_does_is_part_of_an_issues_life(api: Api) -> None:
    api.start(run_scope="single_tier")
    api.issue(KEY)
    for act in ("resolve", "resolve", "reopen", "reopen"):  # each a second time changes nothing
        assert api.client.post(f"/project/issues/{KEY}/{act}").status_code == 200
    assert [kind for kind, _, _ in life(api)] == ["resolved", "reopened"]
    assert issue(api)["life"][0]["actor"].startswith("local:")
