"""What reports say of the backlog, of budgets that broke, of one run and its promotion."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration


def ask(api: Api, path: str, **params: Any) -> Json:
    response = api.client.get(path, params=params or None)
    assert response.status_code == 200, f"{path}: {response.text}"
    document: Json = response.json()
    return document


def review(api: Api, recommendation: str, phase_id: str = "P0.0", **fields: Any) -> None:
    response = api.client.post(
        f"/runs/run-001/phases/{phase_id}/auditor_result",
        json={"review_notes": "seen", "recommendation": recommendation, **fields},
    )
    assert response.status_code == 200, response.text


# The backlog


def test_an_empty_backlog_has_every_status_at_zero(api: Api) -> None:
    report = ask(api, "/reports/issue_backlog_summary")
    assert report["totals_by_status"] == {"open": 0, "needs_cleanup": 0, "resolved": 0}
    assert report["top_aging_issues"] == report["needs_cleanup"] == []


def test_the_backlog_is_counted_by_status_severity_and_category(api: Api) -> None:
    api.start()
    api.issue("a", category="x")
    api.issue("b", category="x", severity="major")
    api.issue("c", category="y")
    api.client.post("/project/issues/c/resolve").raise_for_status()
    report = ask(api, "/reports/issue_backlog_summary")
    assert report["total_issues"] == 3
    assert report["totals_by_status"] == {"open": 2, "needs_cleanup": 0, "resolved": 1}
    assert report["unresolved_by_severity"] == {"minor": 1, "major": 1}
    assert list(report["by_category"]) == ["x", "y"]
    assert report["by_category"]["x"]["open"] == 2
    assert report["by_category"]["y"] == {
        "total": 1, "open": 0, "needs_cleanup": 0, "resolved": 1, "minor": 0, "major": 0,
    }  # fmt: skip
    assert "c" not in {issue["issue_key"] for issue in report["top_aging_issues"]}


def test_the_issue_that_most_runs_saw_comes_first_and_aged_ones_wait_in_line(api: Api) -> None:
    for number in range(3):
        api.start(f"run-{number}")
        api.issue("old", f"run-{number}")
        if number:
            api.issue("younger", f"run-{number}")
    api.start("run-3")
    api.issue("younger", "run-3")
    report = ask(api, "/reports/issue_backlog_summary")
    ages = [(one["issue_key"], one["age_in_runs"]) for one in report["top_aging_issues"]]
    assert sorted(ages) == [("old", 3), ("younger", 3)]
    assert [one["issue_key"] for one in report["needs_cleanup"]] == ["old", "younger"]
    assert all(one["needs_cleanup_at"] for one in report["needs_cleanup"])
    first = ask(api, "/reports/issue_backlog_summary", limit=1)
    rest = ask(api, "/reports/issue_backlog_summary", limit=1, cursor=first["next_cursor"])
    assert [one["issue_key"] for one in first["needs_cleanup"]] == ["old"]
    assert [one["issue_key"] for one in rest["needs_cleanup"]] == ["younger"]
    assert rest["next_cursor"] is None
    assert rest["totals_by_status"] == first["totals_by_status"]


# Budgets


def test_without_a_budget_failure_every_figure_is_zero(api: Api) -> None:
    api.start()
    assert ask(api, "/reports/budget_analysis") == {
        "total_budget_failures": 0,
        "average_token_utilization": 0.0,
        "failures_by_budget": {},
        "failures": [],
        "next_cursor": None,
    }


def test_a_failure_names_its_budget_the_figure_reached_and_what_spent_most(api: Api) -> None:
    api.start(phases=3, token_cap=1_000)
    api.result(tokens_used=300)
    api.result(phase_id="P0.1", tokens_used=900)
    report = ask(api, "/reports/budget_analysis")
    (failure,) = report["failures"]
    assert report["total_budget_failures"] == 1
    assert report["failures_by_budget"] == {"token_cap": 1}
    assert report["average_token_utilization"] == failure["token_utilization"] == 1.2
    assert failure["broken_budget"] == {
        "name": "token_cap", "cap": 1_000, "used": 1_200, "left": 0, "utilization": 1.2,
        "is_passed": True,
    }  # fmt: skip
    assert failure["top_tiers"] == [{"tier_id": "T0", "tokens_used": 1_200, "share": 1.0}]
    assert failure["top_slices"] == [
        {"slice": "default:medium", "tokens_used": 1_200, "share": 1.0}
    ]
    assert (failure["phase_count"], failure["phases_complete"]) == (3, 1)


def test_slices_differ_by_category_and_complexity(api: Api) -> None:
    plan = api.plan(phases=3, token_cap=1_000)
    plan["phases"][0] |= {"task_category": "docs", "complexity": "low"}
    plan["phases"][1] |= {"task_category": "docs", "complexity": "medium"}
    plan["phases"][2] |= {"task_category": "tests", "complexity": "low"}
    assert api.client.post("/runs/start", json=plan).status_code == 201
    for phase_id, tokens in (("P0.0", 200), ("P0.1", 300), ("P0.2", 600)):
        api.result(phase_id=phase_id, tokens_used=tokens)
    (failure,) = ask(api, "/reports/budget_analysis")["failures"]
    assert [(one["slice"], one["share"]) for one in failure["top_slices"]] == [
        ("tests:low", 0.5455),
        ("docs:medium", 0.2727),
        ("docs:low", 0.1818),
    ]


def test_a_run_that_ran_out_of_time_before_anything_began_is_a_failure_like_others(
    api: Api, app: FastAPI
) -> None:
    api.start(max_duration_minutes=5)
    context = app.state.context
    app.state.context = replace(context, now=lambda: context.now() + timedelta(minutes=6))
    api.run()
    (failure,) = ask(api, "/reports/budget_analysis")["failures"]
    assert failure["broken_budget"]["name"] == "max_duration_minutes"
    assert failure["broken_budget"]["cap"] == 5
    assert 6 <= failure["broken_budget"]["used"] < 6.5
    assert failure["token_utilization"] == 0
    assert failure["top_tiers"] == failure["top_slices"] == []
    assert failure["auditor"]["helped"] is None


def test_the_average_is_over_budget_failures_alone(api: Api) -> None:
    for run_id, tokens in (("run-1", 110), ("run-2", 130), ("run-3", 50)):
        api.start(run_id, token_cap=100)
        api.result(run_id, tokens_used=tokens)
    assert api.run("run-3")["state"] == "DONE_SUCCESS"
    report = ask(api, "/reports/budget_analysis")
    assert report["total_budget_failures"] == 2
    assert report["average_token_utilization"] == 1.2
    assert [failure["run_id"] for failure in report["failures"]] == ["run-2", "run-1"]


@pytest.mark.parametrize(("recommendation", "helped"), [("approve", True), ("revise", False)])
def test_the_auditor_helped_when_a_phase_it_reviewed_was_completed(
    api: Api, recommendation: str, helped: bool
) -> None:
    api.start(phases=2, token_cap=1_000)
    api.result(status="needs_review", tokens_used=100)
    review(api, recommendation, tokens_used=50)
    api.result(phase_id="P0.1" if helped else "P0.0", tokens_used=2_000)
    (failure,) = ask(api, "/reports/budget_analysis")["failures"]
    assert failure["auditor"] == {
        "helped": helped,
        "phases_reviewed": 1,
        "phases_completed": int(helped),
        "attempts_used": 1,
        "tokens_used": 50,
    }


# One run


def test_the_summary_agrees_with_the_run_its_events_and_itself(api: Api) -> None:
    api.start(tiers=2, phases=2, token_cap=30_000, run_scope="multi_tier")
    api.result(tokens_used=10_000)
    api.issue("a", phase_id="P0.1")
    api.issue("a", phase_id="P1.0")
    api.issue("b", phase_id="P0.1", severity="major")
    api.result(phase_id="P0.1", status="failed")
    api.client.post("/runs/run-001/cancel", json={"reason": "enough"}).raise_for_status()
    summary, run = ask(api, "/reports/run_summary/run-001"), api.run()
    assert summary["run"] == {name: run[name] for name in summary["run"]}
    budgets = {budget["name"]: budget for budget in summary["budgets"]}
    assert list(budgets) == [
        "token_cap", "max_duration_minutes", "max_phases", "max_minor_issues_total",
    ]  # fmt: skip
    assert budgets["token_cap"] == {
        "name": "token_cap", "cap": 30_000, "used": 10_000, "left": 20_000,
        "utilization": 0.3333, "is_passed": False,
    }  # fmt: skip
    assert budgets["max_phases"]["used"] == 4
    assert summary["issues"]["totals"] == {
        "reported": 2, "occurrences": 3, "open_minor": run["minor_issues_count"],
        "open_major": run["major_issues_count"], "resolved": 0, "expected": 0,
    }  # fmt: skip
    assert [
        (issue["issue_key"], issue["phases"]) for issue in summary["issues"]["open_issues"]
    ] == [("b", ["P0.1"]), ("a", ["P0.1", "P1.0"])]
    assert summary["tiers"] == ask(api, "/metrics/tiers/run-001")["tiers"]
    assert [phase["phase_id"] for phase in summary["phases"]] == ["P0.0", "P0.1", "P1.0", "P1.1"]
    assert summary["attempts"]["builder"] == {
        "count": 2, "tokens_used": 10_000, "cost_usd": "0.000000",
            "outcomes": {"applied": 1, "failed": 1},
    }  # fmt: skip
    assert summary["attempts"]["auditor"] == {
        "count": 0, "tokens_used": 0, "cost_usd": "0.000000", "outcomes": {},
    }  # fmt: skip
    assert set(summary["ci"].values()) == {0}
    events = ask(api, "/runs/run-001/events", limit=1_000)["events"]
    moves = [event["sequence"] for event in events if event["to_state"]]
    assert [event["sequence"] for event in summary["timeline"]] == moves
    assert summary["event_count"] == len(events)
    assert summary["timeline"][0]["kind"] == "RunStarted"
    assert summary["timeline"][-1]["kind"] == "RunEnded"
    promotion = ask(api, "/runs/run-001/promotion")
    assert summary["promotion"] == {name: promotion[name] for name in summary["promotion"]}
    assert promotion["reasons"] == run["promotion_reasons"]


def test_an_expected_failure_is_reported_and_not_counted(api: Api) -> None:
    api.start(phase={"expected_issues": ["known"]})
    api.issue("known", expected_fail=True)
    issues = ask(api, "/reports/run_summary/run-001")["issues"]
    assert issues["totals"]["expected"] == issues["totals"]["reported"] == 1
    assert issues["totals"]["open_minor"] == 0
    assert issues["open_issues"] == []


# Promotion


def test_an_eligible_run_comes_with_the_text_of_its_pull_request(api: Api) -> None:
    api.start(phase={"name": "Add the login form"})
    api.result(tokens_used=15_000)
    answer = ask(api, "/runs/run-001/promotion")
    assert (answer["run_id"], answer["eligible"], answer["reasons"]) == ("run-001", True, [])
    assert answer["warnings"] == ["nothing verified phase 'P0.0'"]
    request = answer["pull_request"]
    assert request["title"] == "[run-001] Add the login form"
    assert (request["head"], request["base"]) == ("autonomous/run-001", "main")
    for words in (
        "**Eligible** for `main`",
        "nothing verified phase 'P0.0'",
        "15,000 of",
        "`P0.0`",
    ):
        assert words in request["body"]


@pytest.mark.parametrize(
    ("tiers", "title"),
    [(1, "[run-001] Tier 0"), (2, "[run-001] Tier 0 and 1 more tier"),
     (4, "[run-001] Tier 0 and 3 more tiers")],
)  # fmt: skip
def test_a_plan_of_several_phases_is_named_by_its_tiers(api: Api, tiers: int, title: str) -> None:
    api.start(tiers=tiers, phases=2)
    assert ask(api, "/runs/run-001/promotion")["pull_request"]["title"] == title


def test_a_live_run_has_the_present_reasons_against_it(api: Api) -> None:
    api.start()
    api.issue(severity="major")
    answer = ask(api, "/runs/run-001/promotion")
    assert not answer["eligible"]
    assert answer["reasons"] == [
        "the run is RUN_CREATED, not DONE_SUCCESS",
        "tier 'T0' is not clean: 1 major issues, 0 allowed",
    ]


def test_the_text_of_an_ineligible_run_says_not_to_merge(api: Api) -> None:
    api.start(phases=2)
    api.issue("a_failing_test", severity="major", description="it fails")
    api.client.post("/runs/run-001/cancel", json={"reason": "enough"}).raise_for_status()
    body = ask(api, "/runs/run-001/promotion")["pull_request"]["body"]
    assert "do not merge" in body
    assert "DONE_FAILED_REQUIRES_HUMAN_REVIEW, not DONE_SUCCESS" in body
    assert "| `a_failing_test` | major | 1x | `P0.0` | it fails |" in body


def test_words_of_agents_neither_call_people_nor_close_issues(api: Api) -> None:
    name = "Ask @@everyone and fixes #12, closes GH-7 <img src=x> | **bold**"
    api.start(phase={"name": name})
    api.issue(description="@team/ops see org/repo#99", severity="major")
    request = ask(api, "/runs/run-001/promotion")["pull_request"]
    for live in ("@everyone", "@team", "#12", "#99", "GH-7", "<img", "**bold**"):
        assert live not in request["body"]
    for live in ("@everyone", "#12", "GH-7"):
        assert live not in request["title"]
    assert len(request["title"]) <= 120


def test_a_plan_of_any_size_gives_a_text_within_a_forges_limits(api: Api) -> None:
    long = {"name": "n" * 500, "expected_issues": []}
    api.start(tiers=5, phases=30, phase=long, max_phases=150)
    request = ask(api, "/runs/run-001/promotion")["pull_request"]
    assert len(request["title"]) <= 120
    assert len(request["body"]) < 65_536
    assert "50 more phases are not listed" in request["body"]


def checks_of(api: Api, run_id: str) -> dict[str, tuple[bool | None, str]]:
    found = api.client.get(f"/runs/{run_id}/promotion").json()
    return {each["name"]: (each["passed"], each["detail"]) for each in found["checks"]}


def test_promotion_says_what_was_checked(api: Api) -> None:
    for name in ("live", "done", "by-hand", "failed"):
        api.start(name)
    api.result("done")
    api.status("EXECUTING", "by-hand")
    api.status("GATE", "by-hand")
    api.status("COMPLETE", "by-hand")
    api.client.post("/runs/failed/cancel", json={"reason": "enough"})

    live = checks_of(api, "live")
    assert live["success"] == (None, "decided at the run's end")
    assert live["merge"] == (True, "it merges with today's base branch")
    done = checks_of(api, "done")
    assert {passed for passed, _ in done.values()} == {True}
    assert done["tiers"] == (True, "every tier is clean")
    by_hand = checks_of(api, "by-hand")
    assert by_hand["by_rules"] == (False, "phase 'P0.0' was completed by hand")
    assert by_hand["success"][0] is by_hand["record"][0] is True
    assert checks_of(api, "failed")["success"][0] is False
    promotions = {
        name: api.client.get(f"/runs/{name}/promotion").json() for name in ("live", "done")
    }
    assert promotions["live"]["is_signed"] is None
    assert promotions["done"]["is_signed"] is False


def test_the_incident_of_a_failed_run_is_that_of_its_files(api: Api) -> None:
    api.start()
    missing = api.client.get("/runs/run-001/incident")
    api.refused(missing, 404, "not_found", "run-001", "RUN_CREATED")
    api.status("EXECUTING")
    api.status("FAILED")
    pack = api.client.get("/runs/run-001/incident").json()
    assert pack["failure_code"] == "phase_failed"
    assert [phase["phase_id"] for phase in pack["phases"]] == ["P0.0"]
    assert pack == api.document("run-001", "incident.json")
    page = api.client.get("/runs/run-001/incident.md")
    assert page.headers["content-type"] == "text/markdown; charset=utf-8"
    assert page.text == api.file("run-001", "incident.md")
