"""Figures over runs and tiers."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from ..domain.states import RunStatus
from ..services import metrics
from ..views.metrics import (
    RunMetricsPage,
    TierMetricsListAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .inputs import Context, Cursor, PageLimit, RunId, decode_moment, encode_moment

router = APIRouter(tags=["metrics"], route_class=StrictRoute)


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
