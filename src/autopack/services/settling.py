"""Settle a change: the consequences of the decision, written to the tables.

Undo the commits of phases that failed or are built again, request CI, update tiers and run, and
then write rows, snapshots, commits, events and, at a run's end, its record. No rule is decided
here.
"""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

import structlog

from ..domain.debt import Closing, LifeKind, closing_of
from ..domain.deciding import Entangled, Undone, conclude
from ..domain.events import CiVerdictReceived, IssueResolved
from ..domain.issues import MAX_EVIDENCE_REFS, IssueReport, IssueStatus
from ..domain.judging import CiRunWanted
from ..domain.naming import (
    branch_ref,
    record_folder,
    record_message,
    snapshot_message,
    snapshot_name,
    snapshot_ref,
)
from ..domain.order import after_it, ci_turn, has_commits, to_undo
from ..domain.outcomes import CommitKind
from ..domain.patches import AppliedPatch
from ..domain.run import FailureCode, PhaseState
from ..domain.statement import signed_bytes
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import CiMode, CiProfile, Verdict
from ..gitrepo import CollisionError, RefUpdate, RepositoryUnusableError
from ..jobs.queue import defer
from ..mirror import RECORD, patch_name
from ..models import Issue, Phase
from ..store import ci_runs, issues, leases, nodes, runs
from ..store.commits import add_commits
from ..store.nodes import Checkpoint
from ..store.patches import list_accepted_patches
from . import patching
from .change import RunChange, require_details
from .projection import Signatures, finished_files
from .pushes import want_push

logger = structlog.get_logger(__name__)

# Patches beyond this total size are in the record only by their hash.
MAX_RECORDED_PATCH_BYTES: Final = 16_000_000
CI_QUEUE: Final = "ci"
CI_TASK: Final = "run_ci"
_WHY_UNDONE: Final = {
    PhaseStatus.FAILED: "It failed",
    PhaseStatus.SKIPPED: "It was skipped by hand",
}


def settle(change: RunChange) -> None:
    """Compute all consequences of the decision, and write them to the tables.

    What git must do for the decision comes first, as it may decide more. Rows come before their
    events, and all of it before the record, which is made of them.
    Raises DetailsRemovedError for a run whose record can never be written again.
    """
    require_details(change.run)
    _undo_phases(change)
    _request_ci(change)
    change.take(conclude(change.before, change.state, change.now))
    _write_rows(change)
    _write_issues(change)
    _end_ci(change)
    _tag_snapshots(change)
    _resolve_cleaned(change)
    _place_commits(change)
    runs.add_events(change.session, change.run, change.events)
    if change.events or change.touched_phases or change.commits:
        _own_marks(change)
        change.run.revision = change.revision_before + 1
        change.run.updated_at = change.now
        if _has_ended(change) or (change.state.is_over and change.commits):
            _record(change)
        _want_push(change)
    if change.commits:
        branch = branch_ref(change.run.run_id)
        old = None if change.is_new_branch else change.first_head
        # First, so that a moved branch is found before any tag is locked.
        change.ref_updates.insert(0, RefUpdate(branch, change.head, old))


def _own_marks(change: RunChange) -> None:
    """Let the run's row say what this node shows, which is up to date before it changes a run."""
    run = change.run
    if run.mirrored_by != change.context.node_id:
        if run.mirrored_by is not None and run.mirrored_revision == change.revision_before:
            told = run.event_sequence - len(change.events)
            nodes.keep_checkpoint(change.session, run, Checkpoint(change.revision_before, told))
        run.mirrored_by = change.context.node_id
        run.mirrored_revision = change.revision_before


