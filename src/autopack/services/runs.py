"""Starting and reading runs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ..domain.continuing import (
    Continuation,
    NotContinuableError,
    continued_plan,
    require_continuable,
)
from ..domain.errors import ConflictError, UnavailableError
from ..domain.events import GENESIS_HASH, RunStarted, canonical_json
from ..domain.naming import branch_name, branch_ref, snapshot_ref
from ..domain.next_step import next_step
from ..domain.operating import Cancel
from ..domain.order import PhasesInRun, first_at_hand, waits_of
from ..domain.plan import DebtPhase, Plan, PlanPhase
from ..domain.run import RunState
from ..domain.run_filter import RunFilter
from ..domain.run_terms import terms_sha256
from ..domain.secret_rules import redact
from ..domain.starting import starting_state
from ..domain.states import PhaseStatus
from ..domain.strategy import Strategy
from ..domain.terms import CiMode
from ..gitrepo import Base, GainedCommits, RefUpdate
from ..models import EventRow, Phase, Run
from ..store import attention, issues, progress, runs
from ..store.progress import PhasesOfRun, PhaseUnderWay
from ..store.session import RowSession
from ..views.issues import IssueIndexAnswer
from ..views.results import NextStep
from ..views.runs import CurrentPhase, LeaseState, ListedRun, PhaseWaitAnswer, RunAnswer
from .after_commit import after_commit, commit_change, commit_for_good
from .baseline import want_base
from .change import RunChange, require_details
from .context import AppContext
from .opening import changing, locked_session, up_to_date
from .projection import is_behind, project
from .reading import one_moment
from .rulesets import ci_scripts, current_ruleset, plan_under
from .runners import checks_of
from .settling import settle


class RunExistsError(ConflictError):
    code = "run_exists"


def start_run(context: AppContext, plan: Plan) -> tuple[RunAnswer, bool]:
    """Start a run, or return the one that the same plan started; also return whether it is new.

    Raises InvalidPlanError, InvalidRulesetError, RunExistsError, RefNameTakenError, and
    InvalidError for the name of a file beside the runs.
    """
    return start_as(context, plan, None)


def continue_run(context: AppContext, run_id: str, wanted: Continuation) -> tuple[RunAnswer, bool]:
    """Start a run with the phases that a failed run has left; also return whether it is new.

    It starts from the last verified commit, else from today's base branch. (rules §2.5)

    Raises NotFoundError, NotContinuableError, UnknownPhasesError, and what `start_run` raises.
    """
    with locked_session(context, run_id) as session:
        earlier = up_to_date(context, session, run_id)
        require_details(earlier)
        state = continuable_state(session, earlier)
        plan = continued_plan(runs.get_plan(session, earlier), state, wanted)
        origin = _origin(earlier)
        session.commit()
    return start_as(context, plan, origin)


def continuable_state(session: RowSession, run: Run) -> RunState:
    """Return the state, with its issues, of a run that may be continued.

    Raises NotContinuableError.
    """
    if run.rebases is not None:
        raise NotContinuableError(
            f"run '{run.run_id}' rebases run '{run.rebases}': rebase that one again"
        )
    state = runs.read_state(run).with_issues(issues.list_run_issues(session, run.id))
    require_continuable(state)
    return state


@dataclass(frozen=True, slots=True)
class Origin:
    """The run that a new one continues or rebases, and the commit of its record.

    `base` is None if nothing of a continued run is verified. `trunk` is where the first of the
    continued runs started. `replay` puts the commits of a rebased run on the new branch.
    """

    run_id: str
    record: str
    base: Base | None
    trunk: str | None
    replay: Callable[[RunChange], None] | None = None

    @property
    def document(self) -> dict[str, str | None]:
        """What belongs to the plan's hash, by which the same request is known again."""
        if self.replay is None:
            return {"continues": self.run_id}
        return {"rebases": self.run_id, "onto": self.base.commit if self.base else None}


