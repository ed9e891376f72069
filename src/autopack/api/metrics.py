"""Figures over runs and tiers."""

from __future__ import annotations

from datetime import date
from typing import Annotated

from fastapi import APIRouter, Query

from ..domain.figures import Grouping
from ..domain.states import RunStatus
from ..services import figures, metrics
from ..views.figures import CostsAnswer, QualityAnswer
from ..views.metrics import (
    RunMetricsPage,
    TierMetricsListAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .inputs import Context, Cursor, PageLimit, RunId, decode_moment, encode_moment

router = APIRouter(tags=["metrics"], route_class=StrictRoute)

From = Annotated[
    date | None,
    Query(alias="from", description="First day (UTC); without it, 30 days up to the last."),
]
To = Annotated[date | None, Query(alias="to", description="Last day (UTC); without it, today.")]


@router.get("/metrics/runs", responses=problems(422, 503), summary="Read figures of runs")
def run_metrics(
    context: Context,
    limit: PageLimit = 100,
    cursor: Cursor = None,
    status: Annotated[RunStatus | None, Query(description="Only runs in this state.")] = None,
) -> RunMetricsPage:
    """Usage, utilisation, counts and times of each run, newest first.

    A utilisation is the used share of a cap; 1.0 is the whole cap. `total_runs` is exact and counts
    every run in that state, not the page.
    """
    before = None if cursor is None else decode_moment(cursor)
    total, page, more = metrics.run_metrics(context, limit=limit, before=before, status=status)
    return RunMetricsPage(
        total_runs=total,
        runs=page,
        next_cursor=encode_moment(*more) if more else None,
    )


@router.get(
    "/metrics/tiers/{run_id}",
    responses=problems(404, 422, 503),
    summary="Read figures of a run's tiers",
)
def tier_metrics(context: Context, run_id: RunId) -> TierMetricsListAnswer:
    """Each tier's state, cleanliness with its reasons, phases by state, tokens, issues, CI runs.

    `ended_at` is null until the tier is final.
    """
    tiers = metrics.tier_metrics(context, run_id)
    return TierMetricsListAnswer(
        run_id=run_id,
        tier_count=len(tiers),
        tiers=tiers,
    )


@router.get(
    "/metrics/costs",
    responses=problems(422, 503),
    summary="Read what runs cost, by model, agent, category, project or day",
)
def costs(
    context: Context,
    by: Annotated[Grouping, Query(description="The key of the groups.")] = Grouping.MODEL,
    start: From = None,
    end: To = None,
    limit: PageLimit = 100,
) -> CostsAnswer:
    """Money, tokens, phases and tries of a period, the highest costs first; by day in order.

    A result counts on the day when it came. Live runs count as far as they are. What an agent
    reported of an attempt that lasted too long counts as that agent's, of no known model.
    """
    return figures.costs(context, by, start, end, limit=limit)


@router.get(
    "/metrics/quality",
    responses=problems(422, 503),
    summary="Read how well runs went",
)
def quality(context: Context, start: From = None, end: To = None) -> QualityAnswer:
    """Success of runs, tries of phases, patches that needed a repair, reviews, CI and its flaky
    checks, and how long phases waited for agents and CI.

    A run counts on the day when it ended. A median is right to five percent.
    """
    return figures.quality(context, start, end)