def request_ci_run(change: RunChange, phase_id: str, *, at: datetime | None = None) -> None:
    """Queue a run of the service's own CI on a phase's commit, for after this change.

    Not before `at`.
    """
    row, state = change.phase(phase_id), change.phase_state(phase_id)
    commit = state.commit or change.head
    run = ci_runs.add_ci_run(
        change.session,
        ci_runs.CI_RUNS.new(
            run_pk=change.run.id,
            phase_pk=row.id,
            commit_sha=commit,
            profile=state.ci_profile,
            requested_at=change.now,
        ),
    )
    change.decide(CiRunWanted(phase_id=phase_id, ci_run_id=run.id, attempt=run.attempt))
    defer(
        change.session,
        CI_TASK,
        queue=CI_QUEUE,
        arguments={"ci_run_id": run.id},
        queueing_lock=f"{CI_TASK}:{run.id}",
        at=at,
    )


# What the change has changed


def _newly(change: RunChange, state: PhaseStatus) -> list[PhaseState]:
    """Return the phases that reached a state by this change."""
    return [
        phase
        for phase in change.state.phases
        if phase.state is state and change.before.phase(phase.phase_id).state is not state
    ]


def _has_ended(change: RunChange) -> bool:
    return change.state.is_over and not change.before.is_over


def _completed(change: RunChange) -> list[Phase]:
    return [change.phase(each.phase_id) for each in _newly(change, PhaseStatus.COMPLETE)]


# Acting on it


def _undo_phases(change: RunChange) -> None:
    """Take the commits of phases off the branch that failed, were skipped or are built again."""
    for phase in to_undo(change.before, change.state):
        if not change.state.is_over or phase.state.is_final:
            _undo(change, phase)


def _undo(change: RunChange, phase: PhaseState) -> None:
    """Restore the tree before a phase's commits, and put those of others after it on it again."""
    repository = change.context.repository
    before, others = phase.before_commit or phase.start_commit, after_it(change.state, phase)
    if before in (None, change.head):
        return
    change.objects.install()  # the head's commit is read
    tree = repository.tree_of(str(before))
    if phase.state.is_final and not others and tree == repository.tree_of(change.head):
        return
    why = _WHY_UNDONE.get(phase.state, "It is built again")
    message = (
        f"Undo phase {phase.phase_id}\n\n"
        f"{why}, so the tree is again that of {before}.\n\n"
        f"Autopack-Run: {change.run.run_id}\nAutopack-Phase: {phase.phase_id}\n"
    )
    kept = len(change.commits)
    row = change.phase(phase.phase_id)
    commit = change.add_commit(CommitKind.UNDO, tree, message, phase=row)
    again: list[tuple[str, AppliedPatch]] = []
    for other in others:
        try:
            again += [(other.phase_id, each) for each in patching.apply_again(change, other)]
        except patching.PATCH_FAULTS:
            change.drop_commits(kept)
            change.decide(Entangled(phase_id=phase.phase_id, other_id=other.phase_id))
            return
    change.decide(Undone(phase_id=phase.phase_id, commit=commit.sha, tree=tree, again=tuple(again)))


def _request_ci(change: RunChange) -> None:
    """Request a CI run for the phase whose turn has come, if CI is the service's own. (rules §2.7)

    Without phases side by side that is the one that just reached CI_RUNNING.
    """
    turn, earlier = ci_turn(change.state), ci_turn(change.before)
    if turn is None:
        return
    is_same = earlier is not None and earlier.phase_id == turn.phase_id
    if is_same and change.before.phase(turn.phase_id).commit == turn.commit:
        return
    if runs.get_strategy(change.session, change.run)["ci"]["mode"] == CiMode.LOCAL:
        request_ci_run(change, turn.phase_id)


def _end_ci(change: RunChange) -> None:
    """End the CI runs of phases that do not wait for CI any more."""
    left = [
        change.phase(phase.phase_id).id
        for phase in change.before.phases
        if phase.state is PhaseStatus.CI_RUNNING
        and change.phase_state(phase.phase_id).state is not PhaseStatus.CI_RUNNING
    ]
    if left:
        for run in ci_runs.list_under_way(change.session, left):
            if run.ended_at is None:  # else this very change has ended it, with its verdict
                run.ended_at = max(change.now, run.started_at or change.now)
                run.reason = "the phase no longer waits for it"