def _origin(run: Run) -> Origin:
    if run.head_commit == run.work_commit:
        raise NotContinuableError(
            f"run '{run.run_id}' has no record on its branch, which its continuation would name"
            " (AUTOPACK_COMMIT_RUN_RECORD)"
        )
    ended = [
        (phase.ended_at, phase.tier_index, phase.phase_index, phase.snapshot_commit)
        for tier in run.tiers
        for phase in tier.phases
        if phase.state is PhaseStatus.COMPLETE and phase.ended_at is not None
    ]
    # Of the phase that completed last: what completed before it is on the branch before it.
    verified = max(ended)[-1] if ended else None
    return Origin(
        run_id=run.run_id,
        record=run.head_commit,
        base=None if verified is None else Base(run.base_branch, verified),
        trunk=run.trunk,
    )


def start_as(context: AppContext, plan: Plan, origin: Origin | None) -> tuple[RunAnswer, bool]:
    """Start a run, or return the one that the same request started, as `start_run` does."""
    run_id = plan.run.run_id
    context.mirror.folder(run_id)  # refuses names of the project's own files
    document = plan.model_dump(mode="json")
    if origin is not None:
        document |= origin.document
    digest = hashlib.sha256(canonical_json(document)).hexdigest()
    with locked_session(context, run_id) as session:
        session.begin_change()
        existing = runs.find_run_by_any_case(session, run_id)
        if existing is not None:
            if existing.plan_sha256 == digest and existing.run_id == run_id:
                if is_behind(context, session, existing):
                    existing = up_to_date(context, session, run_id)
                return answer_of(session, existing, context.now()), False
            raise RunExistsError(
                f"run '{existing.run_id}' exists, with another plan; choose another run_id"
            )
        ruleset, version = current_ruleset(context, session)
        plan, strategy = plan_under(session, context, plan, ruleset, version=version)
        run = _new_run(context, session, plan, strategy, digest, origin)
        _add_first_event(session, run, context.caller.actor)
        want_base(session, run, strategy)
        if origin is not None:
            by = context.caller.actor
            attention.close_continued(session, origin.run_id, run.created_at, by=by)
        # Tags of another service, as in a clone, would end the run at a snapshot.
        context.repository.require_free_ref(snapshot_ref(branch_name(run_id)))
        if origin is not None and origin.replay is not None:
            change = RunChange(context, session, run, context.caller.actor)
            change.is_new_branch = True
            origin.replay(change)
            settle(change)
            commit_change(change)
            return _answer(run, [], context.now()), True
        branch = RefUpdate(branch_ref(run_id), run.base_commit, None)
        with context.repository.prepare_refs([branch]) as refs:
            commit_for_good(session)
            after_commit(run, refs.commit)
        after_commit(run, lambda: _write_files(context, session, run))
    return _answer(run, [], context.now()), True


