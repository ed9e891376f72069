"""New dependencies are named wherever a person decides, and may need an Auditor. (rules §2.6)"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote
from tests.checker.alone import check_alone

from autopack.config import Settings
from autopack.domain.record_text import JsonObject
from autopack.services import patching

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

REQUESTS = {"manifest": "requirements.txt", "name": "requests", "before": None, "after": "==2.31"}
MOVED = """\
diff --git a/requirements.txt b/requirements.txt
--- a/requirements.txt
+++ b/requirements.txt
@@ -1 +1,2 @@
-requests==2.31
+requests==2.32
+left-pad
"""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


def require_reviews(api: Api, ci: str = "none") -> None:
    rules = api.client.get("/project/ruleset").json()
    rules["ci"]["mode"] = ci
    rules["review"]["new_dependencies"] = "required"
    assert api.client.put("/project/ruleset", json=rules).status_code == 200


def adding(api: Api, *lines: str) -> str:
    return api.new_file("requirements.txt", *(lines or ("requests==2.31",)))


def named(phase: JsonObject) -> list[tuple[Any, ...]]:
    return [(each["name"], each["before"], each["after"]) for each in phase["dependencies"]]


def approve(api: Api, phase_id: str = "P0.0", notes: str = "seen") -> None:
    answer = api.client.post(
        f"/runs/run-001/phases/{phase_id}/auditor_result",
        json={"recommendation": "approve", "review_notes": notes},
    )
    assert answer.status_code == 200, answer.text


def test_a_phase_names_what_all_its_patches_add_and_change(api: Api) -> None:
    api.start(phases=2)
    assert api.result(patch=adding(api)).json()["phase_state"] == "COMPLETE"
    assert api.result(phase_id="P0.1", patch=MOVED).json()["run_state"] == "DONE_SUCCESS"

    assert named(api.phase()) == [("requests", None, "==2.31")]
    assert named(api.phase(phase_id="P0.1")) == [
        ("left-pad", None, "any"),
        ("requests", "==2.31", "==2.32"),
    ]
    row = "| `requests` | `==2.31` | `==2.32` | `requirements.txt` | `P0.1` |"
    assert row in api.file("run-001", "run_summary.md")
    assert row in api.client.get("/runs/run-001/promotion").json()["pull_request"]["body"]
    assert "`left-pad` | new |" in api.file("run-001", "phases", "phase_1_P0.1.md")
    page = api.client.get("/dashboard/runs/run-001?phase=P0.1").text
    assert "<code>left-pad</code>" in page
    verdict = check_alone(api.repo.path)
    assert (verdict["reasons"], verdict["eligible"]) == ([], True)
    assert not any("does not name" in warning for warning in verdict["warnings"])


def test_a_ruleset_that_asks_for_it_sends_new_dependencies_to_an_auditor(api: Api) -> None:
    require_reviews(api)
    api.start(phases=2)
    assert api.result(patch=adding(api)).json()["phase_state"] == "GATE"
    claim = {"role": "auditor", "agent": "claude@host"}
    review = api.client.post("/runs/run-001/claim", json=claim).json()["review"]
    assert review["dependencies"] == [{**REQUESTS, "problem": None}]
    opened = [
        event["reason"]
        for event in api.client.get("/runs/run-001/events").json()["events"]
        if event["kind"] == "ReviewOpened"
    ]
    assert opened == [
        "a dependency is new or changed, and review.new_dependencies asks for an Auditor"
    ]


def test_approved_dependencies_may_be_promoted(api: Api) -> None:
    require_reviews(api)
    api.start(phases=2)
    assert api.result(patch=adding(api)).json()["phase_state"] == "GATE"
    approve(api)
    assert api.result(phase_id="P0.1").json()["run_state"] == "DONE_SUCCESS"
    assert check_alone(api.repo.path)["reasons"] == []


def test_other_dependencies_after_a_red_verdict_need_another_review(api: Api) -> None:
    require_reviews(api, ci="external")
    api.start()
    assert api.result(patch=adding(api)).json()["phase_state"] == "GATE"
    approve(api)
    judge(api, "red", failing_checks=["test_a"])
    assert api.result(patch=MOVED).json()["phase_state"] == "GATE"  # others than the approved
    approve(api, notes="seen again")
    judge(api, "green")
    assert check_alone(api.repo.path)["reasons"] == []


def test_a_later_try_without_other_dependencies_goes_on_to_ci(api: Api) -> None:
    require_reviews(api, ci="external")
    api.start()
    api.result(patch=adding(api))
    approve(api)
    judge(api, "red", failing_checks=["test_a"])
    mended = api.result(patch=api.new_file("src/mended.txt"))
    assert mended.json()["phase_state"] == "CI_RUNNING"
    judge(api, "green")
    assert check_alone(api.repo.path)["reasons"] == []


def judge(api: Api, verdict: str, **fields: Any) -> None:
    body = {"commit_sha": api.head(), "verdict": verdict, **fields}
    answer = api.client.post("/runs/run-001/phases/P0.0/ci_result", json=body)
    assert answer.status_code == 200, answer.text


def test_a_pending_patch_names_its_own_and_a_revision_forgets_them(api: Api) -> None:
    api.start(phase={"task_category": "debt_cleanup"})
    assert api.result(patch=adding(api)).json()["phase_state"] == "GATE"
    phase = api.phase()
    assert (named(phase), phase["pending_dependencies"][0]["name"]) == ([], "requests")
    answer = api.client.post(
        "/runs/run-001/phases/P0.0/auditor_result",
        json={"recommendation": "revise", "review_notes": "without it"},
    )
    assert answer.status_code == 200, answer.text
    assert api.phase()["pending_dependencies"] == []


def test_a_manifest_that_cannot_be_read_stops_nothing_but_needs_the_review(api: Api) -> None:
    require_reviews(api)
    api.start()
    broken = api.new_file("web/package.json", "{ not json")
    assert api.result(patch=broken).json()["phase_state"] == "GATE"
    [told] = api.phase()["dependencies"]
    assert (told["manifest"], told["name"]) == ("web/package.json", None)
    assert told["problem"].startswith("cannot be read: ")


@pytest.mark.parametrize("is_required", [False, True])
def test_the_checker_finds_dependencies_that_no_event_names(
    api: Api, monkeypatch: pytest.MonkeyPatch, *, is_required: bool
) -> None:
    """A service that was changed, or a forged record, leaves them out."""
    if is_required:
        require_reviews(api)
    api.start()
    monkeypatch.setattr(patching, "_manifests", lambda *_: ())
    assert api.result(patch=adding(api)).json()["run_state"] == "DONE_SUCCESS"
    verdict = check_alone(api.repo.path)
    told = [*verdict["reasons"], *verdict["warnings"]]
    assert any("requests ==2.31" in each and "does not name" in each for each in told)
    assert verdict["eligible"] is not is_required


def test_an_unknown_word_for_the_rule_is_refused_by_its_name(api: Api) -> None:
    rules = api.client.get("/project/ruleset").json()
    rules["review"]["new_dependencies"] = "maybe"
    api.refused(api.client.put("/project/ruleset", json=rules), 422, None, "new_dependencies")
