"""Gauges for monitoring: one cheap statement each, for any number of runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Executable, case, func, select, text
from sqlalchemy.orm import Session

from ..domain.run import FailureCode
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Role
from ..models import Lease, Phase, Push, Run, run_counts
from . import nodes
from .metrics import total

WAITING: Final = [status for status in PhaseStatus if not status.is_final]


class PushState(StrEnum):
    WAITING = "waiting"
    FAILING = "failing"


@dataclass(frozen=True, slots=True)
class Gauge:
    """A figure by labels; `known` are the first label's values that are reported even when 0."""

    name: str
    text: str
    query: Executable
    labels: tuple[str, ...] = ()
    known: Iterable[str] = ()

    def read(self, session: Session) -> Mapping[tuple[str, ...], float]:
        """Return the figure by the values of its labels."""
        found: dict[tuple[str, ...], float] = {(value,): 0.0 for value in self.known}
        rows: Any = session.execute(self.query)
        return found | {tuple(labels): float(value) for *labels, value in rows}


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
)
