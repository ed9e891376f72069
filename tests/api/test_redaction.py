"""A credential that an agent sends reaches no file, no record and no row that feeds them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration

# Built from parts, so that a scanner for secrets does not report this file.
BODY = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"
TOKEN = "ghp_" + BODY
KEY = (
    "-----BEGIN RSA "
    + f"PRIVATE KEY-----\n{BODY}{BODY[::-1]}\n{BODY}\n-----END RSA "
    + "PRIVATE KEY-----"
)
MARK = "[redacted: github token]"


def require_nowhere(api: Api, app: FastAPI) -> None:
    for path in api.runs_dir.rglob("*"):
        assert not path.is_file() or BODY not in path.read_text(errors="replace"), path
    for branch in api.repo.git("for-each-ref", "--format=%(refname)", "refs/heads").split():
        assert BODY not in api.repo.git("log", "-p", "--format=%B", branch)
    with app.state.context.engine.connect() as connection:
        tables = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
        ).scalars()
        for table in tables.all():
            rows = connection.execute(text(f'SELECT each::text FROM "{table}" AS each'))
            for row in rows.scalars():
                assert BODY not in row, table
                assert BODY.encode().hex() not in row, table


def issue(key: str) -> dict[str, object]:
    return {
        "issue_key": key,
        "source": TOKEN,
        "category": "c",
        "evidence_refs": [f"log: {TOKEN}", KEY],
        "description": f"seen {TOKEN}",
    }


def test_text_of_a_builder_is_redacted(api: Api, app: FastAPI) -> None:
    api.start()
    done = api.result(
        notes=f"I used {TOKEN}\n{KEY}",
        probe_results=[{"probe_type": "pytest", "exit_code": 1, "stdout": TOKEN, "stderr": KEY}],
        suggested_issues=[issue(f"leak {TOKEN}")],
        agent=f"me {TOKEN}",
        model=TOKEN,
        files_changed=[f"{TOKEN}.txt"],
    )
    assert done.status_code == 200, done.text
    require_nowhere(api, app)
    files = [path.read_text() for path in api.runs_dir.rglob("*") if path.is_file()]
    assert any("redacted: github token" in content for content in files)
    assert "redacted: private key" in api.client.get("/runs/run-001/phases/P0.0/attempts").text


def test_text_of_an_auditor_is_redacted(api: Api, app: FastAPI) -> None:
    api.start()
    asked = api.client.post(
        "/runs/run-001/phases/P0.0/auditor_request", json={"review_focus": f"see {TOKEN}"}
    )
    assert MARK in asked.text
    api.result()
    review = {
        "recommendation": "approve",
        "review_notes": TOKEN,
        "issues_found": [{**issue(f"leak {TOKEN}"), "severity": "minor"}],
        "suggested_patches": [
            {"description": f"Say {TOKEN}", "patch_content": api.new_file("b.txt")}
        ],
    }
    done = api.client.post("/runs/run-001/phases/P0.0/auditor_result", json=review)
    assert done.status_code == 200, done.text
    require_nowhere(api, app)
    assert f"Say {MARK}" in api.repo.git("log", "--format=%s", "autonomous/run-001")


def test_issues_and_verdicts_and_operators_are_redacted(api: Api, app: FastAPI) -> None:
    api.start(phases=2)
    assert (
        api.client.post("/runs/run-001/phases/P0.0/record_issue", json=issue(TOKEN))
        .json()["message"]
        .endswith(f"'{MARK}' is recorded")
    )
    api.result()
    body = {"to_phase": "P0.0", "reason": f"it told {TOKEN}"}
    assert api.client.post("/runs/run-001/cancel", json={"reason": TOKEN}).status_code == 200
    api.client.post("/runs/run-001/rollback", json=body)
    require_nowhere(api, app)


def test_a_refused_patch_leaves_no_credential_behind(api: Api, app: FastAPI) -> None:
    api.start()
    api.result(patch=api.new_file("src/a.txt", "one"), status="success")
    api.start("run-002")
    for number, patch in enumerate(
        (
            api.new_file("src/a.txt", TOKEN),
            api.new_file(f"src/{TOKEN}.txt"),
            f"From 0123456789012345678901234567890123456789 Mon\n\n{TOKEN}\n"
            + api.new_file("src/c.txt"),
            api.new_file("src/app.py", f"conflicts with what is there: {TOKEN}"),
            f"prose {TOKEN}\n",
        )
    ):
        refused = api.result("run-002", patch=patch, key=f"try-{number}")
        assert refused.status_code in (409, 422), refused.text
        assert BODY not in refused.text
    require_nowhere(api, app)


def test_the_same_result_twice_is_one_and_another_secret_is_another_result(api: Api) -> None:
    api.start()
    sent = {"status": "failed", "patch": "", "notes": f"it told {TOKEN}"}
    first, again = api.result(**sent), api.result(**sent)
    assert again.headers.get("Idempotency-Replayed") == "true"
    assert again.json() == first.json()
    other = api.result(**{**sent, "notes": f"it told {TOKEN[:-1]}6"})
    assert "Idempotency-Replayed" not in other.headers


def test_the_answer_to_a_released_lease_has_no_credential(agents: Agents, app: FastAPI) -> None:
    agents.api.start()
    item = agents.claim(agent=f"me {TOKEN}"[:100])
    body = {"lease_token": item["lease"]["token"], "reason": f"{TOKEN} ran out"}
    done = agents.api.client.post("/runs/run-001/phases/P0.0/release", json=body)
    assert done.status_code == 200, done.text
    require_nowhere(agents.api, app)


def test_a_key_that_two_patches_make_is_refused_with_the_second(api: Api, app: FastAPI) -> None:
    api.start(phases=2)
    first, second, *_ = KEY.split("\n")
    assert api.result(patch=api.new_file("src/k.pem", first)).status_code == 200
    patch = (
        "diff --git a/src/k.pem b/src/k.pem\n--- a/src/k.pem\n+++ b/src/k.pem\n"
        f"@@ -1 +1,2 @@\n {first}\n+{second}\n"
    )
    refused = api.result(phase_id="P0.1", patch=patch)
    api.refused(refused, 422, "patch_policy", "private key", "line 1")
    require_nowhere(api, app)


def test_a_link_that_a_second_patch_would_lead_out_is_refused(api: Api) -> None:
    def link(path: str, target: str) -> str:
        return (
            f"diff --git a/{path} b/{path}\nnew file mode 120000\n--- /dev/null\n+++ b/{path}\n"
            f"@@ -0,0 +1 @@\n+{target}\n\\ No newline at end of file\n"
        )

    api.start(phases=2)
    assert api.result(patch=link("src/l", "a/b/../../../x")).status_code == 200
    refused = api.result(phase_id="P0.1", patch=link("src/a", "."))
    api.refused(refused, 422, "patch_policy", "src/l", "leads out")


def test_a_ruleset_may_allow_names_that_not_every_system_can_hold(api: Api) -> None:
    api.start()
    patch = api.new_file("SRC/app.py") + api.new_file("src/aux.c")
    refused = api.result(patch=patch)
    problem = api.refused(refused, 422, "patch_policy")
    assert {each["rule"] for each in problem["violations"]} == {"portable_name"}
    ruleset = api.client.get("/project/ruleset").json()
    ruleset["paths"]["portable_names"] = False
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    api.start("run-002")
    assert api.result("run-002", patch=patch).status_code == 200
