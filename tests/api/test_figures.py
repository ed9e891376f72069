"""Costs and quality over many runs: the same by every key, before and after they are added up."""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from autopack.api.csv_text import wants_csv
from autopack.domain.figures import Grouping, percentile, seconds_of
from autopack.services.figures import costs as costs_of
from autopack.services.figures import count_ended_runs

from .conftest import Agents

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api, Json

pytestmark = pytest.mark.integration


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 10, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


@pytest.fixture
def clock(app: FastAPI, api: Api) -> Clock:
    clock = Clock()
    app.state.context = replace(app.state.context, now=clock)
    return clock


def ask(api: Api, path: str, **params: Any) -> Json:
    response = api.client.get(path, params=params)
    assert response.status_code == 200, response.text
    document: Json = response.json()
    return document


def add_up(app: FastAPI) -> int:
    """Add up what is over; return how many runs are."""
    count_ended_runs(app.state.context)
    with app.state.context.engine.connect() as connection:
        return int(connection.scalar(text("SELECT count(*) FROM runs WHERE is_counted")))


def spent(app: FastAPI) -> dict[str, Any]:
    """Count money and tokens again, from the events alone."""
    by_day: dict[str, list[Any]] = defaultdict(lambda: [0, Decimal(0)])
    with app.state.context.engine.connect() as connection:
        for at, data in connection.execute(
            text("SELECT at, data FROM events WHERE kind = 'TokensCounted'")
        ):
            day = by_day[at.astimezone(UTC).date().isoformat()]
            day[0] += data["tokens"]
            day[1] += Decimal(data.get("cost_usd", 0))
    return {day: tuple(sums) for day, sums in by_day.items()}


def shown(app: FastAPI, by: Grouping = Grouping.DAY) -> dict[str, Any]:
    year = date(2026, 1, 1), date(2027, 12, 31)
    answer = costs_of(app.state.context, by, *year, limit=1_000)
    found = {group.name: (group.tokens, group.cost_usd) for group in answer.groups}
    assert answer.total.tokens == sum(tokens for tokens, _ in found.values())
    assert answer.total.cost_usd == sum(cost for _, cost in found.values())
    return {name: sums for name, sums in found.items() if any(sums)}


def work(api: Api, clock: Clock) -> None:
    """Let two agents work on three runs over three days: one succeeds, one fails, one is live."""
    api.start("run-a", phases=2, phase={"task_category": "docs"}, max_duration_minutes=10_000)
    api.result("run-a", "P0.0", agent="codex", model="gpt", tokens_used=100, cost_usd="0.25")
    api.result("run-a", "P0.1", "no patch", agent="claude", model="opus", tokens_used=50)
    clock.now += timedelta(days=1)
    api.result("run-a", "P0.1", agent="claude", model="opus", tokens_used=7, cost_usd="1.5")
    api.start("run-b", phase={"task_category": "tests"})
    api.result("run-b", status="failed", agent="codex", model="gpt", tokens_used=3)
    api.status("EXECUTING", "run-b")
    assert api.status("FAILED", "run-b").status_code == 200
    clock.now += timedelta(days=1)
    api.start("run-c", phases=2)
    api.result("run-c", agent="codex", tokens_used=11, cost_usd="0.000001")


def test_an_empty_service_has_figures_without_shares(api: Api) -> None:
    costs, quality = ask(api, "/metrics/costs"), ask(api, "/metrics/quality")
    assert costs["groups"] == []
    assert costs["total"]["cost_usd"] == "0.000000"
    assert costs["total"]["cost_share"] is None
    assert quality["runs"]["success_rate"] is None
    assert quality["waits"]["auditor"] == {
        "number": 0,
        "median_seconds": None,
        "p90_seconds": None,
    }
    assert len(quality["days"]) == 30


def test_costs_are_those_of_the_events_by_every_key(api: Api, app: FastAPI, clock: Clock) -> None:
    work(api, clock)
    by_day = spent(app)
    assert len(by_day) == 3
    assert shown(app) == by_day
    before = {by: shown(app, by) for by in Grouping}
    assert before[Grouping.MODEL] == {
        "gpt": (103, Decimal("0.25")),
        "opus": (57, Decimal("1.5")),
        "": (11, Decimal("0.000001")),
    }
    clock.now += timedelta(hours=1)
    assert add_up(app) == 2
    assert add_up(app) == 2, "each run is added once"
    assert {by: shown(app, by) for by in Grouping} == before