def get_run(context: AppContext, run_id: str) -> RunAnswer:
    """Return a run with its tiers and phases; a run whose deadline has passed ends first."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
        if run.ended_at is not None or context.now() < run.deadline_at:
            return answer_of(session, run, context.now())
    with changing(context, run_id) as change:
        return _answer(change.run, [], change.now)


def answer_of(session: RowSession, run: Run, now: datetime) -> RunAnswer:
    """Return a run with its tiers and phases, and the leases that its phases name."""
    is_held = any(phase.lease_id is not None for tier in run.tiers for phase in tier.phases)
    return _answer(run, progress.list_leases(session, run.id) if is_held else [], now)


def list_runs(
    context: AppContext, wanted: RunFilter, *, limit: int, before: runs.Position | None
) -> tuple[list[ListedRun], runs.Position | None]:
    """Return a page of runs, newest first, without their tiers, and where the next one begins.

    Three statements and at most one process of git a base branch, whatever the page contains.
    """
    with one_moment(context) as session:
        page, more = runs.list_runs(session, wanted, limit=limit, before=before)
        keys = [run.id for run in page]
        phases = progress.list_phases(session, keys) if page else {}
        live = [run.id for run in page if run.ended_at is None]
        under_way = progress.list_under_way(session, live) if live else {}
    now = context.now()
    distances = _distances(context, page, {key: each.commits for key, each in phases.items()})
    listed = [_listed(run, phases[run.id], under_way.get(run.id), distances, now) for run in page]
    return listed, more


def _listed(
    run: Run,
    phases: PhasesOfRun,
    current: PhaseUnderWay | None,
    distances: Mapping[int, tuple[int | None, int | None]],
    now: datetime,
) -> ListedRun:
    lease = current.lease if current else None
    ahead, behind = distances.get(run.id, (None, None))
    agent = lease.agent if lease else None
    step = next_step(run, current, now, agent=agent, failed=phases.failed)
    return ListedRun.of(
        run,
        phases_total=phases.total,
        phases_complete=phases.complete,
        builder_attempts_used=phases.builder_attempts_used,
        tiers=phases.tiers,
        current_phase=current and CurrentPhase.of(current),
        next=NextStep.of(step),
        leases=[lease] if lease else [],
        commits_ahead=ahead,
        commits_behind=behind,
    )


def _distances(
    context: AppContext, page: Sequence[Run], commits: Mapping[int, int]
) -> dict[int, tuple[int | None, int | None]]:
    """Return how far each run's branch is ahead of its base branch and behind it, by the run's key.

    All runs of a base branch are counted from the one walk back to the base of the oldest of them.
    """
    found: dict[int, tuple[int | None, int | None]] = {}
    for branch in {run.base_branch for run in page}:
        mine = [run for run in page if run.base_branch == branch]
        gained = _gained(context, branch, mine[-1].base_commit)
        for run in mine:
            is_merged = gained is not None and gained.has(run.head_commit)
            behind = gained.count_since(run.base_commit) if gained else None
            found[run.id] = (0 if is_merged else commits[run.id], behind)
    return found


def _gained(context: AppContext, branch: str, since: str) -> GainedCommits | None:
    try:
        tip = context.repository.read_ref(f"refs/heads/{branch}")
        return context.repository.gained_since(tip, since) if tip else None
    except UnavailableError:  # a list of runs must not depend on git
        return None


def cancel_run(context: AppContext, run_id: str, reason: str) -> RunAnswer:
    """End a run because the operator says so; a run that is over does not change, 409."""
    with changing(context, run_id) as change:
        change.decide(Cancel(redact(reason)))
        settle(change)
    return _answer(change.run, [], change.now)


def _answer(run: Run, leases: Sequence[LeaseState], now: datetime) -> RunAnswer:
    """Return a run with its tiers and phases; `leases` are those of its phases."""
    phases = [phase for tier in run.tiers for phase in tier.phases]
    current = first_at_hand(phases)
    agents = {lease.phase_id: lease.agent for lease in leases}
    step = next_step(
        run,
        current,
        now,
        agent=agents.get(current.phase_id) if current else None,
        failed=[phase.phase_id for phase in phases if phase.state is PhaseStatus.FAILED],
    )
    order = PhasesInRun(run.run_scope, run.is_parallel, phases)
    waits = (
        []
        if run.ended_at
        else [
            PhaseWaitAnswer(phase_id=phase_id, waits_for=wait.phase_id, cause=wait.cause)
            for phase_id, found in waits_of(order).items()
            for wait in found
        ]
    )
    return RunAnswer.of(run, next=NextStep.of(step), leases=list(leases), waits=waits)


def list_events(
    context: AppContext, run_id: str, *, after: int, limit: int
) -> tuple[list[EventRow], int | None]:
    """Return a page of a run's events, and where the next one begins."""
    with context.reading() as session:
        rows = runs.list_events(
            session, runs.get_run_pk(session, run_id), after=after, limit=limit + 1
        )
    more = rows[limit - 1].sequence if len(rows) > limit else None
    return rows[:limit], more


def _write_files(context: AppContext, session: RowSession, run: Run) -> None:
    project(
        context,
        session,
        run,
        phases=None,
        index=IssueIndexAnswer(run_id=run.run_id, issues_by_key={}),
    )
    runs.mark_mirrored(session, run, context.node_id)


def _add_first_event(session: RowSession, run: Run, actor: str) -> None:
    event = RunStarted(
        actor=actor,
        at=run.created_at,
        reason="a plan was posted",
        plan_sha256=run.plan_sha256,
        base_branch=run.base_branch,
        base_commit=run.base_commit,
        strategy_version=run.strategy_version,
        is_sandbox_required=run.is_sandbox_required,
        continues=run.continues,
        continued_commit=run.continued_commit,
        rebases=run.rebases,
        rebased_commit=run.rebased_commit,
        dependencies_need_review=run.dependencies_need_review,
        is_parallel=run.is_parallel,
        terms_sha256=terms_sha256(runs.read_state(run)),
    )
    runs.add_events(session, run, (event,))


