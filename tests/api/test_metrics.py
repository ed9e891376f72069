"""Figures of runs and tiers, and what every list and report costs however many runs there are."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text

from autopack.domain.metrics import is_passed, left_of, utilization
from autopack.domain.states import RunStatus
from autopack.domain.terms import Role

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration

BENCHMARK = runpy.run_path(str(Path(__file__).resolve().parents[2] / "benchmarks" / "lists.py"))
LOADED_RUNS = 3_000
# Statements of each request, whatever the number of runs.
BUDGETS = {
    "/metrics/runs": 2,
    "/metrics/runs?status=DONE_SUCCESS": 2,
    "/metrics/runs?status=DONE_FAILED_ENVIRONMENT&limit=1000": 2,
    "/metrics/tiers/{run_id}": 1,
    "/metrics/costs?by=agent": 1,
    "/metrics/quality": 2,
    "/reports/issue_backlog_summary": 3,
    "/reports/budget_analysis": 2,
    "/reports/run_summary/{run_id}": 6,
    "/runs/{run_id}/promotion": 3,
}


@pytest.fixture
def engine(app: FastAPI, api: Api) -> Engine:
    """The service's own connections to Postgres."""
    engine: Engine = app.state.context.engine
    return engine


@pytest.fixture
def load(api: Api, engine: Engine) -> Callable[[int], None]:
    """Fill the database with copies of one run that the service started."""

    def load(runs: int) -> None:
        api.start("live", tiers=2, phases=3)
        api.issue("load-first", "live")
        api.result("live", status="failed")
        with engine.begin() as connection:
            BENCHMARK["fill"](connection, runs)
        BENCHMARK["settle"](engine)

    return load


def ask(api: Api, path: str, **params: Any) -> Json:
    response = api.client.get(path, params=params or None)
    assert response.status_code == 200, f"{path}: {response.text}"
    document: Json = response.json()
    return document


# Runs


def test_an_empty_database_is_no_error(api: Api) -> None:
    assert ask(api, "/metrics/runs") == {"total_runs": 0, "runs": [], "next_cursor": None}
    assert ask(api, "/metrics/runs", status="DONE_SUCCESS")["total_runs"] == 0


def test_total_runs_counts_every_run_of_the_state_whatever_the_page(api: Api) -> None:
    for number in range(5):
        api.start(f"run-{number}")
    api.result("run-1")
    api.result("run-3")
    for limit in (1, 2, 5):
        assert ask(api, "/metrics/runs", limit=limit)["total_runs"] == 5
    done = ask(api, "/metrics/runs", status="DONE_SUCCESS", limit=1)
    assert done["total_runs"] == 2
    assert [run["run_id"] for run in done["runs"]] == ["run-3"]


def test_pages_hold_each_run_once_newest_first(api: Api) -> None:
    names = [f"run-{number}" for number in range(5)]
    for name in names:
        api.start(name)
    found: list[str] = []
    page = ask(api, "/metrics/runs", limit=2)
    while True:
        found += [run["run_id"] for run in page["runs"]]
        if page["next_cursor"] is None:
            break
        page = ask(api, "/metrics/runs", limit=2, cursor=page["next_cursor"])
    assert found == names[::-1]


def test_an_unknown_status_is_refused_with_the_names_of_all(api: Api) -> None:
    for unknown in ("DONE", "done_success", ""):
        response = api.client.get("/metrics/runs", params={"status": unknown})
        api.refused(response, 422, None, "status", *RunStatus)


@pytest.mark.parametrize(
    "path", ["/metrics/runs", "/reports/issue_backlog_summary", "/reports/budget_analysis"]
)
def test_a_cursor_of_ones_own_making_is_refused(api: Api, path: str) -> None:
    for cursor in ("", "x", "WzFd", "WzEsIC0xXQ"):
        api.refused(api.client.get(path, params={"cursor": cursor}), 422, "invalid_cursor")


