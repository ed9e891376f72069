"""The service's own CI: a worker runs a profile's command on a phase's commit. (rules §6)

A job runs at least once: a worker may be killed at any point, and another repeats the job. A
verdict is accepted once, under the run's lock, and only while the phase waits for that CI run.

Such a worker may be on another machine, with another clone. So it changes no run: a job of the
queue `upkeep` moves refs and writes files, on a machine that has these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import structlog

from .. import tracing
from ..ci import CommandOutcome, Job, StoppedError, environment_for
from ..domain.debt import mended_checks
from ..domain.errors import AutopackError
from ..domain.evidence import Evidence, is_refuted
from ..domain.evidence_rules import CaseState, Judged
from ..domain.issues import expected_in
from ..domain.judging import CiRunBegun, flaky_checks, wait_before_repeat
from ..domain.redaction import redacted
from ..domain.results import MAX_LOG_TAIL
from ..domain.ruleset import CiCommand, CiRules
from ..domain.secret_rules import redact, redact_bytes
from ..domain.terms import CiMode, CiProfile, EvidenceKind, Sandbox, Verdict
from ..gitrepo.checkout import checked_out
from ..gitrepo.workspace import WorkspaceError
from ..jobs.queue import TryAgainError, defer
from ..models import CiRun, Phase, Run
from ..store import ci_runs, issues, runs
from ..store.session import RowSession
from ..views.results import CiRunAnswer, CiRunsAnswer
from .change import RunChange
from .context import AppContext
from .evidence import Inquiry, documents, gather
from .judging import weigh_verdict
from .measuring import Bench, NotMeasurableError, Question, TimeLimit, measured
from .opening import changing
from .rebuilding import require_commit
from .runners import checks_of
from .settling import request_ci_run, settle
from .upkeep import UPKEEP_QUEUE

logger = structlog.get_logger(__name__)

BEGIN_TASK: Final = "begin_ci_run"
TAKE_TASK: Final = "record_ci_outcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a worker needs for a CI run."""

    ci_run_id: int
    run_id: str
    phase_id: str
    branch: str
    commit: str
    profile: CiProfile
    attempt: int
    rules: CiCommand
    ci: CiRules
    base_commit: str
    start_commit: str
    evidence: tuple[EvidenceKind, ...]
    expected_issues: tuple[str, ...]
    must_fail_before: bool


def run_ci(context: AppContext, ci_run_id: int) -> None:
    """Make a CI run and queue its outcome, if the phase still waits for it.

    Raises TryAgainError when the process must end: another one repeats the job.
    """
    order = _begin(context, ci_run_id)
    if order is None:
        return
    with _traced("ci", context, order.run_id, order.phase_id):
        # A worker that cannot get the commit leaves the job to another one, or to a later try.
        require_commit(context, order.run_id, order.commit)
        outcome = _make(context, order)
    if outcome is not None:
        _hand_over(context, ci_run_id, outcome)
    elif context.stopping.is_set():
        raise TryAgainError


@contextmanager
def _traced(name: str, context: AppContext, run_id: str, phase_id: str) -> Iterator[None]:
    """Make the block a span of the trace that asked for this CI run; free without traces."""
    if not tracing.is_on():
        yield
        return
    with context.reading() as session:
        parent = runs.last_trace(session, runs.get_run(session, run_id).id, phase_id)
    place = {"autopack.run_id": run_id, "autopack.phase_id": phase_id}
    with tracing.span(name, place, parent=parent):
        yield


def list_ci_runs(context: AppContext, run_id: str) -> CiRunsAnswer:
    """Return a run's CI runs, in order."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        found = ci_runs.list_ci_runs(session, run.id)
        commands = ci_commands(session, run)
    shown = [ci_run_answer(run_id, *each, commands) for each in found]
    return CiRunsAnswer(run_id=run_id, ci_runs=shown)


def ci_commands(session: RowSession, run: Run) -> dict[CiProfile, str]:
    """Return the commands by profile that the service runs for a run; none if CI is elsewhere."""
    ci = runs.get_strategy(session, run)["ci"]
    if ci["mode"] != CiMode.LOCAL:
        return {}
    profiles = ((profile, ci["profiles"].get(profile)) for profile in CiProfile)
    return {profile: rule["command"] for profile, rule in profiles if rule and rule.get("command")}


def ci_run_answer(
    run_id: str, run: CiRun, phase_id: str, commands: Mapping[CiProfile, str]
) -> CiRunAnswer:
    """Return a CI run as readers see it; `commands` are those of its run."""
    has_log = run.sandbox not in (None, Sandbox.EXTERNAL)
    log = f"/runs/{run_id}/ci/{run.id}/log" if has_log else None
    is_elsewhere = run.sandbox is Sandbox.EXTERNAL
    return CiRunAnswer.of(
        run,
        phase_id=phase_id,
        flaky=run.is_flaky,
        log=log,
        command=None if is_elsewhere else commands.get(run.profile),
    )


def read_log(context: AppContext, run_id: str, ci_run_id: int) -> bytes:
    """Return the log of a CI run. Raises NotFoundError."""
    with context.reading() as session:
        return ci_runs.get_log(session, runs.get_run_pk(session, run_id), ci_run_id)


def begin_ci_run(context: AppContext, ci_run_id: int) -> None:
    """Start the time limit of a phase's CI run."""
    found = _find_phase(context, ci_run_id)
    if found is None:
        return
    run_id, phase_id = found
    with changing(context, run_id) as change:
        if ci_runs.get_ci_run(change.session, ci_run_id).ended_at is None:
            change.decide(CiRunBegun(phase_id=phase_id, ci_run_id=ci_run_id))
            settle(change)


