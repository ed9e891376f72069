"""Starting and reading runs."""

from __future__ import annotations

import hashlib

from ..domain.errors import ConflictError
from ..domain.events import GENESIS_HASH, RunStarted, canonical_json
from ..domain.naming import branch_name, branch_ref, snapshot_ref
from ..domain.operating import Cancel
from ..domain.plan import DebtPhase, Plan, PlanPhase
from ..domain.secret_rules import redact
from ..domain.starting import starting_state
from ..domain.states import RunStatus
from ..domain.strategy import Strategy
from ..domain.terms import CiMode, CiProfile
from ..gitrepo import RefUpdate
from ..models import EventRow, Phase, Run
from ..store import runs
from ..store.session import RowSession
from ..views.issues import IssueIndexAnswer
from ..views.results import AttemptsAnswer
from ..views.runs import RunAnswer, RunSummaryAnswer
from .after_commit import after_commit, commit_for_good
from .ci import checks_of
from .context import AppContext
from .opening import changing, locked_session, up_to_date
from .projection import attempts_of, project
from .rulesets import plan_under, read_ruleset, strategy_version
from .settling import settle


class RunExistsError(ConflictError):
    code = "run_exists"


def start_run(context: AppContext, plan: Plan) -> tuple[RunAnswer, bool]:
    """Start a run, or return the one that the same plan started; also return whether it is new.

    Raises InvalidPlanError, InvalidRulesetError, RunExistsError, RefNameTakenError, and
    InvalidError for the name of a file beside the runs.
    """
    run_id = plan.run.run_id
    context.mirror.folder(run_id)  # refuses names of the project's own files
    digest = hashlib.sha256(canonical_json(plan.model_dump(mode="json"))).hexdigest()
    with locked_session(context, run_id) as session:
        session.begin_change()
        existing = runs.find_run_by_any_case(session, run_id)
        if existing is not None:
            if existing.plan_sha256 == digest and existing.run_id == run_id:
                if existing.mirrored_revision < existing.revision:
                    existing = up_to_date(context, session, run_id)
                return RunAnswer.of(existing), False
            raise RunExistsError(
                f"run '{existing.run_id}' exists, with another plan; choose another run_id"
            )
        ruleset = read_ruleset(context)
        version = strategy_version(session, context, ruleset)
        plan, strategy = plan_under(session, context, plan, ruleset, version=version)
        run = _new_run(context, session, plan, strategy, digest)
        _add_first_event(session, run, context.caller.actor)
        # Tags of another service, as in a clone, would end the run at a snapshot.
        context.repository.require_free_ref(snapshot_ref(branch_name(run_id)))
        branch = RefUpdate(branch_ref(run_id), run.base_commit, None)
        with context.repository.prepare_refs([branch]) as refs:
            commit_for_good(session)
            after_commit(run, refs.commit)
        after_commit(run, lambda: _write_files(context, session, run))
    return RunAnswer.of(run), True


def get_run(context: AppContext, run_id: str) -> RunAnswer:
    """Return a run with its tiers and phases; a run whose deadline has passed ends first."""
    with context.reading() as session:
        run = runs.get_run(session, run_id)
    if run.ended_at is None and run.deadline_at <= context.now():
        with changing(context, run_id) as change:
            return RunAnswer.of(change.run)
    return RunAnswer.of(run)


def list_runs(
    context: AppContext,
    *,
    limit: int,
    before: runs.Position | None,
    status: RunStatus | None,
    project_id: str | None,
    containing: str | None,
) -> tuple[list[RunSummaryAnswer], runs.Position | None]:
    """Return a page of runs, newest first, without their tiers, and where the next one begins."""
    with context.reading() as session:
        page, more = runs.list_runs(
            session,
            limit=limit,
            before=before,
            status=status,
            project_id=project_id,
            containing=containing,
        )
    return [RunSummaryAnswer.of(run) for run in page], more


def cancel_run(context: AppContext, run_id: str, reason: str) -> RunAnswer:
    """End a run because the operator says so; a run that is over does not change, 409."""
    with changing(context, run_id) as change:
        change.decide(Cancel(redact(reason)))
        settle(change)
    return RunAnswer.of(change.run)


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


def list_attempts(context: AppContext, run_id: str, phase_id: str) -> AttemptsAnswer:
    """Return the submissions of Builders and Auditors to a phase, and their outcomes."""
    with context.reading() as session:
        phase = runs.get_phase(runs.get_run(session, run_id), phase_id)
        found = attempts_of(session, [phase]).get(phase.id, [])
    return AttemptsAnswer(run_id=run_id, phase_id=phase_id, attempts=[*found])


def _write_files(context: AppContext, session: RowSession, run: Run) -> None:
    project(
        context,
        session,
        run,
        phases=None,
        index=IssueIndexAnswer(run_id=run.run_id, issues_by_key={}),
    )
    runs.mark_mirrored(session, run.id, run.revision)


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
    """Return the repository's scripts that CI commands call.

    They are protected paths, so that an agent cannot change the scripts that judge its patches.
    """
    profiles = (strategy.ci.command_for(profile) for profile in CiProfile)
    named = {name for profile in profiles for name in profile.programs()}
    known = set(strategy.paths.protected)
    return sorted(context.repository.files_in(commit, named) - known) if named else []


def _new_run(
    context: AppContext, session: RowSession, plan: Plan, strategy: Strategy, digest: str
) -> Run:
    """Create the rows: the description from plan and strategy, the rest from the run's state."""
    now = context.now()
    base = context.repository.base()
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
        work_commit=base.commit,
        event_sequence=0,
        event_hash=GENESIS_HASH,
        revision=1,
        mirrored_revision=0,
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
        allowed_paths=None if phase.allowed_paths is None else list(phase.allowed_paths),
        expected_issues=list(phase.expected_issues),
        auditor_profile=mine.auditor_profile,
        max_patch_files=mine.max_patch_files,
        opened_paths=list(mine.opened_paths),
        issue_key=phase.issue_key if isinstance(phase, DebtPhase) else None,
    )
