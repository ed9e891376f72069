"""The requests of the deployment guide, exactly as written there."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from autopack.config import Settings

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.api.conftest import Api
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

CREATE_A_RUN = """{
    "run": {
      "run_id": "run-001",
      "safety_profile": "normal",
      "run_scope": "incremental",
      "token_cap": 5000000,
      "max_phases": 25
    },
    "tiers": [
      {
        "tier_id": "T1",
        "tier_index": 0,
        "name": "Core Features",
        "description": "Tier 1: Core feature implementation"
      }
    ],
    "phases": [
      {
        "phase_id": "P1.1",
        "phase_index": 0,
        "tier_id": "T1",
        "name": "Implement user authentication",
        "description": "Add JWT-based authentication",
        "task_category": "feature_scaffolding",
        "complexity": "medium",
        "builder_mode": "compose"
      }
    ]
  }"""
RECORD_AN_ISSUE = """{
    "issue_key": "test_failure__auth_missing",
    "severity": "minor",
    "source": "test",
    "category": "test_failure",
    "task_category": "feature_scaffolding",
    "complexity": "medium",
    "evidence_refs": ["tests/test_auth.py::test_jwt_validation"]
  }"""
BUILDER_RESULT = """{
    "phase_id": "P1.1",
    "run_id": "run-001",
    "patch_content": "diff --git a/src/auth.py ...",
    "files_changed": ["src/auth.py"],
    "lines_added": 45,
    "lines_removed": 12,
    "builder_attempts": 1,
    "tokens_used": 15000,
    "duration_minutes": 2.5,
    "status": "success",
    "notes": "Implemented JWT authentication with refresh tokens"
  }"""
PATCH = """\
diff --git a/src/auth.py b/src/auth.py
index 1111111..2222222 100644
--- a/src/auth.py
+++ b/src/auth.py
@@ -1,2 +1,3 @@
 def login(user: str) -> bool:
-    return False
+    token = user[::-1]
+    return bool(token)
"""
CURSOR = """
import requests

# After Cursor completes a phase
result = {
    "phase_id": "P1.1",
    "run_id": "run-001",
    "patch_content": diff_output,
    "files_changed": ["src/auth.py"],
    "builder_attempts": 1,
    "tokens_used": 15000,
    "status": "success"
}

response = requests.post(
    "http://localhost:8000/runs/run-001/phases/P1.1/builder_result",
    json=result
)
"""
CODEX = """
# Request Auditor review
request = {
    "phase_id": "P1.1",
    "run_id": "run-001",
    "tier_id": "T1",
    "review_focus": "security",
    "auditor_profile": "schema_review"
}

requests.post(
    "http://localhost:8000/runs/run-001/phases/P1.1/auditor_request",
    json=request
)

# Submit Auditor result
result = {
    "phase_id": "P1.1",
    "run_id": "run-001",
    "review_notes": "Security review complete",
    "recommendation": "approve",
    "confidence": "high"
}

requests.post(
    "http://localhost:8000/runs/run-001/phases/P1.1/auditor_result",
    json=result
)
"""
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def guide(git_repo: GitRepo, client: TestClient) -> TestClient:
    """The repository of the guide, and a client that speaks to the guide's address."""
    git_repo.commit({"src/auth.py": "def login(user: str) -> bool:\n    return False\n"})
    client.headers["Host"] = "localhost:8000"
    return client