def test_figures_are_those_of_the_run_itself(api: Api) -> None:
    api.start(tiers=2, phases=2, token_cap=30_000, run_scope="multi_tier")
    api.result(tokens_used=10_000)
    api.issue("one", phase_id="P0.1")
    api.issue("two", phase_id="P0.1", severity="major")
    api.result(phase_id="P0.1", status="failed")
    run, (figures,) = api.run(), ask(api, "/metrics/runs")["runs"]
    phases = [phase for tier in run["tiers"] for phase in tier["phases"]]
    states = Counter(phase["state"] for phase in phases)
    assert figures["id"] == figures["run_id"] == "run-001"
    for name in figures.keys() & run.keys():
        assert figures[name] == run[name], name
    assert figures["token_utilization"] == 0.3333
    assert figures["minor_issue_utilization"] == round(1 / 12, 4)
    assert (figures["tier_count"], figures["phase_count"]) == (2, 4)
    assert figures["phases_complete"] == states["COMPLETE"] == 1
    assert figures["tiers_not_clean"] == 1
    assert figures["builder_attempts_used"] == 2
    assert 0 <= figures["duration_minutes"] < 1


def test_each_final_state_of_phases_is_counted_for_itself(api: Api) -> None:
    api.start(phases=6, run_scope="multi_tier")
    api.result()
    api.result(phase_id="P0.1")
    api.status("EXECUTING", phase_id="P0.2")
    api.status("FAILED", phase_id="P0.2")
    api.client.post("/runs/run-001/cancel", json={"reason": "enough"}).raise_for_status()
    states = Counter(phase["state"] for phase in api.run()["tiers"][0]["phases"])
    (figures,) = ask(api, "/metrics/runs")["runs"]
    told = [figures[f"phases_{state}"] for state in ("complete", "failed", "skipped")]
    assert told == [states["COMPLETE"], states["FAILED"], states["SKIPPED"]]
    assert len({*told}) == len(told), "one of them could stand for another"


def test_a_run_from_before_the_clock_was_set_back_has_taken_no_time(api: Api, app: FastAPI) -> None:
    api.start()
    context = app.state.context
    app.state.context = replace(context, now=lambda: context.now() - timedelta(hours=1))
    (figures,) = ask(api, "/metrics/runs")["runs"]
    assert (figures["duration_minutes"], figures["duration_utilization"]) == (0, 0)


def test_a_share_of_nothing_is_finite() -> None:
    assert utilization(0, 0) == 0
    assert utilization(2, 0) == 2
    assert utilization(1, 3) == 0.3333
    assert left_of(10, 11) == 0
    assert not is_passed(10, 10)


# Tiers


def test_tiers_come_in_order_and_name_every_state_of_phases(api: Api) -> None:
    api.start(tiers=2, phases=2)
    api.result(tokens_used=700)
    answer = ask(api, "/metrics/tiers/run-001")
    assert (answer["run_id"], answer["tier_count"]) == ("run-001", 2)
    first, second = answer["tiers"]
    assert (first["tier_id"], second["tier_id"]) == ("T0", "T1")
    assert (first["state"], second["state"]) == ("IN_PROGRESS", "PENDING")
    none = dict.fromkeys(
        ("QUEUED", "EXECUTING", "GATE", "CI_RUNNING", "COMPLETE", "FAILED", "SKIPPED"), 0
    )
    assert first["phase_states"] == none | {"COMPLETE": 1, "QUEUED": 1}
    assert second["phase_states"] == none | {"QUEUED": 2}
    assert (first["tokens_used"], second["tokens_used"]) == (700, 0)
    assert first["started_at"] is not None
    assert first["ended_at"] is None
    assert second["started_at"] is None


def test_a_tier_that_is_not_clean_says_why(api: Api) -> None:
    api.start()
    api.issue(severity="major")
    (tier,) = ask(api, "/metrics/tiers/run-001")["tiers"]
    assert tier["cleanliness"] == "not_clean"
    assert tier["cleanliness_reasons"] == ["1 major issues, 0 allowed"]


