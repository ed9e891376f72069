"""Agents take work, say that they are at it, and are told when to stop. (06)"""

from __future__ import annotations

import secrets
from typing import Any

import structlog

from ..domain import claiming
from ..domain.claiming import Directive
from ..domain.course import Course, RunOverError
from ..domain.errors import AutopackError
from ..domain.steering import pass_time
from ..domain.values import Role
from ..models import Lease, Phase
from ..store import leases, runs
from ..store.runs import RunBusyError
from .change import ProjectionLaggingError, RunChange, changing
from .house import House
from .work_items import work_item

logger = structlog.get_logger(__name__)

CANDIDATES = 50


def claim(
    house: House, run_id: str, role: Role, agent: str, lease_seconds: int
) -> dict[str, Any] | None:
    """Give an agent the run's next work item, or None when there is none just now.

    Raises RunOverError when there never will be, or when asking has shown that nothing is left.
    """
    item, change = _claim(house, run_id, role, agent, lease_seconds, is_waiting=True)
    if item is None:
        change.course.require_live()
    return item


def claim_any(house: House, role: Role, agent: str, lease_seconds: int) -> dict[str, Any] | None:
    """Give an agent the next work item of the oldest run that has one.

    Busy runs are passed by, and so are those that something is wrong with: it is told to whoever
    asks for that very run.
    """
    with house.reading() as session:
        names = runs.list_with_work(session, role, CANDIDATES)
    for run_id in names:
        try:
            item, _ = _claim(house, run_id, role, agent, lease_seconds, is_waiting=False)
        except (RunBusyError, RunOverError):
            continue
        except AutopackError as error:
            logger.warning("run_passed_by", run_id=run_id, why=error.detail)
            continue
        if item is not None:
            return item
    return None


def peek(house: House, run_id: str, role: Role) -> dict[str, Any] | None:
    """Return what a claim would give now, without a lease; nothing changes.

    None too while something is overdue, which is settled by the next request or in a moment.
    """
    with house.reading() as session:
        run = runs.get_run(session, run_id)
        course = Course(runs.read_state(run), house.now())
        pass_time(course)
        course.require_live()
        found = claiming.find_claimable(course, role)
        if found is None or course.events:
            course.require_live()
            return None
        return work_item(house, session, run, course.run, found.phase, role)


def heartbeat(
    house: House, run_id: str, phase_id: str, token: str, tokens_used: int
) -> dict[str, Any]:
    """Extend a lease, unless its agent has to stop; say so either way.

    One that has to stop for its budget's sake keeps the time that it has, to hand in its result.
    """
    with house.writing() as session:
        run = runs.lock_run(session, run_id)
        phase = runs.get_phase(run, phase_id)
        lease = leases.find_lease(session, phase.id, token)
        now = house.now()
        if lease is not None and lease.id == phase.lease_id and now < lease.expires_at:
            course = Course(runs.read_state(run), now)
            directive, reason = claiming.beat(course.run, course.phase(phase_id), tokens_used)
            expires_at = lease.expires_at
            if directive is Directive.CONTINUE:
                expires_at = claiming.lease_end(course, lease.seconds)
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
    """Return the lease a result comes with. Raises RunOverError, LeaseLostError, LeaseHeldError."""
    change.course.require_live()  # which ended all leases, and is the better reason
    lease = leases.find_lease(change.session, phase.id, token) if token else None
    claiming.require_lease(
        change.course.phase(phase.phase_id),
        role,
        lease.id if lease is not None else None,
        has_token=token is not None,
    )
    return lease


def _claim(
    house: House, run_id: str, role: Role, agent: str, lease_seconds: int, *, is_waiting: bool
) -> tuple[dict[str, Any] | None, RunChange]:
    """Give an agent what a run has for it, and return the change that did so.

    A lease that is recorded is handed over even where branch or files lag behind: nobody could ask
    for it again.
    """
    item: dict[str, Any] | None = None
    try:
        with changing(house, run_id, is_waiting=is_waiting) as change:
            change.course.require_live()
            item = _take(change, role, agent, lease_seconds)
    except ProjectionLaggingError:
        if item is None:
            raise
    return item, change


def _take(change: RunChange, role: Role, agent: str, lease_seconds: int) -> dict[str, Any] | None:
    course = change.course
    found = claiming.find_claimable(course, role)
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
            expires_at=claiming.lease_end(course, lease_seconds),
        ),
    )
    state = claiming.take_claim(course, found, role, agent, lease.id, lease.expires_at)
    change.conclude()
    item = work_item(change.house, change.session, change.run, course.run, state, role)
    item["lease"] = {
        "token": token,
        "fence": lease.fence,
        "expires_at": lease.expires_at,
        "tokens_reserved": found.tokens,
    }
    return item