def test_tokens_that_an_operator_counts_are_in_the_costs_but_are_no_try(
    api: Api, app: FastAPI, clock: Clock
) -> None:
    api.start(
        "run-a",
        phases=2,
        token_cap=1_000,
        phase={"task_category": "docs"},
    )
    issue = {"issue_key": "slow", "category": "docs", "source": "test"}
    api.result("run-a", agent="codex", model="gpt", tokens_used=100, suggested_issues=[issue])
    for tokens in (30, 12, 900):  # the last ones pass the cap and end the run
        clock.now += timedelta(minutes=1)
        assert api.status("EXECUTING", "run-a", "P0.1", tokens_used=tokens).status_code == 200
    assert api.run("run-a")["tokens_used"] == 1_042
    for _ in range(2):
        assert shown(app) == spent(app)
        assert shown(app, Grouping.CATEGORY) == {"docs": (1_042, Decimal(0))}
        groups = {each["name"]: each for each in ask(api, "/metrics/costs", by="agent")["groups"]}
        assert (groups["codex"]["tokens"], groups["codex"]["tries"]) == (100, 1)
        assert (groups[""]["tokens"], groups[""]["tries"], groups[""]["phases"]) == (942, 0, 0)
        assert groups[""]["unpriced_results"] == 0
        quality = ask(api, "/metrics/quality")
        assert sum(quality["builder_outcomes"].values()) == 1
        assert [day["tokens"] for day in quality["days"] if day["tokens"]] == [1_042]
        clock.now += timedelta(hours=1)
        add_up(app)


def test_only_a_result_with_tokens_and_without_a_cost_is_unpriced(
    api: Api, app: FastAPI, clock: Clock
) -> None:
    results: list[Json] = [
        {},
        {"tokens_used": 5},
        {"tokens_used": 5, "cost_usd": "0"},
        {"cost_usd": "1"},
    ]
    for number, spent in enumerate(results):
        api.start(f"run-{number}")
        patch = api.new_file(f"{number}.txt")
        assert api.result(f"run-{number}", patch=patch, agent="codex", **spent).is_success
    for _ in range(2):
        (codex,) = ask(api, "/metrics/costs", by="agent")["groups"]
        assert (codex["tries"], codex["unpriced_results"]) == (4, 1)
        clock.now += timedelta(hours=1)
        add_up(app)


def test_what_an_agent_told_of_an_attempt_that_lapsed_is_in_its_costs(
    api: Api, app: FastAPI, clock: Clock
) -> None:
    agents = Agents(api, app)
    api.start()
    agents.beat(agents.claim(agent="codex"), 40, cost_usd="0.5")
    clock.now += timedelta(minutes=20)
    agents.upkeep()
    assert shown(app) == spent(app) != {}
    assert shown(app, Grouping.AGENT) == {"codex": (40, Decimal("0.5"))}


def test_a_group_says_how_many_tries_its_phases_needed(
    api: Api, app: FastAPI, clock: Clock
) -> None:
    work(api, clock)
    for _ in range(2):
        groups = {each["name"]: each for each in ask(api, "/metrics/costs", by="agent")["groups"]}
        assert list(groups) == ["claude", "codex"], "the highest cost first"
        claude, codex = groups["claude"], groups["codex"]
        assert (claude["phases"], claude["tries"], claude["tickets"]) == (1, 2, 1)
        assert claude["tries_per_phase"] == 2.0
        assert claude["unpriced_results"] == 1
        assert claude["cost_share"] == pytest.approx(0.8571)
        assert codex["phases"] == 3
        clock.now += timedelta(hours=1)
        add_up(app)


def test_a_period_contains_its_first_and_its_last_day(api: Api, app: FastAPI, clock: Clock) -> None:
    work(api, clock)
    for _ in range(2):
        period = {"from": "2026-03-11", "to": "2026-03-11"}
        costs = ask(api, "/metrics/costs", by="day", **period)
        assert [each["name"] for each in costs["groups"]] == ["2026-03-11"]
        assert costs["total"]["cost_usd"] == "1.500000"
        quality = ask(api, "/metrics/quality", **period)
        assert [each["day"] for each in quality["days"]] == ["2026-03-11"]
        assert quality["runs"]["ended"] == 2
        later = ask(api, "/metrics/quality", **{"from": "2026-03-12", "to": "2026-03-12"})
        assert later["runs"]["success_rate_before"] == 0.5
        clock.now += timedelta(hours=1)
        add_up(app)


