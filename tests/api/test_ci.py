"""Verdicts from an external CI: what they complete, what they cost, what they resolve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote

from autopack.config import Settings

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

OTHER_COMMIT = "0" * 40


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


@pytest.fixture
def api(api: Api) -> Api:
    """A service with an external CI."""
    rule(api)
    return api


def rule(api: Api, **changes: Any) -> None:
    document = {"project_id": "Autopack", "ci": {"mode": "external"}, **changes}
    response = api.client.put("/project/ruleset", json=document)
    assert response.status_code == 200, response.text


def verdict(
    api: Api,
    verdict: str,
    run_id: str = "run-001",
    phase_id: str = "P0.0",
    commit: str | None = None,
    **fields: Any,
) -> Response:
    body = {"commit_sha": commit or api.head(run_id), "verdict": verdict, **fields}
    return api.client.post(f"/runs/{run_id}/phases/{phase_id}/ci_result", json=body)


def subject(api: Api) -> str:
    """Return the first line of the branch's last message, where CI looks for its profile."""
    return api.repo.git("log", "-1", "--format=%s", api.head())


def test_green_completes_the_phase_and_makes_the_run_eligible(api: Api) -> None:
    api.start(phase={"complexity": "high"})  # strict: without a verdict it could not be eligible
    assert api.result().json()["phase_state"] == "CI_RUNNING"
    assert subject(api).endswith(" [strict]")
    assert api.run()["state"] == "CI_RUNNING"
    answer = verdict(api, "green", profile="strict", tests={"total": 3, "passed": 3})
    assert answer.json()["phase_state"] == "COMPLETE", answer.text
    run = api.run()
    assert run["state"] == "DONE_SUCCESS"
    assert run["promotion_eligible_to_main"], run["promotion_reasons"]
    assert run["tiers"][0]["ci_runs_count"] == 1
    assert api.phase()["verdict"] == "green"
    last = api.repo.git("log", "-1", "--format=%s", run["branch"])
    assert last == "Record run run-001: DONE_SUCCESS [strict]"
    assert verdict(api, "green", profile="strict", tests={"total": 3, "passed": 3}).headers[
        "Idempotency-Replayed"
    ]


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"commit": OTHER_COMMIT}, 409, "wrong_commit"),
        ({"profile": "strict"}, 409, "wrong_profile"),
        ({"url": "file:///etc/passwd"}, 422, "invalid_request"),
        ({"phase_id": "P9"}, 404, "not_found"),
    ],
)
def test_a_verdict_that_is_not_for_this_changes_nothing(
    api: Api, fields: dict[str, Any], status: int, code: str
) -> None:
    api.start()
    api.result()
    api.refused(verdict(api, "green", **fields), status, code)
    assert api.phase()["state"] == "CI_RUNNING"
    assert api.run()["tiers"][0]["ci_runs_count"] == 0


def test_a_verdict_before_there_is_anything_to_judge_is_refused(api: Api) -> None:
    api.start()
    api.refused(verdict(api, "green"), 409, "wrong_state")


def test_a_phase_that_changed_nothing_is_judged_on_the_branchs_head(api: Api) -> None:
    api.start(phase={"allow_empty": True})
    assert api.result(patch="").json()["phase_state"] == "CI_RUNNING"
    api.refused(verdict(api, "green", commit=OTHER_COMMIT), 409, "wrong_commit", api.head())
    assert verdict(api, "green").json()["phase_state"] == "COMPLETE"


def test_red_costs_a_try_and_the_next_green_completes_on_top(api: Api) -> None:
    api.start()
    api.result()
    api.issue("ci_lint", source="ci", category="lint")
    answer = verdict(api, "red", failing_checks=["test_login"], summary="1 failed")
    assert answer.json()["phase_state"] == "QUEUED"
    assert "1 failed" in api.phase()["failure_reason"]
    assert api.result(patch=api.new_file("src/fix.txt")).json()["phase_state"] == "CI_RUNNING"
    assert len(api.commits()) == 2
    assert verdict(api, "green").json()["phase_state"] == "COMPLETE"
    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    assert index["ci_lint"]["status"] == "resolved"


def test_the_same_failing_checks_twice_are_no_progress_and_go_to_the_auditor(api: Api) -> None:
    rule(api, tier={"ci_runs_per_phase": 3})
    api.start()
    for name in ("one", "two"):
        api.result(patch=api.new_file(f"src/{name}.txt"))
        answer = verdict(api, "red", failing_checks=["test_b", "test_a"])
    assert answer.json()["phase_state"] == "GATE"
    review = "/runs/run-001/phases/P0.0/auditor_result"
    api.refused(
        api.client.post(review, json={"recommendation": "approve"}), 409, "nothing_to_approve"
    )
    assert "[strict]" not in subject(api)
    fix_up = {"patch_content": api.new_file("src/three.txt"), "description": "Mend it [Skip CI]"}
    answer = api.client.post(
        review, json={"recommendation": "approve", "suggested_patches": [fix_up]}
    )
    assert answer.json()["phase_state"] == "CI_RUNNING", answer.text
    assert subject(api) == "Mend it (Skip CI)"
    assert verdict(api, "green").json()["run_state"] == "DONE_SUCCESS"