def _sandbox_warning(context: AppContext, strategy: Strategy) -> list[str]:
    """Return a warning if CI has no sandbox on this machine; workers may be on others."""
    if strategy.ci.mode is not CiMode.LOCAL:
        return []
    checks = checks_of(context.settings)
    if checks.problem is None:
        return []
    what = "does not run" if checks.is_refused else "runs without a sandbox"
    required = "; the ruleset requires one for promotion" if strategy.ci.require_sandbox else ""
    return [f"CI {what} on this machine: {checks.problem}{required}"]


def _gates(context: AppContext, strategy: Strategy, commit: str) -> list[str]:
    """Return the scripts that CI commands call, and that are not protected otherwise."""
    return sorted(ci_scripts(context, strategy.ci, commit) - {*strategy.paths.protected})


def _new_run(
    context: AppContext,
    session: RowSession,
    plan: Plan,
    strategy: Strategy,
    digest: str,
    origin: Origin | None,
) -> Run:
    """Create the rows: the description from plan and strategy, the rest from the run's state."""
    now = context.now()
    base = (origin and origin.base) or context.repository.base()
    continued = origin if origin and origin.replay is None else None
    rebased = origin if origin and origin.replay is not None else None
    run = runs.RUNS.new(
        project_id=context.settings.project_id,
        run_id=plan.run.run_id,
        safety_profile=strategy.safety_profile,
        plan=plan.model_dump(mode="json"),
        plan_sha256=digest,
        started_by=context.caller.actor,
        strategy=strategy.model_dump(mode="json"),
        strategy_version=strategy.version,
        max_phases=strategy.max_phases,
        cleanup_after_runs=strategy.safety.cleanup_after_runs,
        cleanup_after_tiers=strategy.safety.cleanup_after_tiers,
        major_categories=list(strategy.major_categories),
        portable_names=strategy.paths.portable_names,
        protected_paths=[*strategy.paths.protected, *_gates(context, strategy, base.commit)],
        warnings=[
            *strategy.warnings,
            *_sandbox_warning(context, strategy),
            *context.repository.pointers(base.commit).warnings(),
        ],
        base_branch=base.branch,
        base_commit=base.commit,
        continues=continued and continued.run_id,
        continued_commit=continued and continued.record,
        trunk_commit=continued.trunk if continued and continued.base else None,
        rebases=rebased and rebased.run_id,
        rebased_commit=rebased and rebased.record,
        work_commit=base.commit,
        event_sequence=0,
        event_hash=GENESIS_HASH,
        revision=1,
        mirrored_revision=0,
        mirrored_by=context.node_id,
        created_at=now,
        updated_at=now,
    )
    tiers = [
        runs.TIERS.new(tier_id=tier.tier_id, name=tier.name, description=tier.description)
        for tier in sorted(plan.tiers, key=lambda tier: tier.tier_index)
    ]
    phases = [
        _new_phase(phase, strategy)
        for tier in tiers
        for phase in sorted(plan.phases, key=lambda phase: phase.phase_index)
        if phase.tier_id == tier.tier_id
    ]
    runs.place(run, tiers, phases)
    runs.write_state(run, starting_state(plan, strategy, now, base.commit))
    return runs.add_run(session, run)


def _new_phase(phase: PlanPhase, strategy: Strategy) -> Phase:
    mine = strategy.phases[phase.phase_id]
    return runs.PHASES.new(
        phase_id=phase.phase_id,
        tier_id=phase.tier_id,
        name=phase.name,
        description=phase.description,
        task_category=mine.task_category,
        complexity=mine.complexity,
        builder_mode=mine.builder_mode,
        expected_issues=list(phase.expected_issues),
        auditor_profile=mine.auditor_profile,
        max_patch_files=mine.max_patch_files,
        opened_paths=list(mine.opened_paths),
        issue_key=phase.issue_key if isinstance(phase, DebtPhase) else None,
    )