def test_quality_counts_ends_tries_and_waits(api: Api, app: FastAPI, clock: Clock) -> None:
    work(api, clock)
    api.start("run-d")
    clock.now += timedelta(minutes=10)
    claimed = api.client.post("/runs/run-d/claim", json={"role": "builder", "agent": "codex"})
    assert claimed.status_code == 200, claimed.text
    cancelled = api.client.post("/runs/run-d/cancel", json={"reason": "not needed"})
    assert cancelled.status_code == 200, cancelled.text
    for _ in range(2):
        quality = ask(api, "/metrics/quality")
        assert quality["runs"] == {
            "ended": 3,
            "succeeded": 1,
            "failed": 1,
            "cancelled": 1,
            "success_rate": 0.5,
            "success_rate_before": None,
        }
        phases = quality["phases"]
        assert phases["complete"] == 3
        assert phases["complete_at_first_try"] == 2
        assert quality["patches"]["needed_ticket"] == 1
        wait = quality["waits"]["builder"]
        assert wait["number"] == 1
        assert wait["median_seconds"] == pytest.approx(600, rel=0.06)
        clock.now += timedelta(hours=1)
        add_up(app)


def test_bad_questions_are_refused_by_name(api: Api) -> None:
    refused = api.client.get("/metrics/costs", params={"by": "colour"})
    api.refused(refused, 422, None, "by", *Grouping)
    api.refused(api.client.get("/metrics/costs", params={"from": "yesterday"}), 422, None, "from")
    for period in (
        {"from": "2026-03-02", "to": "2026-03-01"},
        {"from": "0001-01-01"},
        {"to": "0001-01-02"},
    ):
        for path in ("/metrics/costs", "/metrics/quality"):
            api.refused(api.client.get(path, params=period), 422, "invalid_period", "from")


def test_lists_are_csv_for_who_prefers_it(api: Api, clock: Clock) -> None:
    work(api, clock)
    api.start("run-e")
    api.result("run-e", agent='=HYPERLINK("x")', tokens_used=1)
    answer = api.client.get("/metrics/costs?by=agent", headers={"Accept": "text/csv"})
    assert answer.headers["content-type"].startswith("text/csv")
    rows = {row["name"]: row for row in csv.DictReader(io.StringIO(answer.text))}
    assert rows["claude"]["cost_usd"] == "1.500000"
    assert '\'=HYPERLINK("x")' in rows, "no spreadsheet takes it as a formula"
    page = api.client.get("/runs?limit=2", headers={"Accept": "text/csv, application/json;q=0.5"})
    assert len(list(csv.DictReader(io.StringIO(page.text)))) == 2
    assert page.headers["link"].endswith('rel="next"')
    kind = api.client.get("/runs", headers={"Accept": "application/json, text/csv;q=0.9"})
    assert kind.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("accept", "is_wanted"),
    [
        ("text/csv", True),
        ("TEXT/CSV ; q=0.1", True),
        ("text/csv, application/json", True),
        ("application/json;q=0.5, text/csv;q=0.6", True),
        ("application/json, text/csv;q=0.9", False),
        ("text/csv;q=0", False),
        ("text/csv;q=much", False),
        ("*/*", False),
        ("text/*", False),
        ("", False),
    ],
)
def test_a_client_that_prefers_json_to_csv_gets_no_csv(accept: str, is_wanted: bool) -> None:
    assert wants_csv(accept) is is_wanted


def test_every_csv_is_in_the_schema(api: Api) -> None:
    paths = api.client.get("/openapi.json").json()["paths"]
    lists = [
        path
        for path, operations in paths.items()
        if "get" in operations
        and "text/csv" in operations["get"]["responses"].get("200", {}).get("content", {})
    ]
    assert {"/runs", "/metrics/costs", "/metrics/quality", "/project/issues/backlog"} <= {*lists}
    for path in lists:
        if "{" not in path:
            answer = api.client.get(path, headers={"Accept": "text/csv"})
            assert answer.headers["content-type"].startswith("text/csv"), path


def test_a_median_of_steps_is_right_to_five_percent() -> None:
    for seconds in (0.1, 1.0, 59.0, 3_600.0, 86_400.0):
        near = min(range(-40, 200), key=lambda step: abs(seconds_of(step) - seconds))
        assert percentile({near: 3}, 0.5) == pytest.approx(seconds, rel=0.05)
    assert percentile({0: 9, 10: 1}, 0.9) == 1.0
    assert percentile({0: 8, 10: 2}, 0.9) == seconds_of(10)
    assert percentile({}, 0.5) is None
