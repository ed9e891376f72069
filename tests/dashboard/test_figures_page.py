"""The page of figures, and its plots."""

from __future__ import annotations

from datetime import date, timedelta
from typing import TYPE_CHECKING

import pytest
from tests.dashboard.test_pages import words

from autopack.dashboard.plots import BOTTOM, Series, bars, lines, nice
from autopack.dashboard.rendering import HOME

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


def test_figures_of_an_empty_service_are_dashes(api: Api) -> None:
    page = api.client.get(f"{HOME}/figures")
    assert page.status_code == 200
    assert "Runs ended 0" in words(page)
    assert "Nothing was spent." in words(page)


def test_figures_say_what_was_spent_and_by_whom(api: Api) -> None:
    api.start("run-a", phase={"task_category": "docs"})
    api.result("run-a", agent="codex", model="gpt", tokens_used=1_200, cost_usd="1.25")
    api.start("run-b", token_cap=100)
    api.result("run-b", agent="<b>", model="gpt", tokens_used=5_000, cost_usd="3.75")
    page = api.client.get(f"{HOME}/figures")
    shown = words(page)
    assert "Runs ended 2 1 failed" in shown
    assert "gpt $5.00 100.0% 6,200" in shown
    assert "<b> $3.75 75.0%" in shown
    assert "&lt;b&gt;" in page.text
    assert "run-b token_cap 5,000 of 100" in shown
    csv = api.client.get(f"{HOME}/figures/costs-by-model.csv")
    assert csv.headers["content-type"].startswith("text/csv")
    assert "gpt,5.000000" in csv.text


def test_a_period_that_is_none_is_named(api: Api) -> None:
    for query, word in (("from=2026-02-02&to=2026-02-01", "after to"), ("from=soon", "from")):
        page = api.client.get(f"{HOME}/figures?{query}")
        assert page.status_code == 422
        assert word in words(page)


def test_plots_fit_their_frame() -> None:
    days = [date(2026, 1, 1) + timedelta(days=number) for number in range(4)]
    series = Series("a", [0, 2.0, None, 6.0], ["", "2", "", "6"])
    plot = bars("words", days, [series])
    assert [bar.title for bar in plot.bars] == ["2", "6"]
    assert plot.bars[1].height == pytest.approx(3 * plot.bars[0].height, rel=0.01)
    assert all(bar.y + bar.height == pytest.approx(BOTTOM) for bar in plot.bars)
    assert [label.text for label in plot.lines] == ["0", "2", "4", "6"]
    ((kind, path),) = lines("words", days, [series]).paths
    assert kind == "a"
    assert path.count("M") == 2, "a day without a value is a gap"
    tops = [nice(value) for value in (0, 0.4, 1, 2, 6, 7, 31)]
    assert tops == pytest.approx([3, 0.6, 1.5, 3, 6, 15, 60])