def _tag_snapshots(change: RunChange) -> None:
    """Tag the head for each phase that just completed."""
    repository = change.context.repository
    for phase in _completed(change):
        state = change.phase_state(phase.phase_id)
        # Commits of other phases may follow it, which CI has not judged yet.
        is_beside = change.state.is_parallel and has_commits(state)
        head = (state.commit if is_beside else None) or change.head
        name = snapshot_name(change.run.run_id, phase.tier_id, phase.phase_id)
        message = snapshot_message(change.run.run_id, phase.phase_id, phase.name)
        signature = repository.sign_tag(name=name, commit=head, message=message, at=change.now)
        phase.snapshot_tag = name
        phase.snapshot_commit = head
        phase.snapshot_signature = signature
        phase.snapshot_oid = repository.write_tag(
            name=name,
            commit=head,
            message=message,
            at=change.now,
            signature=signature,
            into=change.objects,
        )
        change.run.last_snapshot = name
        change.ref_updates.append(RefUpdate(snapshot_ref(name), phase.snapshot_oid, None))


def _resolve_cleaned(change: RunChange) -> None:
    """Say which aged issues the commit closes: those whose cleanup a check proves. (rules §7.1)"""
    run = change.run
    for phase in _completed(change):
        if phase.issue_key is None:
            continue
        closing = _closing(change, phase)
        if isinstance(closing, Closing):
            change.cleaned[phase.issue_key] = phase.phase_id, closing
            continue
        issues.note(
            *(change.session, run.project_id, phase.issue_key, LifeKind.NOT_CLOSED, change.now),
            run_id=run.run_id,
            phase_id=phase.phase_id,
            reason=closing,
        )
        change.touch_backlog()


def _closing(change: RunChange, phase: Phase) -> Closing | str:
    """Return what proves the cleanup of a complete phase, or why nothing does."""
    verdict = next(
        (
            each
            for each in reversed(change.events)
            if isinstance(each, CiVerdictReceived) and each.phase_id == phase.phase_id
        ),
        None,
    )
    if verdict is None or phase.verdict is not Verdict.GREEN:
        return "the phase is complete without a green verdict"
    closing = closing_of(verdict.evidence, verdict.mended_checks)
    return closing or "no check is known to have failed before"


def _want_push(change: RunChange) -> None:
    """Request a push: at a snapshot, at the end, and when a finished run changes.

    The request is part of this change; a push job runs after the commit.
    """
    is_wanted = (
        change.context.repository.remote is not None
        and change.state.failure_code is not FailureCode.BRANCH_MOVED
        and (
            bool(change.ref_updates)  # snapshots
            or _has_ended(change)
            or bool(_newly(change, PhaseStatus.CI_RUNNING))
            or (change.state.is_over and bool(change.commits))
        )
    )
    if is_wanted:
        want_push(change.session, change.run, change.now)


# Writing it


def _write_rows(change: RunChange) -> None:
    """Write the differences of the two states, and dependent rows."""
    ended = [
        phase.lease_id
        for phase in change.before.phases
        if phase.lease_id and phase.lease_id != change.phase_state(phase.phase_id).lease_id
    ]
    if ended:
        leases.end_leases(change.session, ended, change.now)
    runs.write_state(change.run, change.state, change.before)


