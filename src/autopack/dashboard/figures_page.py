"""The page of figures: what runs cost, and how well they went, over a period."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Annotated, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse

from ..api.csv_text import as_csv
from ..api.inputs import Context
from ..domain.figures import Grouping
from ..domain.times import duration
from ..services import figures, reports
from ..views.figures import DayAnswer, QualityAnswer
from .plots import Plot, Series, bars, lines
from .rendering import HOME
from .routes import InPage, PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)

GROUPS: Final = 20
MOST_ROWS: Final = 1_000
KEYS: Final = (Grouping.MODEL, Grouping.AGENT, Grouping.CATEGORY)
SPENT_RUNS: Final = 10


@router.get(f"{HOME}/figures")
def show_figures(
    context: Context,
    page: InPage,
    start: Annotated[date | None, Query(alias="from")] = None,
    end: Annotated[date | None, Query(alias="to")] = None,
) -> HTMLResponse:
    """Show the figures of a period."""
    quality = figures.quality(context, start, end)
    costs = {
        key: figures.costs(context, key, quality.start, quality.end, limit=GROUPS) for key in KEYS
    }
    analysis, _ = reports.budget_analysis(context, limit=SPENT_RUNS, before=None)
    period = urlencode({"from": quality.start, "to": quality.end})
    return page.render(
        "figures.html",
        here="figures",
        json=(
            *(f"/metrics/costs?by={key}&{period}" for key in KEYS),
            f"/metrics/quality?{period}",
            "/reports/budget_analysis",
        ),
        q=quality,
        costs=costs,
        total=costs[Grouping.MODEL].total,
        plots=_plots(quality.days),
        spent=analysis.failures,
        waited=_waited(quality),
        period=period,
    )


@router.get(f"{HOME}/figures/costs-by-{{by}}.csv")
def costs_as_csv(
    request: Request,
    context: Context,
    by: Grouping,
    start: Annotated[date | None, Query(alias="from")] = None,
    end: Annotated[date | None, Query(alias="to")] = None,
) -> Response:
    """Return the costs of a period as CSV: a link cannot ask for a media type."""
    costs = figures.costs(context, by, start, end, limit=MOST_ROWS)
    return as_csv(request, Response(costs.model_dump_json()), costs.csv_rows)


def _waited(quality: QualityAnswer) -> Sequence[tuple[str, str, str]]:
    """Return the times that phases waited, as figures for people."""
    found = []
    for name, word in (("builder", "a Builder"), ("auditor", "an Auditor"), ("ci", "CI")):
        times = quality.waits[name]
        if times.median_seconds is None or times.p90_seconds is None:
            found.append((word, "-", "never"))
        else:
            note = f"median; 1 of 10 over {duration(times.p90_seconds)}"
            found.append((word, duration(times.median_seconds), note))
    return found


def _plots(days: Sequence[DayAnswer]) -> dict[str, Plot]:
    dates = [day.day for day in days]
    ended = sum(day.runs_ended for day in days)
    failed = sum(day.runs_failed for day in days)
    cost = sum(float(day.cost_usd) for day in days)
    profiles = sorted({name for day in days for name in day.ci_median_seconds})
    return {
        "runs": bars(
            f"Runs ended a day over {len(days)} days: {ended} in all, {failed} of them failed.",
            dates,
            [
                Series(
                    "a",
                    [day.runs_ended for day in days],
                    [f"{day.day}: {day.runs_ended} ended" for day in days],
                ),
                Series(
                    "z",
                    [day.runs_failed for day in days],
                    [f"{day.day}: {day.runs_failed} failed" for day in days],
                ),
            ],
        ),
        "cost": bars(
            f"Cost a day over {len(days)} days: ${cost:,.2f} in all.",
            dates,
            [
                Series(
                    "a",
                    [float(day.cost_usd) for day in days],
                    [f"{day.day}: ${float(day.cost_usd):,.2f}" for day in days],
                )
            ],
        ),
        "ci": lines(
            "Median time of CI a day in seconds, a line for each profile: "
            + (", ".join(profiles) or "there was none."),
            dates,
            [
                Series(
                    "l" if index == 0 else "l2",
                    [day.ci_median_seconds.get(name) for day in days],
                    [str(day.day) for day in days],
                )
                for index, name in enumerate(profiles)
            ],
        ),
    }
