"""Gauges for monitoring: one cheap statement each, for any number of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Executable, Select, case, func, literal, select, text
from sqlalchemy.orm import Mapped, Session

from ..domain.run import FailureCode
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Role
from ..models import (
    Delivery,
    Lease,
    Phase,
    Push,
    RetentionProgress,
    Run,
    Webhook,
    run_counts,
)
from . import nodes
from .metrics import total

WAITING: Final = [status for status in PhaseStatus if not status.is_final]


class PushState(StrEnum):
    WAITING = "waiting"
    FAILING = "failing"


class TryResult(StrEnum):
    DELIVERED = "delivered"
    FAILED = "failed"


class DeliveryState(StrEnum):
    WAITING = "waiting"
    GIVEN_UP = "given_up"


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure by labels; `known` are the first label's values that are reported even when 0.

    `is_total`: it only grows, which Prometheus calls a counter.
    """

    name: str
    text: str
    query: Executable
    labels: tuple[str, ...] = ()
    known: Iterable[str] = ()
    is_total: bool = False

    def read(self, session: Session) -> Mapping[tuple[str, ...], float]:
        """Return the figure by the values of its labels."""
        found: dict[tuple[str, ...], float] = {(value,): 0.0 for value in self.known}
        rows: Any = session.execute(self.query)
        return found | {tuple(labels): float(value) for *labels, value in rows}


def _tries(count: Mapped[int], result: TryResult) -> Select[str, str, int]:
    return select(Webhook.name, literal(str(result)), count)


