"""What happened in a phase, as its readers see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration


def report(api: Api, phase_id: str = "P0.0") -> dict[str, Any]:
    response = api.client.get(f"/runs/run-001/phases/{phase_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def test_a_phase_shows_each_attempt_with_its_patch_its_issues_and_its_time(
    api: Api, agents: Agents
) -> None:
    api.start(phase={"task_category": "security_auth_change"})
    item = agents.claim()
    agents.wait(minutes=3)
    issue = {"issue_key": "auth__open", "source": "test", "category": "auth"}
    patch = api.new_file("src/pending.txt")
    agents.build(item, patch=patch, suggested_issues=[issue], tokens_used=500)
    agents.claim("auditor")
    agents.wait(minutes=1)
    review = {
        **{"recommendation": "revise", "review_notes": "no test", "confidence": "high"},
        **{"resolved_issues": ["auth__open"], "lease_token": agents.tokens[-1]},
    }
    path = "/runs/run-001/phases/P0.0"
    assert api.client.post(f"{path}/auditor_result", json=review).status_code == 200
    item = agents.claim()
    agents.wait(minutes=2)
    agents.build(item, patch="no patch at all")

    found = report(api)
    held, reviewed, refused = found["attempts"]
    assert held["duration_seconds"] == pytest.approx(180, abs=1)
    assert held["issues_found"] == [
        {"issue_key": "auth__open", "category": "auth", "severity": "minor"}
    ]
    (sent,) = held["patches"]
    assert sent["status"] == "discarded"
    assert sent["files_changed"] == ["src/pending.txt"]
    assert sent["size_bytes"] == len(patch)
    assert api.client.get(sent["content"]).text == patch
    assert (reviewed["confidence"], reviewed["outcome"]) == ("high", "revised")
    assert reviewed["issues_resolved"] == ["auth__open"]
    assert reviewed["duration_seconds"] == pytest.approx(60, abs=1)
    (refused_patch,) = refused["patches"]
    assert refused_patch["status"] == "refused"
    assert api.client.get(refused_patch["content"]).text == "no patch at all"
    kinds = [(each["kind"], each["outcome"]) for each in found["segments"]]
    assert kinds == [
        *[("wait", None), ("build", "held"), ("wait", None), ("review", "revise")],
        *[("wait", None), ("build", "refused"), ("wait", None)],
    ]
    assert found["segments"][1]["submission_id"] == held["id"]
    assert found["segments"][-1]["ended_at"] is None
    attempts = api.client.get(f"{path}/attempts").json()["attempts"]
    assert attempts == found["attempts"]
    timeline = api.client.get("/runs/run-001/timeline").json()["phases"]
    assert timeline == [{"phase_id": "P0.0", "tier_id": "T0", "segments": found["segments"]}]


def test_an_attempt_that_lapsed_is_among_the_segments(api: Api, agents: Agents) -> None:
    api.start()
    item = agents.claim()
    agents.beat(item, tokens_used=70)
    assert report(api)["lease"]["agent"] == "builder@host-1"
    agents.wait(hours=1)
    agents.upkeep()
    agents.claim()
    found = report(api)
    assert found["attempts"] == []
    lapsed = found["segments"][1]
    assert (lapsed["agent"], lapsed["outcome"], lapsed["tokens"]) == (
        "builder@host-1",
        "lapsed",
        70,
    )
    assert found["lease"]["fence"] > 1


def test_an_agent_that_could_not_work_has_its_time(api: Api, agents: Agents) -> None:
    api.start()
    item = agents.claim()
    agents.wait(minutes=4)
    agents.build(item, patch="", status="unavailable", reason="a quota is used up")
    (attempt,) = report(api)["attempts"]
    assert attempt["outcome"] == "unavailable"
    assert attempt["duration_seconds"] == pytest.approx(240, abs=1)


def test_a_patch_of_another_run_is_404(api: Api) -> None:
    for run_id in ("run-001", "run-002"):
        api.start(run_id)
    api.result("run-002")
    attempts = api.client.get("/runs/run-002/phases/P0.0/attempts").json()["attempts"]
    (patch,) = attempts[0]["patches"]
    assert api.client.get(patch["content"]).status_code == 200
    foreign = api.client.get(f"/runs/run-001/patches/{patch['id']}")
    api.refused(foreign, 404, "not_found", str(patch["id"]))
    api.refused(api.client.get("/runs/run-001/phases/P9"), 404, "not_found", "P9")