def _write_issues(change: RunChange) -> None:
    """Write the entries that reports and resolutions have changed, with their last state."""
    written: dict[tuple[str, str], Issue] = {}
    for phase_id, report in change.reports:
        place = (phase_id, report.issue_key)
        if place not in written:
            written[place] = change.known_issues.get(place) or _new_issue(change, phase_id, report)
        row, entry = written[place], change.state.issues[place]
        row.source, row.occurrence_count = entry.source, entry.occurrence_count
        row.severity, row.effective_severity = entry.severity, entry.effective_severity
        row.is_expected = entry.is_expected
        row.status = IssueStatus.OPEN if entry.is_open else IssueStatus.RESOLVED
        row.last_seen_at = change.now
        merged = dict.fromkeys([*row.evidence_refs, *report.evidence_refs])
        row.evidence_refs = list(merged)[-MAX_EVIDENCE_REFS:]  # the newest are the most useful
        row.description = report.description or row.description
    for phase_id in {each.phase_id for each in change.events if isinstance(each, IssueResolved)}:
        closed = [
            each.issue_key
            for each in change.state.issues.values()
            if each.phase_id == phase_id and not each.is_open
        ]
        if closed:
            phase = change.phase(phase_id)
            issues.resolve(change.session, change.run.id, phase.id, closed)


def _new_issue(change: RunChange, phase_id: str, report: IssueReport) -> Issue:
    """Store a new entry for a key's first report in a phase."""
    run, phase = change.run, change.phase(phase_id)
    return issues.add_issue(
        change.session,
        issues.ISSUES.new(
            run_pk=run.id,
            phase_pk=phase.id,
            issue_key=report.issue_key,
            category=report.category,
            task_category=report.task_category or phase.task_category,
            complexity=report.complexity or phase.complexity,
            first_seen_run=run.run_id,
            last_seen_run=run.run_id,
            first_seen_at=change.now,
            evidence_refs=[],
        ),
    )


def _place_commits(change: RunChange) -> None:
    """Write the rows of commits that have none yet."""
    commits = change.commits[change.placed_commits :]
    if not commits:
        return
    add_commits(change.session, change.run.id, commits)
    change.placed_commits += len(commits)
    change.run.head_commit = commits[-1].sha
    if commits[-1].kind is not CommitKind.RECORD:
        change.run.work_commit = change.run.head_commit


def _record(change: RunChange) -> None:
    """Add the commit of the run's record as the last one of the branch.

    Promotion needs the record, so a run only succeeds together with it; a failed run may end
    without it if no commit can be made. A branch that another process moved gets none.
    """
    run, repository, session = change.run, change.context.repository, change.session
    if (
        not change.context.settings.commit_run_record
        or run.failure_code is FailureCode.BRANCH_MOVED
    ):
        return
    session.send()  # the files are made from rows that are read again
    change.objects.install()  # a run may end without its record, but not without its work
    signatures: list[dict[str, str]] = []

    def sign(payload: bytes) -> Signatures:
        signature = repository.sign_statement(signed_bytes(payload))
        signatures.extend([signature.document()] if signature else [])
        return signatures

    report, files = finished_files(session, run, sign)
    patches = list_accepted_patches(session, run.id, MAX_RECORDED_PATCH_BYTES)
    recorded = {**files, **{patch_name(name): content for name, content in patches.items()}}
    message = record_message(
        run.run_id,
        run.state,
        hashlib.sha256(files[RECORD]).hexdigest(),
        # Of a push with several commits, CI only sees this head.
        is_strict=any(
            phase.ci_profile is CiProfile.STRICT and phase.state is PhaseStatus.COMPLETE
            for phase in change.state.phases
        ),
    )
    try:
        tree = repository.put_folder(
            change.head, record_folder(run.run_id), recorded, into=change.objects
        )
        change.add_commit(CommitKind.RECORD, tree, message)
    except (RepositoryUnusableError, CollisionError) as error:
        if isinstance(error, RepositoryUnusableError) and run.state is RunStatus.DONE_SUCCESS:
            raise
        logger.warning("run_not_recorded", run_id=run.run_id, why=str(error))
        run.statement_signatures = None
        return
    _place_commits(change)
    run.statement_signatures = signatures  # kept, as not every key makes the same one twice
    change.record = report, files
