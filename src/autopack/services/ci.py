"""Our own CI: a worker runs a profile's command on the commit that a phase waits with. (06)

At least once: a worker may be killed at any point, and another does it again. A verdict is taken
once, under the run's lock, and only while the phase waits for that very run of CI.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import structlog

from ..ci import CheckRunner, Job, Outcome, StoppedError
from ..config import Settings
from ..domain import judging
from ..domain.errors import AutopackError
from ..domain.results import MAX_LOG_TAIL
from ..domain.ruleset import CiCommand
from ..domain.run import Verdict
from ..domain.values import CiProfile
from ..gitrepo.checkout import checked_out
from ..gitrepo.workspace import WorkspaceError
from ..jobs.queue import TryAgainError
from ..models import CiRun
from ..store import ci_runs, runs
from .change import RunChange, changing
from .house import House
from .judging import give_verdict

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker has to know to make a run of CI."""

    ci_run_id: int
    run_id: str
    phase_id: str
    branch: str
    commit: str
    profile: CiProfile
    attempt: int
    rules: CiCommand


def run_ci(house: House, ci_run_id: int) -> None:
    """Make a run of CI and take its verdict, if anybody still waits for it.

    Raises TryAgainError when the process is to end: another one makes it.
    """
    order = _begin(house, ci_run_id)
    if order is None:
        return
    outcome = _make(house, order)
    if outcome is not None:
        _take(house, order, outcome)
    elif house.stopping.is_set():
        raise TryAgainError


@lru_cache(maxsize=8)
def checks_of(settings: Settings) -> CheckRunner:
    """Return what runs commands on this machine; found out once, when it is first asked for."""
    return CheckRunner(settings)


def list_ci_runs(house: House, run_id: str) -> list[tuple[CiRun, str]]:
    """Return the runs of CI of a run, in order, each with the name of its phase."""
    with house.reading() as session:
        return ci_runs.list_ci_runs(session, runs.get_run_pk(session, run_id))


def read_log(house: House, run_id: str, ci_run_id: int) -> bytes:
    """Return what a run of CI printed. Raises NotFoundError."""
    with house.reading() as session:
        return ci_runs.get_log(session, runs.get_run_pk(session, run_id), ci_run_id)


def _begin(house: House, ci_run_id: int) -> Order | None:
    with house.reading() as session:
        place = ci_runs.find_place(session, ci_run_id)
    if place is None:  # its run was deleted by hand
        return None
    run_id, phase_id = place
    with changing(house, run_id) as change:
        run = ci_runs.get_ci_run(change.session, ci_run_id)
        if run.ended_at is not None:
            return None
        run.started_at = change.now
        judging.begin_run(change.course, phase_id, ci_run_id)
        return Order(
            ci_run_id=ci_run_id,
            run_id=run_id,
            phase_id=phase_id,
            branch=change.run.branch,
            commit=run.commit_sha,
            profile=run.profile,
            attempt=run.attempt,
            rules=_rules(change, run),
        )


def _make(house: House, order: Order) -> Outcome | None:
    """Run the command on the commit; None when it was stopped because nobody waits any more."""
    log = logger.bind(run_id=order.run_id, phase_id=order.phase_id, ci_run_id=order.ci_run_id)
    log.info("ci_started", commit=order.commit, profile=order.profile, attempt=order.attempt)
    try:
        with checked_out(house.settings, house.repository, order.branch, order.commit) as checkout:
            outcome = checks_of(house.settings).run(
                Job(
                    tree=checkout.tree,
                    objects=checkout.objects,
                    command=order.rules.command or "",
                    timeout_seconds=order.rules.timeout_seconds,
                    environment=_environment(order),
                    junit=order.rules.junit,
                ),
                lambda: not _is_wanted(house, order.ci_run_id),
            )
    except StoppedError:
        log.info("ci_stopped")
        return None
    except (AutopackError, WorkspaceError, OSError) as error:
        why = error.detail if isinstance(error, AutopackError) else str(error)
        outcome = Outcome(
            verdict=Verdict.DID_NOT_RUN,
            reason=f"the commit could not be checked out: {why}",
            sandbox="none",
        )
    log.info("ci_ended", verdict=outcome.verdict, reason=outcome.reason)
    return outcome


def _take(house: House, order: Order, outcome: Outcome) -> None:
    with changing(house, order.run_id) as change:
        run = ci_runs.get_ci_run(change.session, order.ci_run_id)
        if run.ended_at is not None:  # another worker was quicker, or the phase went on
            return
        earlier = ci_runs.list_earlier(change.session, run)
        red_before = tuple(
            dict.fromkeys(
                check
                for each in earlier
                if each.verdict is Verdict.RED
                for check in each.failing_checks or [f"profile_{each.profile}"]
            )
        )
        is_flaky = outcome.verdict is Verdict.GREEN and bool(red_before)
        run.verdict, run.reason, run.is_flaky = outcome.verdict, outcome.reason, is_flaky
        run.sandbox, run.ended_at = outcome.sandbox, change.now
        run.failing_checks = list(outcome.failing_checks)
        run.tests = outcome.tests.model_dump(mode="json") if outcome.tests else None
        run.log_tail = outcome.log[-4 * MAX_LOG_TAIL :].decode(errors="replace")[-MAX_LOG_TAIL:]
        run.log_tail = run.log_tail.replace("\0", "\ufffd") or None
        ci_runs.add_log(change.session, run.id, outcome.log)
        wait = judging.retry_wait(
            outcome.verdict, ci_runs.verdicts(earlier), _rules(change, run).retries
        )
        give_verdict(
            change,
            change.phase(order.phase_id),
            run,
            flaky_checks=red_before if is_flaky else (),
            is_repeated=wait is not None,
        )
        if wait is not None and not change.course.is_over:
            change.request_ci_run(order.phase_id, at=change.now + wait if wait else None)


def _is_wanted(house: House, ci_run_id: int) -> bool:
    if house.stopping.is_set():
        return False
    with house.reading() as session:
        return ci_runs.is_awaited(session, ci_run_id)


def _rules(change: RunChange, run: CiRun) -> CiCommand:
    strategy = runs.get_strategy(change.session, change.run)
    return CiCommand.model_validate(strategy["ci"]["profiles"][run.profile])


def _environment(order: Order) -> dict[str, str]:
    return {
        "CI": "true",
        "CI_PROFILE": order.profile,
        "AUTOPACK_RUN_ID": order.run_id,
        "AUTOPACK_PHASE_ID": order.phase_id,
        "AUTOPACK_COMMIT": order.commit,
        "AUTOPACK_CI_ATTEMPT": str(order.attempt),
    }
