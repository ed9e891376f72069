"""Making the branch of a run that succeeded again on today's base, as a new run. (rules §8.1)

Everything happens in the one change that starts the new run: its commits, events and CI request.
The earlier run and its branch stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..domain.naming import branch_ref, head_ref
from ..domain.outcomes import CommitKind
from ..domain.rebasing import (
    PHASE_ID,
    BaseMovedError,
    NotRebasableError,
    Rebase,
    RebaseConflictError,
    RebasedPatch,
    RebaseRefusedError,
    RebaseWish,
    conflict_text,
    rebase_plan,
    refused_text,
    require_rebasable,
)
from ..domain.redaction import redacted
from ..gitrepo import (
    Base,
    PatchPolicyError,
    RebaseConflict,
    RebasedCommit,
    RefMovedError,
    RefUpdate,
)
from ..models import Run
from ..store import runs
from ..store.commits import AcceptedCommit, list_accepted_commits
from ..store.session import RowSession
from ..views.runs import RunAnswer
from .change import RunChange, require_details
from .context import AppContext
from .opening import locked_session, up_to_date
from .patching import dependencies_of, policy_check_for
from .starting import Origin, start_as


def rebase_run(context: AppContext, run_id: str, wanted: RebaseWish) -> tuple[RunAnswer, bool]:
    """Start a run with another one's patches on today's base; also return whether it is new.

    A base that moves meanwhile, and a patch that does not merge or that today's rules refuse,
    change nothing. Raises NotFoundError, NotRebasableError, BaseMovedError, RebaseConflictError,
    RebaseRefusedError, and what `start_run` raises.
    """
    with locked_session(context, run_id) as session:
        earlier = up_to_date(context, session, run_id)
        state = runs.read_state(earlier)
        require_details(earlier)
        require_rebasable(state)
        _require_recorded(context, earlier)
        commits = _accepted(session, earlier)
        session.commit()
    base = _base(context, earlier, wanted)
    plan = rebase_plan(state, earlier.safety_profile, wanted, onto=base.commit, branch=base.branch)
    rebased = _rebased(context, base, commits)

    def put_commits(change: RunChange) -> None:
        _put(change, earlier, base, commits, rebased)

    origin = Origin(earlier.run_id, earlier.head_commit, base, None, put_commits)
    try:
        return start_as(context, plan, origin)
    except RefMovedError as error:
        if error.ref == _ref(base):
            raise BaseMovedError(
                f"'{base.branch}' left {base.commit} while run '{run_id}' was rebased; nothing was"
                " changed: rebase again"
            ) from error
        raise


def _require_recorded(context: AppContext, run: Run) -> None:
    """Refuse a run whose branch does not end in its record, which the new one would name."""
    if not run.has_record:
        raise NotRebasableError(
            f"run '{run.run_id}' has no record on its branch (AUTOPACK_COMMIT_RUN_RECORD)"
        )
    if context.repository.read_ref(branch_ref(run.run_id)) != run.head_commit:
        raise NotRebasableError(f"branch {run.branch} is not at the recorded {run.head_commit}")


def _accepted(session: RowSession, run: Run) -> list[AcceptedCommit]:
    """Return the commits of complete phases, and of the failed runs that a run continues."""
    found = _accepted_of(session, run)
    while run.continues is not None:
        run = runs.get_run(session, run.continues)
        found = [*_accepted_of(session, run), *found]
    if not found:
        raise NotRebasableError(f"run '{run.run_id}' has no commit that could be made again")
    return found


def _accepted_of(session: RowSession, run: Run) -> list[AcceptedCommit]:
    """Return the commits of a run's complete phases, each with the category that it was built for.

    The phase of a rebased run has no category of its own; its first commits are those of the run
    that it rebases, in their order.
    """
    found = list_accepted_commits(session, run.id)
    if run.rebases is None:
        return found
    originals = iter(_accepted(session, runs.get_run(session, run.rebases)))
    return [
        (
            replace(each, task_category=next(originals, each).task_category)
            if each.kind is CommitKind.REPLAY
            else each
        )
        for each in found
    ]


def _ref(base: Base) -> str:
    return head_ref(base.branch)


def _base(context: AppContext, run: Run, wanted: RebaseWish) -> Base:
    """Return the base branch as it is now. Raises NotRebasableError, BaseMovedError."""
    commit = context.repository.read_ref(head_ref(run.base_branch))
    if commit is None:
        raise NotRebasableError(f"there is no branch '{run.base_branch}' any more")
    if wanted.base_commit not in (None, commit):
        raise BaseMovedError(
            f"base_commit: '{run.base_branch}' is at {commit}, not at {wanted.base_commit}"
        )
    if commit == run.trunk:
        raise NotRebasableError(
            f"run '{run.run_id}' stands on '{run.base_branch}' at {commit} already"
        )
    merge = context.repository.try_merge(commit, run.work_commit)
    if merge.mergeable and merge.tree == context.repository.tree_of(commit):
        raise NotRebasableError(
            f"'{run.base_branch}' at {commit} has all changes of run '{run.run_id}' already"
        )
    return Base(run.base_branch, commit)


def _rebased(
    context: AppContext, base: Base, commits: Sequence[AcceptedCommit]
) -> list[RebasedCommit]:
    result = context.repository.rebase(base.commit, [(each.parent, each.sha) for each in commits])
    if isinstance(result, RebaseConflict):
        failed = commits[result.position]
        where = f"{base.branch} at {base.commit[:12]}"
        raise RebaseConflictError(
            conflict_text(failed.phase_id, failed.sha, where, result.paths),
            phase_id=failed.phase_id,
            commit=failed.sha,
            paths=list(result.paths),
        )
    return result


def _put(
    change: RunChange,
    earlier: Run,
    base: Base,
    commits: Sequence[AcceptedCommit],
    rebased: Sequence[RebasedCommit],
) -> None:
    """Put the commits on the new branch, if the base and the earlier run are as they were."""
    if runs.get_run(change.session, earlier.run_id).head_commit != earlier.head_commit:
        raise NotRebasableError(f"run '{earlier.run_id}' was changed meanwhile: rebase again")
    _require_allowed(change, base, commits, rebased)
    change.ref_updates.append(RefUpdate.check(_ref(base), base.commit))
    phase = change.phase(PHASE_ID)
    read = change.context.repository.read_blob
    patches = []
    for commit, made in zip(commits, rebased, strict=True):
        row = change.add_commit(
            CommitKind.REPLAY,
            made.tree,
            _message(change.run, earlier, commit),
            phase=phase,
            is_merged=made.is_merged,
        )
        patches.append(
            RebasedPatch(
                original=commit.sha,
                from_phase=commit.phase_id,
                commit=row.sha,
                tree=row.tree,
                parent=row.parent,
                builders=tuple(commit.builders),
                builder_models=tuple(commit.builder_models),
                dependencies=dependencies_of(made.changes, read),
            )
        )
    change.decide(Rebase(from_run=earlier.run_id, patches=tuple(patches)))


def _require_allowed(
    change: RunChange,
    base: Base,
    commits: Sequence[AcceptedCommit],
    rebased: Sequence[RebasedCommit],
) -> None:
    """Refuse what today's ruleset and base protect, as for a patch. Raises RebaseRefusedError.

    A commit may change the protected paths that the ruleset opens for its own phase's category.
    """
    context, phase = change.context, change.phase(PHASE_ID)
    opened = runs.get_strategy(change.session, change.run)["paths"]["opened"]
    onto = context.repository.tree_of(base.commit)
    for commit, made in zip(commits, rebased, strict=True):
        require_allowed = policy_check_for(
            *(context.settings, change.run, phase), opened=opened.get(commit.task_category, ())
        )
        try:
            if made.changes:
                require_allowed(context.repository.change_set(onto, made))
        except PatchPolicyError as error:
            raise RebaseRefusedError(
                redacted(refused_text(commit.phase_id, commit.sha, error.detail)),
                phase_id=commit.phase_id,
                commit=commit.sha,
                **redacted(error.extra),
            ) from error
        onto = made.tree


def _message(run: Run, earlier: Run, commit: AcceptedCommit) -> str:
    """Keep the subject, whose mark CI looks for, and the authors; name the original."""
    lines = commit.message.splitlines()
    authors = [line for line in lines[1:] if line.startswith("Co-authored-by: ")]
    trailers = [
        f"Autopack-Run: {run.run_id}",
        f"Autopack-Phase: {PHASE_ID}",
        f"Autopack-Rebases: {commit.sha}",
        *authors,
    ]
    body = f"Phase {commit.phase_id} of run {earlier.run_id}, made again."
    return f"{lines[0]}\n\n{body}\n\n" + "\n".join(trailers) + "\n"
