"""Figures of runs, and of the tiers of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime

import structlog

from ..domain.metrics import utilization
from ..domain.states import PhaseStatus, RunStatus
from ..models import Phase, Run, Tier
from ..store import metrics
from ..store.gauges import GAUGES, RETENTION_GAUGES, Gauge
from ..views.metrics import PhaseMetricsAnswer, RunMetricsAnswer, TierMetricsAnswer
from .availability import OUTAGES
from .context import AppContext
from .reading import one_moment, reading_run

logger = structlog.get_logger(__name__)

Position = tuple[datetime, int]


def run_metrics(
    context: AppContext, *, limit: int, before: Position | None, status: RunStatus | None
) -> tuple[int, list[RunMetricsAnswer], Position | None]:
    """Return the number of runs, a page of their figures, and where the next page begins."""
    with one_moment(context) as session:
        total = metrics.count_runs(session, status)
        rows = metrics.list_run_metrics(
            session, limit=limit + 1, before=before, status=status, now=context.now()
        )
    page = rows[:limit]
    more = (page[-1][1].created_at, page[-1][0]) if len(rows) > limit else None
    return total, [row for _, row in page], more


def tier_metrics(context: AppContext, run_id: str) -> list[TierMetricsAnswer]:
    """Return the figures of a run's tiers, in their order. Raises NotFoundError."""
    with reading_run(context, run_id) as (_, run):
        return tiers_of(run)


def tiers_of(run: Run) -> list[TierMetricsAnswer]:
    """Return the figures of a loaded run's tiers."""
    return [_tier(tier) for tier in run.tiers]


def phases_of(run: Run) -> list[PhaseMetricsAnswer]:
    """Return the figures of a loaded run's phases."""
    return [_phase(phase) for phase in run.phases]


def _tier(tier: Tier) -> TierMetricsAnswer:
    phases: Sequence[Phase] = tier.phases
    states = Counter(phase.state for phase in phases)
    started = [phase.started_at for phase in phases if phase.started_at]
    ended = [phase.ended_at for phase in phases if phase.ended_at]
    return TierMetricsAnswer.of(
        tier,
        phase_count=len(phases),
        phase_states={state: states[state] for state in PhaseStatus},
        token_utilization=utilization(tier.tokens_used, tier.token_cap),
        ci_run_utilization=utilization(tier.ci_runs_count, tier.ci_run_cap),
        builder_attempts_used=sum(phase.builder_attempts_used for phase in phases),
        auditor_attempts_used=sum(phase.auditor_attempts_used for phase in phases),
        started_at=min(started, default=None),
        ended_at=max(ended, default=None) if tier.state.is_final else None,
    )


def _phase(phase: Phase) -> PhaseMetricsAnswer:
    share = utilization(phase.tokens_used, phase.incident_token_cap)
    return PhaseMetricsAnswer.of(phase, token_utilization=share)


def gauges(context: AppContext) -> list[tuple[Gauge, Mapping[tuple[str, ...], float]]]:
    """Read the database's gauges, for monitoring; empty while the database is unavailable."""
    wanted = GAUGES + (RETENTION_GAUGES if context.settings.retention is not None else ())
    try:
        with context.reading() as session:
            return [(gauge, gauge.read(session)) for gauge in wanted]
    except OUTAGES as error:
        logger.warning("gauges_unread", why=str(error))
        return []