@pytest.mark.parametrize(
    "path", ["/metrics/tiers/{}", "/reports/run_summary/{}", "/runs/{}/promotion"]
)
def test_an_unknown_run_is_404(api: Api, path: str) -> None:
    api.refused(api.client.get(path.format("nobody")), 404, "not_found", "nobody")


def test_a_run_whose_time_is_up_is_reported_as_ended(api: Api, app: FastAPI) -> None:
    api.start(max_duration_minutes=5)
    context = app.state.context
    app.state.context = replace(context, now=lambda: context.now() + timedelta(minutes=7))
    assert ask(api, "/metrics/tiers/run-001")["tiers"][0]["state"] == "SKIPPED"
    summary = ask(api, "/reports/run_summary/run-001")
    assert summary["run"]["state"] == "DONE_FAILED_BUDGET_EXHAUSTED"
    assert 6.9 < summary["duration_minutes"] < 7.5


# Any state, any size


def test_no_state_and_no_zero_makes_an_error(
    api: Api, engine: Engine, load: Callable[[int], None]
) -> None:
    load(60)
    states = list(RunStatus)
    with engine.begin() as connection:
        for number, state in enumerate(states):
            connection.execute(
                text(
                    "UPDATE runs SET state = :state, tokens_used = 0, max_minor_issues_total = 0,"
                    " failure_code = NULL, ended_at = CASE WHEN :is_final THEN ended_at END,"
                    " deadline_at = now() + interval '1 hour' WHERE run_id = :run_id"
                ),
                {"state": state, "is_final": state.is_final, "run_id": f"load-{number + 1}"},
            )
        connection.execute(text("UPDATE phases SET tokens_used = 0"))
        connection.execute(text("UPDATE tiers SET tokens_used = 0, token_cap = 0, ci_run_cap = 0"))
    for number, state in enumerate(states):
        assert state in {run["state"] for run in ask(api, "/metrics/runs", status=state)["runs"]}
        for path in BUDGETS:
            ask(api, path.replace("{run_id}", f"load-{number + 1}"))


def test_pages_and_reports_read_no_growing_table_as_a_whole(
    api: Api, engine: Engine, load: Callable[[int], None]
) -> None:
    load(LOADED_RUNS)
    statements = BENCHMARK["Statements"](engine)
    lists = ["/runs", "/runs?status=GATE", "/runs?project_id=Autopack", "/runs/{run_id}/events"]
    for path in (*BUDGETS, *lists):
        statements.sent.clear()
        response = api.client.get(path.replace("{run_id}", "load-2000"))
        assert response.status_code == 200
        if path in BUDGETS:
            assert len(statements.sent) == BUDGETS[path], path
        # Few keys are rightly read as a whole; the benchmark has many.
        assert statements.tables_read_whole() <= {"backlog"}, path
    for role in Role:
        statements.sent.clear()
        claimed = api.client.post("/claim", json={"role": role, "agent": "codex"})
        assert claimed.status_code in (200, 204)
        # There is no commit yet, and few keys: both are rightly read as a whole.
        assert statements.tables_read_whole() <= {"commits", "backlog"}, role
    with engine.connect() as connection:  # what this would look like
        connection.execute(text("SELECT count(*) FROM events WHERE actor = 'nobody'"))
    assert statements.tables_read_whole() == {"events"}


def test_pages_of_many_runs_are_whole_and_in_order(api: Api, load: Callable[[int], None]) -> None:
    load(400)
    for path, name, expected in (
        ("/metrics/runs?status=DONE_SUCCESS", "runs", 320),
        ("/reports/budget_analysis?", "failures", 20),
    ):
        found: list[tuple[str, str]] = []
        page = ask(api, f"{path}&limit=7")
        while True:
            found += [(item["created_at"], item["run_id"]) for item in page[name]]
            if page["next_cursor"] is None:
                break
            page = ask(api, f"{path}&limit=7&cursor={page['next_cursor']}")
        assert len(set(found)) == len(found) == expected
        assert [at for at, _ in found] == sorted((at for at, _ in found), reverse=True)
        assert page.get("total_runs", page.get("total_budget_failures")) == expected
