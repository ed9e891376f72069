"""The progress of runs: states of phases, the phase under way, and the agents at work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from ..domain.states import PhaseStatus
from ..views.runs import LeaseState
from .session import RowSession


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasesOfRun:
    """`tiers` are JSON objects in the form of the view `TierMarks`."""

    tiers: list[dict[str, Any]]
    total: int
    complete: int
    builder_attempts_used: int
    commits: int

    @property
    def failed(self) -> list[str]:
        return [
            phase["phase_id"]
            for tier in self.tiers
            for phase in tier["phases"]
            if phase["state"] == PhaseStatus.FAILED
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseUnderWay:
    """The phase that a run is about (`domain/order.py`, `first_at_hand`), and who has its lease."""

    phase_id: str
    tier_id: str
    name: str
    state: PhaseStatus
    deadline_at: datetime | None
    unavailable_reason: str | None
    retry_at: datetime | None
    approvals_needed: int
    approved_by: list[str]
    lease: LeaseState | None


# Phases are not read as rows: of a page of runs they are thousands.
_PHASES: Final = """SELECT t.run_pk,
        json_agg(json_build_object('tier_id', t.tier_id, 'name', t.name, 'state', t.state,
            'cleanliness', t.cleanliness, 'phases', p.marks) ORDER BY t.tier_index),
        sum(p.total)::int, sum(p.complete)::int, sum(p.attempts)::int,
        (SELECT coalesce(max(c.position), 0) FROM commits c WHERE c.run_pk = t.run_pk)
    FROM tiers t CROSS JOIN LATERAL (
        SELECT coalesce(json_agg(json_build_object('phase_id', phase_id, 'state', state)
                ORDER BY phase_index), '[]') AS marks,
            count(*) AS total, count(*) FILTER (WHERE state = 'COMPLETE') AS complete,
            coalesce(sum(builder_attempts_used), 0) AS attempts
        FROM phases WHERE tier_pk = t.id
    ) p
    WHERE t.run_pk = ANY(%s) GROUP BY t.run_pk"""


def list_phases(session: RowSession, run_pks: Sequence[int]) -> dict[int, PhasesOfRun]:
    """Return the states of all phases of some runs, and their counts."""
    return {
        run_pk: PhasesOfRun(
            tiers=tiers,
            total=total,
            complete=complete,
            builder_attempts_used=attempts,
            commits=commits,
        )
        for run_pk, tiers, total, complete, attempts, commits in session.fetch(
            _PHASES, (list(run_pks),)
        )
    }


_LEASE: Final = (
    "p.phase_id, p.tier_id, l.role, l.agent, l.actor, l.account, l.fence, l.heartbeat_at,"
    " l.expires_at, p.tokens_reserved, p.tokens_reported, p.cost_reserved_usd, p.cost_reported_usd"
)
_LEASE_NAMES: Final = tuple(LeaseState.model_fields)
_UNDER_WAY: Final = f"""SELECT DISTINCT ON (p.run_pk) p.run_pk, p.name, p.state,
        p.deadline_at, p.unavailable_reason, p.retry_at,
        p.approvals_needed, p.approved_by, {_LEASE}
    FROM phases p LEFT JOIN leases l ON l.id = p.lease_id
    WHERE p.run_pk = ANY(%s) AND p.state NOT IN ('COMPLETE', 'FAILED', 'SKIPPED')
    ORDER BY p.run_pk, p.state = 'QUEUED', p.tier_index, p.phase_index"""  # noqa: S608 - one literal
_OF_RUN: Final = f"""SELECT {_LEASE} FROM phases p JOIN leases l ON l.id = p.lease_id
    WHERE p.run_pk = %s ORDER BY p.tier_index, p.phase_index"""  # noqa: S608 - one literal


def list_under_way(session: RowSession, run_pks: Sequence[int]) -> dict[int, PhaseUnderWay]:
    """Return the first phase of each run that has not ended, with its lease."""
    found = {}
    for (
        run_pk,
        name,
        state,
        deadline_at,
        reason,
        retry_at,
        needed,
        approved_by,
        *lease,
    ) in session.fetch(_UNDER_WAY, (list(run_pks),)):
        phase_id, tier_id, role, *_ = lease
        found[run_pk] = PhaseUnderWay(
            phase_id=phase_id,
            tier_id=tier_id,
            name=name,
            state=PhaseStatus(state),
            deadline_at=deadline_at,
            unavailable_reason=reason,
            retry_at=retry_at,
            approvals_needed=needed,
            approved_by=approved_by,
            lease=None if role is None else _lease(lease),
        )
    return found


def list_leases(session: RowSession, run_pk: int) -> list[LeaseState]:
    """Return the agents that are at work on a run."""
    return [_lease(row) for row in session.fetch(_OF_RUN, (run_pk,))]


def _lease(values: Sequence[Any]) -> LeaseState:
    return LeaseState.model_validate(dict(zip(_LEASE_NAMES, values, strict=True)))
