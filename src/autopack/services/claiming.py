"""Agents take work, say that they are at it, and are told when to stop. (06)"""

from __future__ import annotations

import secrets
from datetime import timedelta
from typing import Any

from ..domain import claiming
from ..domain.claiming import Directive
from ..domain.course import Course
from ..domain.values import Role
from ..models import Lease, Phase
from ..store import leases, runs
from ..store.runs import RunBusyError
from .change import RunChange, changing
from .house import House
from .work_items import work_item

CANDIDATES = 50


def claim(
    house: House, run_id: str, role: Role, agent: str, lease_seconds: int
) -> dict[str, Any] | None:
    """Give an agent the run's next work item, or None when there is none just now.

    Raises RunOverError when there never will be.
    """
    with changing(house, run_id) as change:
        change.course.require_live()
        return _claim(change, role, agent, lease_seconds)


def claim_any(house: House, role: Role, agent: str, lease_seconds: int) -> dict[str, Any] | None:
    """Give an agent the next work item of the oldest run that has one; busy runs are passed by."""
    with house.reading() as session:
        names = runs.list_with_work(session, role, CANDIDATES)
    for run_id in names:
        try:
            with changing(house, run_id, is_waiting=False) as change:
                item = _claim(change, role, agent, lease_seconds)
        except RunBusyError:
            continue
        if item is not None:
            return item
    return None


def peek(house: House, run_id: str, role: Role) -> dict[str, Any] | None:
    """Return what a claim would give now, without a lease; nothing changes."""
    with house.reading() as session:
        run = runs.get_run(session, run_id)
        course = Course(runs.read_state(run), house.now())
        course.require_live()
        found = claiming.find_claimable(course, role)
        if found is None:
            return None
        return work_item(house, session, run, found.phase, role)


def heartbeat(
    house: House, run_id: str, phase_id: str, token: str, tokens_used: int
) -> dict[str, Any]:
    """Extend a lease, unless its agent has to stop; say so either way."""
    with house.reading() as session:
        run = runs.lock_run(session, run_id)
        phase = runs.get_phase(run, phase_id)
        lease = leases.find_lease(session, phase.id, token)
        now = house.now()
        if lease is not None and lease.id == phase.lease_id and now < lease.expires_at:
            state = runs.read_state(run)
            mine = next(each for each in state.phases if each.phase_id == phase_id)
            directive, reason = claiming.beat(state, mine, tokens_used)
            expires_at = min(now + timedelta(seconds=lease.seconds), run.deadline_at)
            leases.extend(session, lease, phase, expires_at, tokens_used)
            session.commit()
            return {"directive": directive, "reason": reason, "expires_at": expires_at}
    with changing(house, run_id) as change:  # lets the lease lapse, if it is that
        reason = (
            f"the run is {change.run.state}"
            if change.course.is_over
            else "the lease was lost: it lapsed, was used, or the phase went on"
        )
    return {"directive": Directive.STOP, "reason": reason, "expires_at": None}


def check_lease(change: RunChange, phase: Phase, role: Role, token: str | None) -> Lease | None:
    """Return the lease a result comes with. Raises LeaseLostError, LeaseHeldError."""
    lease = leases.find_lease(change.session, phase.id, token) if token else None
    claiming.require_lease(
        change.course.phase(phase.phase_id),
        role,
        lease.id if lease is not None else None,
        has_token=token is not None,
    )
    return lease


def _claim(change: RunChange, role: Role, agent: str, lease_seconds: int) -> dict[str, Any] | None:
    found = claiming.find_claimable(change.course, role)
    if found is None:
        return None
    token = secrets.token_urlsafe(32)
    phase = change.phase(found.phase.phase_id)
    lease = leases.add_lease(
        change.session,
        Lease(
            run_pk=change.run.id,
            phase_pk=phase.id,
            role=role,
            agent=agent,
            fence=found.phase.fence + 1,
            token_sha256=leases.hash_token(token),
            seconds=lease_seconds,
            granted_at=change.now,
            expires_at=change.now + timedelta(seconds=lease_seconds),
        ),
    )
    state = claiming.take_claim(change.course, found, role, agent, lease.id, lease_seconds)
    change.conclude()
    item = work_item(change.house, change.session, change.run, state, role)
    item["lease"] = {
        "token": token,
        "fence": lease.fence,
        "expires_at": lease.expires_at,
        "tokens_reserved": found.tokens,
    }
    return item
