"""The page of one run: what it shows, what it costs, what an operator can do on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import event, text
from starlette.testclient import TestClient
from tests.dashboard.test_pages import HOSTILE, make_key, sign_in, team, words

from autopack.dashboard.changes import MAX_LINES, read_changes
from autopack.dashboard.rendering import HOME
from autopack.domain.access import AccessRole

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Agents, Api

__all__ = ["team"]

pytestmark = pytest.mark.integration

STATEMENTS = 15
BYTES = 200_000


def show(api: Api, run_id: str = "run-001", phase: str | None = None) -> str:
    page = api.client.get(f"{HOME}/runs/{run_id}", params={"phase": phase} if phase else None)
    assert page.status_code == 200, page.text
    return words(page)


def test_a_run_shows_its_phases_and_the_one_to_look_at_first(api: Api, agents: Agents) -> None:
    api.start(phases=3)
    api.result(notes="It was easy.", tokens_used=100, cost_usd="0.02")
    item = agents.claim()
    agents.beat(item, 700)
    shown = show(api)
    assert "builds phase 'P0.1'" in shown
    assert "builder@host-1 holds this phase as builder" in shown
    assert "with 700 tokens so far" in shown
    assert "It was easy." not in shown
    first = show(api, phase="P0.0")
    assert "It was easy." in first
    assert "+This is src/P0.0.txt." in first
    assert "most in P0.0: $0.02" in first
    assert "1 of 3 phases complete: builder@host-1 builds phase 'P0.1'" in first
    api.status("FAILED", phase_id="P0.1")
    assert "P0.1 Phase 1 of tier 0 failed" in show(api), "a failed phase comes first"


def test_a_refused_patch_shows_what_stands_there(api: Api) -> None:
    api.repo.commit({"notes.txt": "one\ntwo\nthree\n"}, "Have notes")
    api.start()
    patch = "--- a/notes.txt\n+++ b/notes.txt\n@@ -1,3 +1,3 @@\n one\n-TWO\n+2\n three\n"
    assert api.result(patch=patch).status_code == 409
    shown = show(api)
    assert "Repair ticket" in shown
    assert "What stands there now, from line 1" in shown


def test_a_failed_and_an_eligible_run_say_what_to_do(api: Api) -> None:
    api.start("run-a")
    api.result("run-a")
    assert "every condition is met" in show(api, "run-a")
    api.start("run-b")
    api.client.post("/runs/run-b/cancel", json={"reason": "changed my mind"})
    shown = show(api, "run-b")
    assert "changed my mind" in shown
    assert "What to do next" in shown


def test_a_tier_that_the_runs_end_cut_short_is_not_called_skipped(api: Api) -> None:
    api.start("run-a", tiers=2, phases=2, run_scope="multi_tier")
    assert api.result("run-a").status_code == 200
    api.client.post("/runs/run-a/cancel", json={"reason": "enough"})
    assert [tier["state"] for tier in api.run("run-a")["tiers"]] == ["SKIPPED", "SKIPPED"]
    # The tier and its event say so; the other tier was skipped as a whole.
    assert show(api, "run-a").count("ended early") == 2
    assert "Ended early, clean." in api.file("run-a", "run_summary.md")
    assert "**Ended early** (`SKIPPED`)" in api.file("run-a", "tiers", "tier_0_T0.md")
    assert "**Skipped** (`SKIPPED`)" in api.file("run-a", "tiers", "tier_1_T1.md")


def test_an_unknown_run_or_phase_is_a_page_with_a_way_on(api: Api) -> None:
    api.start("checkout-rounding")
    page = api.client.get(f"{HOME}/runs/checkout-runding")
    assert page.status_code == 404
    assert "The nearest name is checkout-rounding" in words(page)
    assert api.client.get(f"{HOME}/runs/checkout-rounding?phase=P9").status_code == 404
    assert api.client.get(f"{HOME}/runs/%3Cb%3E").status_code in (404, 422)


def test_foreign_text_of_agents_stays_text(api: Api) -> None:
    api.start(phase={"description": HOSTILE, "name": "<b>name</b>"})
    api.result(status="failed", patch="", notes=HOSTILE, agent="<i>agent</i>", model="<u>m</u>")
    api.issue(issue_key="<s>key</s>", description=HOSTILE)
    page = api.client.get(f"{HOME}/runs/run-001")
    for tag in ("<script>alert", "<b>name", "<i>agent", "<u>m", "<s>key", "\x1b", "\u202e"):
        assert tag not in page.text, tag


def test_a_page_costs_the_same_for_a_large_run(api: Api, app: FastAPI) -> None:
    sent: list[str] = []
    engines = (app.state.context.engine, app.state.context.autocommit)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    counts = []
    for phases in (1, 25):
        api.start(f"run-{phases}", phases=phases)
        api.result(f"run-{phases}")
        with engines[0].begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO events"
                    " (run_pk, sequence, at, actor, kind, data, previous_hash, hash)"
                    " SELECT run_pk, sequence + n * 100, at, actor, kind, data, '', md5(n::text)"
                    " FROM events, generate_series(1, 2000) n WHERE kind = 'RunStarted'"
                    " AND run_pk = (SELECT max(id) FROM runs)"
                )
            )
            connection.execute(
                text(
                    "UPDATE runs SET event_sequence = 200_001 WHERE id = (SELECT max(id) FROM runs)"
                )
            )
        sent.clear()
        page = api.client.get(f"{HOME}/runs/run-{phases}?phase=P0.0")
        assert page.status_code == 200
        counts.append(len(sent))
        assert len(page.content) < BYTES
    assert counts[0] == counts[1] <= STATEMENTS, counts


def test_a_large_change_is_shown_in_part() -> None:
    lines = b"".join(b"+line %d \xff\n" % number for number in range(2_000))
    diff = b"diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1,2000 @@\n"
    changes = read_changes(diff + lines)
    (file,) = changes.files
    assert (file.path, file.new, changes.added) == ("x", True, 2_000)
    assert len(file.lines) == MAX_LINES
    assert changes.left_out == 2_001 - MAX_LINES
    assert file.lines[1].new == "1"
    assert read_changes(b"").files == []


def test_a_line_that_looks_like_a_header_is_a_line() -> None:
    diff = (
        b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1,2 +1,2 @@\n--- old\n+++ new\n context\n"
        b"diff --git a/y b/y\nBinary files a/y and b/y differ\n"
    )
    first, second = read_changes(diff).files
    assert [line.kind for line in first.lines] == ["hunk", "del", "add", ""]
    assert (first.added, first.removed) == (1, 1)
    assert [line.text for line in second.lines] == ["a binary file"]


# Actions


def test_an_operator_cancels_and_rolls_back_and_sets_by_hand(api: Api) -> None:
    api.start("run-a", phases=2)
    moved = api.client.post(
        f"{HOME}/runs/run-a/phases/P0.0/update_status",
        data={"state": "EXECUTING"},
        follow_redirects=False,
    )
    assert moved.status_code == 303
    assert moved.headers["location"] == f"{HOME}/runs/run-a?phase=P0.0#phase"
    assert api.phase("run-a")["state"] == "EXECUTING"
    api.result("run-a")
    cancelled = api.client.post(
        f"{HOME}/runs/run-a/cancel", data={"reason": "no more"}, follow_redirects=False
    )
    assert cancelled.headers["location"] == f"{HOME}/runs/run-a"
    assert api.run("run-a")["failure_reason"].endswith("no more")
    form = {"to_phase": "P0.0", "reason": "keep the first"}
    assert api.client.post(f"{HOME}/runs/run-a/rollback", data=form).status_code == 200
    form = {"run_id": ""}
    refused = api.client.post(f"{HOME}/runs/run-a/continue", data=form)
    assert "rolled back" in words(refused)
    page = api.client.get(f"{HOME}/runs/run-a")
    assert "/runs/run-a/continue" not in page.text
    assert re.search(r"Not possible: run 'run-a' cannot be continued: .*rolled back", words(page))
    api.start("run-b", phases=2)
    api.result("run-b")
    api.client.post("/runs/run-b/cancel", json={"reason": "later"})
    continued = api.client.post(f"{HOME}/runs/run-b/continue", data=form, follow_redirects=False)
    assert continued.status_code == 303
    new = continued.headers["location"].rpartition("/")[2]
    assert api.run(new)["ended_at"] is None
    again = api.client.post(f"{HOME}/runs/run-a/cancel", data={"reason": "x"})
    assert again.status_code == 409
    assert "is over" in words(again)


def test_a_run_that_may_be_promoted_is_rebased_by_a_form(api: Api) -> None:
    api.start("run-a")
    address = f"{HOME}/runs/run-a/rebase"
    assert address not in api.client.get(f"{HOME}/runs/run-a").text
    api.result("run-a")
    assert address in api.client.get(f"{HOME}/runs/run-a").text
    assert "stands on &#39;main&#39;" in api.client.post(address, data={"run_id": ""}).text
    api.repo.commit({"other.txt": "other\n"})
    rebased = api.client.post(address, data={"run_id": "run-new"}, follow_redirects=False)
    assert rebased.headers["location"] == f"{HOME}/runs/run-new"


def test_a_branch_that_another_process_moved_is_not_offered_for_a_rollback(api: Api) -> None:
    api.start("run-a", phases=2)
    api.result("run-a")
    theirs = api.repo.commit({"theirs.txt": "x\n"})
    api.repo.git("update-ref", "refs/heads/autonomous/run-a", theirs)
    api.result("run-a", "P0.1")
    assert api.run("run-a")["failure_code"] == "branch_moved"
    page = api.client.get(f"{HOME}/runs/run-a").text
    assert "Not possible: run" in page
    assert "/runs/run-a/rollback" not in page


def test_a_form_that_is_wrong_is_named(api: Api) -> None:
    api.start()
    for path, form, word in (
        ("phases/P0.0/update_status", {"state": "SLEEPING"}, "state"),
        ("phases/P0.0/update_status", {"state": "COMPLETE"}, "cannot become COMPLETE"),
        ("cancel", {"reasons": "x"}, "reasons"),
        ("cancel", {"reason": " "}, "reason: say why"),
        ("cancel", {}, "reason: say why"),
    ):
        refused = api.client.post(f"{HOME}/runs/run-001/{path}", data=form)
        assert refused.status_code in (409, 422)
        assert word in words(refused)
    assert api.run()["ended_at"] is None


def test_a_viewer_sees_no_buttons_and_may_not_act(team: TestClient) -> None:
    operator = make_key(team, "op-1", AccessRole.OPERATOR)
    plan = {
        "run": {"run_id": "run-001"},
        "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "T"}],
        "phases": [{"phase_id": "P0", "phase_index": 0, "tier_id": "T0", "name": "P"}],
    }
    header = {"Authorization": f"Bearer {operator}", "Accept": "*/*"}
    assert team.post("/runs/start", json=plan, headers=header).status_code == 201
    sign_in(team, make_key(team, "eye-1", AccessRole.VIEWER, AccessRole.BUILDER))
    page = team.get(f"{HOME}/runs/run-001")
    assert page.status_code == 200
    assert not re.search(r"<form[^>]*runs/", page.text)
    refused = team.post(f"{HOME}/runs/run-001/cancel", data={"reason": "x"})
    assert refused.status_code == 403
    assert "operator" in words(refused)
    sign_in(team, operator)
    assert "Cancel the run" in words(team.get(f"{HOME}/runs/run-001"))
    cancelled = team.post(
        f"{HOME}/runs/run-001/cancel", data={"reason": "x"}, follow_redirects=False
    )
    assert cancelled.status_code == 303