@pytest.mark.parametrize(
    ("tests", "why"),
    [
        ({"total": 0}, "no test ran"),
        ({"total": 2, "skipped": 2}, "no test ran"),
        ({"total": 3, "passed": 2, "failed": 1}, "tests failed"),
    ],
)
def test_a_green_verdict_is_red_if_its_counts_say_so(
    api: Api, tests: dict[str, int], why: str
) -> None:
    api.start()
    api.result()
    answer = verdict(api, "green", tests=tests).json()
    assert (answer["verdict"], answer["phase_state"]) == ("red", "QUEUED")
    assert why in api.client.get("/runs/run-001/ci").json()["ci_runs"][0]["reason"]


def test_a_green_verdict_may_count_skipped_tests_or_the_total_alone(api: Api) -> None:
    api.start(phases=2)
    for phase_id, tests in (
        ("P0.0", {"total": 2, "passed": 1, "skipped": 1}),
        ("P0.1", {"total": 2}),
    ):
        api.result(phase_id=phase_id)
        answer = verdict(api, "green", phase_id=phase_id, tests=tests).json()
        assert (answer["verdict"], answer["phase_state"]) == ("green", "COMPLETE")


def test_what_did_not_run_ends_the_run_as_the_environments_fault(api: Api) -> None:
    api.start()
    api.result()
    answer = verdict(api, "did_not_run", summary="no runner").json()
    assert answer["run_state"] == "DONE_FAILED_ENVIRONMENT"
    run = api.run()
    assert run["failure_code"] == "ci_did_not_run"
    assert "no runner" in run["failure_reason"]
    assert run["tiers"][0]["ci_runs_count"] == 0
    assert "no runner" in api.file("run-001", "incident.md")


def test_a_flaky_green_leaves_a_minor_issue_of_each_check(api: Api) -> None:
    api.start(phases=2)
    api.result()
    verdict(api, "green", flaky=True, failing_checks=["test_clock"])
    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    assert index["ci_flaky__test_clock"]["severity"] == "minor"


def test_a_tier_over_its_ci_runs_is_not_clean(api: Api) -> None:
    rule(api, tier={"ci_runs_per_phase": 1})
    api.start(run_scope="multi_tier")
    for name in ("one", "two"):
        api.result(patch=api.new_file(f"src/{name}.txt"))
        verdict(api, "red" if name == "one" else "green", failing_checks=[name])
    run = api.run()
    assert run["state"] == "DONE_SUCCESS"
    assert run["tiers"][0]["cleanliness_reasons"] == ["2 CI runs, 1 allowed"]
    assert not run["promotion_eligible_to_main"]


def test_the_branch_is_on_its_way_to_the_remote_when_ci_is_to_judge_it(api: Api) -> None:
    api.start()
    api.result()
    remote = api.client.get("/runs/run-001/integration_status").json()["remote"]
    assert remote is not None
    assert remote["last_error"] is None


def test_aged_issues_are_cleaned_up_by_phases_of_their_own(api: Api) -> None:
    rule(api, auto_debt_cleanup=True)
    for number in range(3):
        run_id = f"age-{number}"
        api.start(run_id)
        api.result(run_id)
        verdict(api, "red", run_id, failing_checks=["test_old"])
        api.issue("old_debt", run_id=run_id, evidence_refs=["test_old"])
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    assert backlog["old_debt"]["status"] == "needs_cleanup"

    run = api.start("clean", run_scope="multi_tier")
    assert run["tiers"][-1]["tier_id"] == "DEBT"
    (phase,) = run["tiers"][-1]["phases"]
    assert (phase["phase_id"], phase["task_category"]) == ("DEBT-1", "debt_cleanup")
    assert phase["issue_key"] == "old_debt"
    assert api.phase("clean")["issue_key"] is None
    assert not api.start("single", run_scope="single_tier")["tiers"][1:]

    api.result("clean")
    verdict(api, "green", "clean")
    api.result("clean", "DEBT-1", patch=api.new_file("src/debt.txt"))
    review = "/runs/clean/phases/DEBT-1/auditor_result"
    api.client.post(review, json={"recommendation": "approve"})
    answer = verdict(api, "green", "clean", "DEBT-1", passed_checks=["test_old"])
    assert answer.json()["run_state"] == "DONE_SUCCESS", answer.text
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    assert backlog["old_debt"]["status"] == "resolved"
    document = {"project_id": "Autopack", "ci": {"mode": "external"}, "auto_debt_cleanup": True}
    compared = api.client.post("/strategy/backtest", json={"ruleset": document}).json()
    assert [run for run in compared["runs"] if run["changes"] or run["parted_at"]] == []


def test_external_ci_without_a_remote_refuses_new_runs(api: Api) -> None:
    api.client.app.state.context.repository.remote = None  # type: ignore[attr-defined]
    response = api.client.post("/runs/start", json=api.plan())
    api.refused(response, 422, "invalid_ruleset", "AUTOPACK_GIT_REMOTE")
