"""A run that failed goes on as a new one, from its last verified commit. (rules §2.5)"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote
from tests.checker.alone import check_alone

from autopack.config import Settings
from autopack.domain.record_check import check_continued
from autopack.domain.record_text import JsonObject

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


def proceed(api: Api, run_id: str = "run-001", status: int = 201, **choice: Any) -> JsonObject:
    response = api.client.post(f"/runs/{run_id}/continue", json=choice)
    assert response.status_code == status, response.text
    return dict(response.json())


def cancel(api: Api, run_id: str = "run-001") -> None:
    body = {"reason": "the machine was full"}
    assert api.client.post(f"/runs/{run_id}/cancel", json=body).status_code == 200


def record(api: Api, run_id: str) -> JsonObject:
    path = f"autonomous/{run_id}:.autonomous_runs/{run_id}/run.json"
    return dict(json.loads(api.repo.git("show", path)))


def test_each_continuation_has_what_is_left_and_the_last_one_may_be_promoted(api: Api) -> None:
    api.start(phases=3, token_cap=9_000)
    api.result(tokens_used=5_000)
    api.result(phase_id="P0.1", status="failed", patch="", notes="the disk is full")
    verified = api.head()
    cancel(api)

    second = proceed(api)
    assert (second["run_id"], second["continues"]) == ("run-001.2", "run-001")
    assert second["base_commit"] == second["head_commit"] == verified
    assert (second["tokens_used"], second["token_cap"]) == (0, 9_000)
    phases = [phase["phase_id"] for tier in second["tiers"] for phase in tier["phases"]]
    assert phases == ["P0.1", "P0.2"]
    assert proceed(api, status=200)["created_at"] == second["created_at"]  # the same request
    [attempt] = api.client.get("/runs/run-001.2/next_phase").json()["history"]
    assert (attempt["run_id"], attempt["notes"]) == ("run-001", "the disk is full")
    api.result("run-001.2", "P0.1")
    cancel(api, "run-001.2")

    third = proceed(api, "run-001.2", max_duration_minutes=7)
    assert (third["run_id"], third["max_duration_minutes"]) == ("run-001.3", 7)
    assert api.result("run-001.3", "P0.2").json()["run_state"] == "DONE_SUCCESS"

    promotion = api.client.get("/runs/run-001.3/promotion").json()
    assert (promotion["eligible"], promotion["reasons"]) == (True, [])
    assert check_alone(api.repo.path, "run-001.3")["reasons"] == []
    found = record(api, "run-001.3")
    assert found["continues"] == "run-001.2"
    assert found["continued_commit"] == api.run("run-001.2")["head_commit"]
    for name in ("P0.0", "P0.1", "P0.2"):
        assert api.repo.git("show", f"autonomous/run-001.3:src/{name}.txt")
    page = api.file("run-001.3", "run_summary.md")
    assert "run-001.2" in page

    api.repo.git("merge", "--quiet", "--no-edit", "autonomous/run-001.3")
    assert check_alone(api.repo.path, "run-001.3")["reasons"] == []


def test_commits_that_nothing_verified_are_left_behind(api: Api) -> None:
    rules = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    api.start(phases=2)
    api.result()
    verified = api.head()
    body = {"commit_sha": verified, "verdict": "green"}
    api.client.post("/runs/run-001/phases/P0.0/ci_result", json=body)
    assert api.result(phase_id="P0.1").json()["phase_state"] == "CI_RUNNING"
    cancel(api)
    assert proceed(api)["base_commit"] == verified
    assert api.result("run-001.2", "P0.1").json()["phase_state"] == "CI_RUNNING"


def test_without_a_verified_commit_it_starts_from_the_base_branch_of_today(api: Api) -> None:
    api.start()
    cancel(api)
    today = api.repo.commit({"newer.txt": "newer\n"})
    run = proceed(api, run_id="run-001", token_cap=77)
    assert (run["base_commit"], run["token_cap"], run["continues"]) == (today, 77, "run-001")
    api.result("run-001.2")
    api.repo.git("branch", "--quiet", "--delete", "--force", "autonomous/run-001")
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []
    assert api.client.get("/runs/run-001.2/promotion").json()["eligible"] is True


def test_only_some_phases_under_another_name(api: Api) -> None:
    api.start(phases=3)
    cancel(api)
    response = api.client.post(
        "/runs/run-001/continue", json={"run_id": "again", "phases": ["P0.2"]}
    )
    assert response.json()["run_id"] == "again"
    assert [each["phase_id"] for each in response.json()["tiers"][0]["phases"]] == ["P0.2"]
    told = api.client.post("/runs/run-001/continue", json={"run_id": "x", "phases": ["P9"]})
    api.refused(told, 422, "unknown_phase", "phases[0]", "'P9'", "P0.0, P0.1, P0.2")
    taken = api.client.post("/runs/run-001/continue", json={"run_id": "again"})
    api.refused(taken, 409, "run_exists", "again")


def test_a_phase_that_was_skipped_by_hand_is_done_in_the_new_run(api: Api) -> None:
    api.start(phases=3)
    api.result()
    assert api.status("SKIPPED", phase_id="P0.1").status_code == 200
    cancel(api)
    phases = proceed(api)["tiers"][0]["phases"]
    assert [phase["phase_id"] for phase in phases] == ["P0.1", "P0.2"]
    api.result("run-001.2", "P0.1")
    api.result("run-001.2", "P0.2")
    assert api.client.get("/runs/run-001.2/promotion").json()["eligible"] is True
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []


def test_what_cannot_be_continued_says_why(api: Api) -> None:
    def refused(*names: str, run_id: str = "run-001") -> None:
        response = api.client.post(f"/runs/{run_id}/continue", json={})
        api.refused(response, 409, "not_continuable", *names)

    api.refused(api.client.post("/runs/gone/continue", json={}), 404, "not_found", "gone")
    api.start(phases=2)
    refused("only a run that is over")
    api.result()
    cancel(api)
    rolled = {"to_phase": "P0.0", "reason": "wrong"}
    assert api.client.post("/runs/run-001/rollback", json=rolled).status_code == 200
    refused("rolled back by hand")

    api.start("run-002")
    api.result("run-002")
    refused("run-002", "succeeded", run_id="run-002")

    api.start("run-003", phases=2, phase={"complexity": "high"})
    api.result("run-003", patch=api.new_file("src/three.txt"))
    cancel(api, "run-003")
    refused("strict phase 'P0.0' has no green verdict", run_id="run-003")

    api.start("run-004", phases=2)
    api.result("run-004", patch=api.new_file("src/four.txt"))
    api.issue(run_id="run-004", severity="major")
    cancel(api, "run-004")
    refused("major issue 'a_failing_test' of a complete phase is open", run_id="run-004")
    assert [run["run_id"] for run in api.client.get("/runs").json()["runs"]] == [
        f"run-00{number}" for number in (4, 3, 2, 1)
    ]


def test_the_checker_refuses_a_continued_record_that_is_forged_or_another(api: Api) -> None:
    api.start(phases=2)
    api.result()
    cancel(api)
    proceed(api)
    api.result("run-001.2", "P0.1")
    later = record(api, "run-001.2")
    at = later["continued_commit"]
    shown = api.repo.git("cat-file", "-p", f"{at}:.autonomous_runs/run-001/run.json")
    data = f"{shown}\n".encode()
    message = api.repo.git("show", "--no-patch", "--format=%B", at)
    assert check_continued(data, message, later).reasons == ()

    def reasons(data: bytes = data, **changed: Any) -> str:
        return "; ".join(check_continued(data, message, {**later, **changed}).reasons)

    assert "its last verified commit is" in reasons(base_commit=api.repo.git("rev-parse", "main"))
    assert "is of run 'run-001', not of 'other'" in reasons(continues="other")
    assert "it was changed" in reasons(data.replace(b"COMPLETE", b"SKIPPED "))
    assert "cannot be read" in reasons(b"")