def test_the_guides_requests_work_in_their_order(
    guide: TestClient, api: Api, settings: Settings
) -> None:
    started = guide.post("/runs/start", content=CREATE_A_RUN, headers=JSON)
    assert started.status_code == 201
    assert started.json()["state"] == "RUN_CREATED"

    run = guide.get("/runs/run-001").json()
    assert (run["id"], run["run_id"], run["branch"]) == (
        "run-001",
        "run-001",
        "autonomous/run-001",
    )
    assert [phase["phase_id"] for phase in run["tiers"][0]["phases"]] == ["P1.1"]
    assert run["tiers"][0]["phases"][0]["state"] == "QUEUED"

    recorded = guide.post(
        "/runs/run-001/phases/P1.1/record_issue", content=RECORD_AN_ISSUE, headers=JSON
    )
    assert recorded.status_code == 201
    answer = recorded.json()
    assert answer.keys() == {
        "message",
        "phase_file",
        "run_index_entry",
        "project_backlog_entry",
    }
    assert answer["phase_file"] == str(
        settings.autonomous_runs_dir / "run-001/issues/phase_0_P1.1_issues.json"
    )
    assert answer["run_index_entry"]["occurrence_count"] == 1
    assert answer["project_backlog_entry"]["age_in_runs"] == 1

    body = json.dumps({**json.loads(BUILDER_RESULT), "patch_content": PATCH})
    built = guide.post("/runs/run-001/phases/P1.1/builder_result", content=body, headers=JSON)
    assert built.status_code == 200, built.text
    assert built.json().keys() == {
        "message",
        "submission_id",
        "commit_sha",
        "repairs",
        "phase_state",
        "run_state",
        "next",
    }
    assert (built.json()["phase_state"], built.json()["run_state"]) == ("COMPLETE", "DONE_SUCCESS")
    assert built.json()["commit_sha"] == api.head()
    assert "token = user[::-1]" in api.repo.git("show", "autonomous/run-001:src/auth.py")

    run = guide.get("/runs/run-001").json()
    assert run["tokens_used"] == 15_000
    assert run["promotion_eligible_to_main"] is True


def test_the_guides_placeholder_patch_is_refused_with_a_sentence_that_shows_it(
    guide: TestClient, api: Api
) -> None:
    guide.post("/runs/start", content=CREATE_A_RUN, headers=JSON)
    base = api.head()

    response = guide.post(
        "/runs/run-001/phases/P1.1/builder_result", content=BUILDER_RESULT, headers=JSON
    )

    problem = api.refused(response, 422, "patch_malformed", "diff --git a/src/auth.py ...")
    assert problem["line"] == 1
    assert api.head() == base
    phase = api.phase(phase_id="P1.1")
    assert (phase["state"], phase["builder_attempts_used"]) == ("QUEUED", 1)


@pytest.mark.parametrize(
    ("category", "waits_for_the_auditor"),
    [("feature_scaffolding", False), ("security_auth_change", True)],
)
def test_the_guides_python_works_in_its_order(
    guide: TestClient,
    api: Api,
    monkeypatch: pytest.MonkeyPatch,
    category: str,
    waits_for_the_auditor: bool,
) -> None:
    plan = json.loads(CREATE_A_RUN)
    plan["phases"][0]["task_category"] = category
    guide.post("/runs/start", json=plan)
    answers = []

    def post(url: str, json: object) -> None:
        answers.append(guide.post(url.removeprefix("http://localhost:8000"), json=json))

    # Autopack does not need the guide's `requests`; it only carries the bodies here.
    monkeypatch.setitem(sys.modules, "requests", SimpleNamespace(post=post))
    names: dict[str, object] = {"diff_output": PATCH}
    exec(CURSOR, names)  # noqa: S102 - the guide's own
    assert [answer.status_code for answer in answers] == [200]
    state = api.phase(phase_id="P1.1")["state"]
    assert state == ("GATE" if waits_for_the_auditor else "COMPLETE")

    exec(CODEX, names)  # noqa: S102 - the guide's own; advice, where the phase is complete already
    assert [answer.status_code for answer in answers] == [200, 202, 200]
    assert answers[2].json()["patches_applied"] == waits_for_the_auditor
    assert api.run()["state"] == "DONE_SUCCESS"
    assert len(api.commits()) == 1


def test_the_page_of_the_guide_answers_who_this_is(guide: TestClient) -> None:
    assert guide.get("/health").json()["status"] == "healthy"
    assert guide.get("/").json()["service"] == "Autopack Supervisor"