_DELIVERY_STATE: Final = case(
    (Delivery.next_try_at.is_(None), DeliveryState.GIVEN_UP), else_=DeliveryState.WAITING
).label("state")
_NODES: Final = nodes.STATES.bindparams(counted=nodes.EVENTS_COUNTED).subquery("node")
_LAGGING = Run.mirrored_revision < Run.revision
GAUGES: Final = (
    Gauge(
        "autopack_runs",
        "Runs by state.",
        select(run_counts.c.state, total(run_counts.c.runs)).group_by(run_counts.c.state),
        ("state",),
        RunStatus,
    ),
    Gauge(
        "autopack_failed_runs",
        "Runs that failed, by failure code; an operator ended those that are cancelled.",
        select(run_counts.c.failure_code, total(run_counts.c.runs))
        .where(run_counts.c.failure_code.is_not(None))
        .group_by(run_counts.c.failure_code),
        ("failure_code",),
        FailureCode,
    ),
    Gauge(
        "autopack_live_phases",
        "Phases of live runs that are not final, by state.",
        select(Phase.state, func.count())
        .join(Run, Run.id == Phase.run_pk)
        .where(Run.ended_at.is_(None), Phase.state.in_(WAITING))
        .group_by(Phase.state),
        ("state",),
        WAITING,
    ),
    Gauge(
        "autopack_leases",
        "Phases that an agent holds, by role.",
        select(Lease.role, func.count()).where(Lease.ended_at.is_(None)).group_by(Lease.role),
        ("role",),
        Role,
    ),
    Gauge(
        "autopack_phases_without_capacity",
        "Phases of live runs whose last agent was unavailable (rate limit, quota), by state.",
        select(Phase.state, func.count())
        .join(Run, Run.id == Phase.run_pk)
        .where(Run.ended_at.is_(None), Phase.unavailable_reason.is_not(None))
        .group_by(Phase.state),
        ("state",),
    ),
    Gauge(
        "autopack_live_tokens_used",
        "LLM tokens that live runs have used so far.",
        select(func.coalesce(func.sum(Run.tokens_used), 0)).where(Run.ended_at.is_(None)),
    ),
    Gauge(
        "autopack_live_tokens_measured",
        "Those of the tokens used so far that a gateway counted; the others are agents' figures.",
        select(func.coalesce(func.sum(Run.tokens_measured), 0)).where(Run.ended_at.is_(None)),
    ),
    Gauge(
        "autopack_live_cost_usd",
        "What live runs have cost so far, in US dollars, as far as it is known.",
        select(func.coalesce(func.sum(Run.cost_usd), 0)).where(Run.ended_at.is_(None)),
    ),
    Gauge(
        "autopack_jobs",
        "Background jobs that wait (todo) or run (doing), by queue.",
        text(
            "SELECT queue_name, status::text, count(*) FROM procrastinate_jobs"
            " WHERE status IN ('todo', 'doing') GROUP BY queue_name, status"
        ),
        ("queue", "status"),
    ),
    Gauge(
        "autopack_pushes",
        "Runs whose branch is to be pushed, by whether the last try failed.",
        select(
            case((Push.last_error.is_(None), PushState.WAITING), else_=PushState.FAILING).label(
                "state"
            ),
            func.count(),
        )
        .where(Push.next_try_at.is_not(None))
        .group_by(text("state")),
        ("state",),
        PushState,
    ),
    Gauge(
        "autopack_lagging_runs",
        "Runs whose branch or files do not show yet what is recorded.",
        select(func.count()).where(_LAGGING),
    ),
    Gauge(
        "autopack_lag_seconds",
        "Since when the longest of them lags.",
        select(
            func.coalesce(func.extract("epoch", func.now() - func.min(Run.updated_at)), 0)
        ).where(_LAGGING),
    ),
    Gauge(
        "autopack_node_silent_seconds",
        "Seconds since the last sign of life of each node.",
        select(_NODES.c.id, _NODES.c.silent_seconds),
        ("node",),
    ),
    Gauge(
        "autopack_node_lag_seconds",
        "Age of the oldest change of another node that a node does not show yet.",
        select(_NODES.c.id, _NODES.c.lag_seconds),
        ("node",),
    ),
    Gauge(
        "autopack_node_lag_revisions",
        "Changes of other nodes that a node does not show yet.",
        select(_NODES.c.id, _NODES.c.lag_revisions),
        ("node",),
    ),
    Gauge(
        "autopack_node_lacking_runs",
        "Runs that a node cannot bring up to date, such as for a commit that it does not have.",
        select(_NODES.c.id, _NODES.c.lacking_runs),
        ("node",),
    ),
    Gauge(
        "autopack_webhook_tries_total",
        "Tries of each webhook to deliver a message, by result.",
        _tries(Webhook.delivered_count, TryResult.DELIVERED).union_all(
            _tries(Webhook.failed_count, TryResult.FAILED)
        ),
        ("webhook", "result"),
        is_total=True,
    ),
    Gauge(
        "autopack_webhook_deliveries",
        "Messages of each webhook that wait, or that were given up and are still in its list.",
        select(Webhook.name, _DELIVERY_STATE, func.count())
        .join(Delivery, Delivery.webhook_pk == Webhook.id)
        .where(Delivery.delivered_at.is_(None))
        .group_by(Webhook.name, text("state")),
        ("webhook", "state"),
    ),
    Gauge(
        "autopack_webhook_wait_seconds",
        "Since when the oldest message of each webhook waits.",
        select(
            Webhook.name,
            func.coalesce(func.extract("epoch", func.now() - func.min(Delivery.wanted_at)), 0),
        )
        .outerjoin(
            Delivery, (Delivery.webhook_pk == Webhook.id) & Delivery.next_try_at.is_not(None)
        )
        .group_by(Webhook.name),
        ("webhook",),
    ),
    Gauge(
        "autopack_webhook_off",
        "1 for a webhook that is off, because its receiver failed for a day or is gone, else 0.",
        select(Webhook.name, case((Webhook.off_at.is_(None), 0), else_=1)),
        ("webhook",),
    ),
)
#: With AUTOPACK_RETENTION alone: without it nothing is removed, and nothing is late.
RETENTION_GAUGES: Final = (
    Gauge(
        "autopack_retention_removed_runs_total",
        "Runs whose details were removed.",
        select(RetentionProgress.removed),
        is_total=True,
    ),
    Gauge(
        "autopack_retention_due_runs",
        "Runs whose details are to be removed, as the last pass found, less those that it removed.",
        select(RetentionProgress.due),
    ),
    Gauge(
        "autopack_retention_failed_runs",
        "Runs whose details the last pass could not remove.",
        select(RetentionProgress.failed),
    ),
    Gauge(
        "autopack_retention_idle_seconds",
        "Seconds since the removal of details was last at work; it is at least once an hour.",
        select(func.extract("epoch", func.now() - RetentionProgress.beaten_at)),
    ),
)