def _find_phase(context: AppContext, ci_run_id: int) -> tuple[str, str] | None:
    """Return the names of run and phase; None if the run was deleted by hand."""
    with context.reading() as session:
        return ci_runs.find_phase(session, ci_run_id)


def _begin(context: AppContext, ci_run_id: int) -> Order | None:
    found = _find_phase(context, ci_run_id)
    if found is None:
        return None
    run_id, phase_id = found
    with context.writing() as session:
        run = ci_runs.get_ci_run(session, ci_run_id)
        if run.ended_at is not None:
            return None
        whole = runs.get_run(session, run_id)
        phase = runs.get_phase(whole, phase_id)
        strategy = runs.get_strategy(session, whole)
        ci = CiRules.model_validate(strategy["ci"])
        order = Order(
            ci_run_id=ci_run_id,
            run_id=run_id,
            phase_id=phase_id,
            branch=whole.branch,
            commit=run.commit_sha,
            profile=run.profile,
            attempt=run.attempt,
            rules=ci.command_for(run.profile),
            ci=ci,
            base_commit=whole.base_commit,
            start_commit=phase.before_commit or phase.start_commit or whole.base_commit,
            evidence=tuple(map(EvidenceKind, phase.evidence_required)),
            expected_issues=expected_in(phase, runs.phases_of(whole).values()),
            must_fail_before=strategy["phases"][phase_id].get("must_fail_before", False),
        )
        run.started_at = max(context.now(), run.requested_at)
        _queue(session, BEGIN_TASK, ci_run_id)
        session.commit()
    return order


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of the command on the commit, the verdict that counts, and its evidence."""

    outcome: CommandOutcome
    judged: Judged
    evidence: tuple[Evidence, ...] = ()


def _make(context: AppContext, order: Order) -> Result | None:
    """Run the command on the commit, and measure the evidence.

    None when it was stopped because no phase waits any more.
    """
    log = logger.bind(run_id=order.run_id, phase_id=order.phase_id, ci_run_id=order.ci_run_id)
    log.info("ci_started", commit=order.commit, profile=order.profile, attempt=order.attempt)
    evidence: tuple[Evidence, ...] = ()
    try:
        with checked_out(
            context.settings, context.repository, order.branch, order.commit
        ) as checkout:
            tree = checkout.workspace.base_tree
            outcome = checks_of(context.settings).run(
                Job(
                    tree=checkout.tree,
                    objects=checkout.objects,
                    command=order.rules.command or "",
                    timeout_seconds=order.rules.timeout_seconds,
                    environment=environment_for(
                        profile=order.profile,
                        run_id=order.run_id,
                        phase_id=order.phase_id,
                        commit=order.commit,
                        attempt=order.attempt,
                    ),
                    junit=order.rules.junit,
                ),
                lambda: not _is_wanted(context, order.ci_run_id),
            )
        judged, evidence = _weigh(context, order, tree, outcome)
    except StoppedError:
        log.info("ci_stopped")
        return None
    except NotMeasurableError as error:
        outcome = replace(outcome, verdict=Verdict.DID_NOT_RUN)
        judged = Judged(
            verdict=Verdict.DID_NOT_RUN, reason=f"its evidence could not be measured: {error}"
        )
    except (AutopackError, WorkspaceError, OSError) as error:
        outcome = CommandOutcome.without_checkout(error, checks_of(context.settings).sandbox)
        judged = Judged(verdict=outcome.verdict, reason=outcome.reason)
    log.info("ci_ended", verdict=judged.verdict, reason=judged.reason)
    return Result(outcome=outcome, judged=judged, evidence=evidence)


def _weigh(
    context: AppContext, order: Order, tree: str, outcome: CommandOutcome
) -> tuple[Judged, tuple[Evidence, ...]]:
    """Return the verdict after its evidence, and that. Raises NotMeasurableError, StoppedError."""
    head = measured(tree, outcome)
    question = Question(
        run_id=order.run_id,
        phase_id=order.phase_id,
        branch=order.branch,
        profile=order.profile,
        rules=order.rules,
    )

    def should_stop() -> bool:
        return not _is_wanted(context, order.ci_run_id)

    if order.evidence and head.verdict is Verdict.GREEN and order.attempt == 1:
        Bench(context, question, should_stop).keep(head)  # the next run may start from this tree
    inquiry = Inquiry(
        context=context,
        question=question,
        should_stop=should_stop,
        ci=order.ci,
        commit=order.commit,
        base_commit=order.base_commit,
        start_commit=order.start_commit,
        head=head,
        seconds=outcome.seconds,
        limit=TimeLimit.of(order.rules.all_evidence_seconds(), "the time for all evidence"),
        failing_checks=outcome.failing_checks,
        expected_issues=order.expected_issues,
        must_fail_before=order.must_fail_before,
    )
    return gather(inquiry, order.evidence)


def _hand_over(context: AppContext, ci_run_id: int, result: Result) -> None:
    """Store the log, and queue the verdict for a worker with branch and files."""
    outcome, judged = result.outcome, result.judged
    log = redact_bytes(outcome.log)
    tail = log[-4 * MAX_LOG_TAIL :].decode(errors="replace")[-MAX_LOG_TAIL:]
    with context.writing() as session:
        ci_runs.add_log(session, ci_run_id, log)
        _queue(
            session,
            TAKE_TASK,
            ci_run_id,
            verdict=judged.verdict,
            reason=redact(judged.reason),
            sandbox=outcome.sandbox,
            tests=outcome.tests.model_dump(mode="json") if outcome.tests else None,
            failing_checks=redacted(judged.failing_checks),
            evidence=documents(result.evidence),
            passed_checks=_named_passes(session, ci_run_id, outcome),
            log_tail=tail.replace("\0", "\ufffd") or None,
        )
        session.commit()


def _named_passes(session: RowSession, ci_run_id: int, outcome: CommandOutcome) -> list[str]:
    """Return the checks that passed of those that were red where the phase's issue was seen.

    A run may have ten thousand tests: only what can resolve an issue goes into the job's arguments.
    """
    if outcome.verdict is not Verdict.GREEN or not outcome.cases:
        return []
    red = issues.list_red_checks_for(session, ci_run_id)
    passed = (name for name, state in outcome.cases.items() if state is CaseState.PASSED)
    return [*mended_checks(red, {redact(name) for name in passed})] if red else []


def _queue(session: RowSession, task: str, ci_run_id: int, **arguments: object) -> None:
    defer(
        session,
        task,
        queue=UPKEEP_QUEUE,
        arguments={"ci_run_id": ci_run_id, **arguments},
        lock=f"ci:{ci_run_id}",  # recorded as started before its verdict
    )


def record_ci_outcome(
    context: AppContext,
    ci_run_id: int,
    *,
    verdict: str,
    reason: str,
    sandbox: str,
    tests: dict[str, Any] | None,
    failing_checks: list[str],
    log_tail: str | None,
    evidence: Sequence[Mapping[str, Any]] = (),  # an earlier version passed none
    passed_checks: Sequence[str] = (),  # likewise
) -> None:
    """Accept the verdict of a CI run, unless there is another one or the phase moved on."""
    found = _find_phase(context, ci_run_id)
    if found is None:
        return
    run_id, phase_id = found
    with _traced("verdict", context, run_id, phase_id), changing(context, run_id) as change:
        run = ci_runs.get_ci_run(change.session, ci_run_id)
        if run.ended_at is not None:
            return
        given = run.verdict = Verdict(verdict)
        run.reason = reason
        run.sandbox = Sandbox(sandbox.partition(":")[0])  # an earlier version passed the reason too
        run.failing_checks, run.tests, run.log_tail = failing_checks, tests, log_tail
        run.evidence = list(evidence)
        run.ended_at = max(change.now, run.started_at or run.requested_at)
        _judge(change, change.phase(phase_id), run, given, passed_checks)
        settle(change)


def _judge(
    change: RunChange, phase: Phase, run: CiRun, given: Verdict, passed: Sequence[str]
) -> None:
    """Decide on the verdict of a CI run, and request the next one where it must be repeated."""
    earlier = ci_runs.list_earlier(change.session, run)
    flaky = flaky_checks(given, earlier)
    run.is_flaky = bool(flaky)
    # What evidence refutes was repeated when it was measured.
    refuted = is_refuted(tuple(map(Evidence.read, run.evidence)))
    retries = 0 if refuted else _rules(change.session, change.run, run).retries
    wait = wait_before_repeat(given, ci_runs.verdicts(earlier), retries)
    is_repeated = wait is not None
    verdict = weigh_verdict(
        change, phase, run, flaky_checks=flaky, is_repeated=is_repeated, passed=passed
    )
    change.decide(verdict)
    if is_repeated:
        request_ci_run(change, phase.phase_id, at=change.now + wait if wait else None)


def _is_wanted(context: AppContext, ci_run_id: int) -> bool:
    if context.stopping.is_set():
        return False
    with context.reading() as session:
        return ci_runs.is_awaited(session, ci_run_id)


def _rules(session: RowSession, whole: Run, run: CiRun) -> CiCommand:
    strategy = runs.get_strategy(session, whole)
    return CiCommand.model_validate(strategy["ci"]["profiles"][run.profile])
