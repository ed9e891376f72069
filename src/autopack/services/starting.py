"""Starting a run: by a plan, and as the continuation or the rebased form of another one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from ..domain.continuing import (
    Continuation,
    NotContinuableError,
    continued_plan,
    require_continuable,
    verified_commit,
)
from ..domain.errors import ConflictError
from ..domain.events import GENESIS_HASH, RunStarted, canonical_json
from ..domain.naming import branch_name, branch_ref, snapshot_ref
from ..domain.plan import DebtPhase, Plan, PlanPhase
from ..domain.run import RunState
from ..domain.run_terms import terms_sha256
from ..domain.starting import starting_state
from ..domain.strategy import Strategy
from ..domain.terms import CiMode
from ..gitrepo import Base, RefUpdate
from ..models import Phase, Run, Tier
from ..store import attention, issues, runs
from ..store.session import RowSession
from ..views.issues import IssueIndexAnswer
from ..views.runs import RunAnswer
from .after_commit import after_commit, commit_change, commit_for_good
from .baseline import want_base
from .change import RunChange, require_details
from .context import AppContext
from .opening import locked_session, up_to_date
from .projection import is_behind, project
from .rulesets import ci_scripts, current_ruleset, plan_under
from .runners import checks_of
from .runs import answer_of, run_answer
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
    continued runs started. `put_commits` puts the commits of a rebased run on the new branch.
    """

    run_id: str
    record: str
    base: Base | None
    trunk: str | None
    put_commits: Callable[[RunChange], None] | None = None

    @property
    def document(self) -> dict[str, str | None]:
        """What belongs to the plan's hash, by which the same request is known again."""
        if self.put_commits is None:
            return {"continues": self.run_id}
        return {"rebases": self.run_id, "onto": self.base.commit if self.base else None}

    @property
    def columns(self) -> dict[str, str | None]:
        """What the row of the new run says of the run that it comes from."""
        if self.put_commits is not None:
            return {"rebases": self.run_id, "rebased_commit": self.record}
        return {
            "continues": self.run_id,
            "continued_commit": self.record,
            "trunk_commit": self.trunk if self.base else None,
        }


def _origin(run: Run) -> Origin:
    if not run.has_record:
        raise NotContinuableError(
            f"run '{run.run_id}' has no record on its branch, which its continuation would name"
            " (AUTOPACK_COMMIT_RUN_RECORD)"
        )
    verified = verified_commit(run.phases)
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
        if origin is not None and origin.put_commits is not None:
            change = RunChange(context, session, run, context.caller.actor)
            change.is_new_branch = True
            origin.put_commits(change)
            settle(change)
            commit_change(change)
            return run_answer(run, [], context.now()), True
        branch = RefUpdate(branch_ref(run_id), run.base_commit, None)
        with context.repository.prepare_refs([branch]) as refs:
            commit_for_good(session)
            after_commit(session, run, refs.commit)
        after_commit(session, run, lambda: _write_files(context, session, run))
    return run_answer(run, [], context.now()), True


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


def _scripts_of_ci(context: AppContext, strategy: Strategy, commit: str) -> list[str]:
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
        protected_paths=[
            *strategy.paths.protected,
            *_scripts_of_ci(context, strategy, base.commit),
        ],
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
        mirrored_by=context.node_id,
        created_at=now,
        updated_at=now,
        **(origin.columns if origin else {}),
    )
    runs.attach(run, *_new_parts(plan, strategy))
    runs.write_state(run, starting_state(plan, strategy, now, base.commit))
    return runs.add_run(session, run)


def _new_parts(plan: Plan, strategy: Strategy) -> tuple[list[Tier], list[Phase]]:
    """Create the rows of tiers and phases, in the order of their indexes."""
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
    return tiers, phases


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
