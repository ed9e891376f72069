"""Branch, tags and files: projections of what Postgres holds, which can always be made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NamedTuple

from ..domain import run_issues
from ..domain.errors import AutopackError
from ..domain.events import IssueRecorded, IssueResolved, canonical_json, event_document
from ..domain.naming import STATEMENT, branch_ref, snapshot_ref, strategy_name
from ..domain.results import log_tail
from ..domain.run import FailureCode
from ..domain.run_issues import OpenIssue, RunIssue, index_of
from ..domain.statement import payload_of, write_envelope
from ..gitrepo import (
    RecordedRef,
    RefMovedError,
    RefNameTakenError,
    RepositoryUnusableError,
)
from ..mirror import (
    PULL_REQUEST,
    RECORD,
    encode_sorted,
    pull_request,
    pull_request_page,
    render_run,
    run_record,
)
from ..models import EventRow, Issue, Phase, Run
from ..store import ci_runs, issues, nodes, runs, submissions
from ..store.commits import list_commits, list_recorded_commits
from ..store.nodes import Checkpoint
from ..store.rows import derived
from ..store.session import RowSession
from ..views.issues import BacklogEntryAnswer, IssueIndexAnswer, PhaseIssue
from ..views.results import AttemptDetail
from ..views.runs import PhaseDetail, RunDetail, TierDetail
from .aging import let_age
from .context import AppContext
from .rebuilding import add_objects, require_objects

TOP_OPEN_ISSUES: Final = 50
_OF_ISSUES: Final = frozenset({IssueRecorded.__name__, IssueResolved.__name__})
EVENTS_UNDER_WAY: Final = 10_000  # more than changes can have that are not complete yet


def is_branch_elsewhere(context: AppContext, run_id: str, head: str) -> bool:
    """Say whether a run's branch is not at its recorded head, or the head itself is lost.

    Costs the reading of two files.
    """
    repository = context.repository
    try:
        return repository.read_ref(branch_ref(run_id)) != head or not repository.has_commit(head)
    except AutopackError:  # the next change that moves this ref meets the error again
        return False


def roll_forward(
    context: AppContext, session: RowSession, run: Run, checkpoint: Checkpoint
) -> None:
    """Bring objects, branch, tags and files of a run to what Postgres says, and let issues age.

    Of a run with a checkpoint, only what changed since. Raises RefMovedError when a ref is where
    this run never put it. A run that ended because of that leaves such a ref alone for good; the
    same ref may be unmoved, and late, on another node.
    """
    session.commit()  # aging is a change of its own
    let_age(context, session, run, issues.list_to_weigh(session, run))
    # Without its details nothing of a run can be rebuilt, so its refs are left to the repository.
    if run.details_removed_at is None:
        _roll_refs_forward(context, run, _bring_objects(context, session, run, checkpoint))
    _project_since(context, session, run, checkpoint)
    # Of a run without late events, nothing else would cause files and objects to be written again
    # after a power cut.
    mark = context.mirror.synced_event()
    if mark is None or runs.last_event_of(session, run.id) <= mark - EVENTS_UNDER_WAY:
        context.mirror.sync_unmarked()
    runs.mark_mirrored(session, run, context.node_id)


def _bring_objects(
    context: AppContext, session: RowSession, run: Run, checkpoint: Checkpoint
) -> Collection[str]:
    """Make the missing objects of a run; return the commits at which its branch may be."""
    if checkpoint.event_sequence is not None:
        with suppress(RepositoryUnusableError):  # what this node has is damaged
            at = add_objects(context, session, run)
            if at is not None:
                return [at]
    require_objects(context, session, run, durably=False)
    return [run.base_commit, *(commit.sha for commit in list_commits(session, run.id))]


def _roll_refs_forward(context: AppContext, run: Run, recorded: Collection[str]) -> None:
    wanted = [RecordedRef(branch_ref(run.run_id), run.head_commit, recorded)]
    wanted += [
        RecordedRef(snapshot_ref(phase.snapshot_tag), phase.snapshot_oid)
        for phase in runs.phases_of(run).values()
        if phase.snapshot_tag and phase.snapshot_oid
    ]
    if run.failure_code is not FailureCode.BRANCH_MOVED:
        context.repository.roll_refs_forward(wanted)
        return
    for each in wanted:
        with suppress(RefMovedError, RefNameTakenError):
            context.repository.roll_refs_forward([each])


def _project_since(
    context: AppContext, session: RowSession, run: Run, checkpoint: Checkpoint
) -> None:
    """Write the files that the changes since an event have written on their own nodes."""
    since = checkpoint.event_sequence
    if since is None or run.ended_at is not None or not context.mirror.has_run(run.run_id):
        project(context, session, run, phases=None, index=run_index(session, run))
        project_backlog(context, session)
        return
    told = runs.list_told(session, run.id, since)
    has_issues = bool(_OF_ISSUES & {kind for kind, _ in told})
    phases = {phase_id for _, phase_id in told if phase_id is not None}
    index = run_index(session, run) if has_issues else None
    project(context, session, run, phases=phases, index=index)
    # A cleanup that is done closes its issue.
    if has_issues or any(runs.get_phase(run, name).issue_key for name in phases):
        project_backlog(context, session)


def is_behind(context: AppContext, session: RowSession, run: Run) -> bool:
    """Return whether this node does not show the last change of a run yet.

    Costs a statement only if another node made that change.
    """
    return nodes.find_checkpoint(session, run, context.node_id).revision < run.revision


def project(
    context: AppContext,
    session: RowSession,
    run: Run,
    *,
    phases: Collection[str] | None,
    index: IssueIndexAnswer | None,
) -> None:
    """Write a run's files: of the phases named, or of all, with their tiers and the summary.

    A run that is over has all of them written, its record included; one whose details were removed
    has its summary alone.
    """
    if run.details_removed_at is not None:
        context.mirror.write_summary_alone(run_detail(session, run, detailed=()))
        return
    if run.ended_at is not None:
        context.mirror.write_files(*finished_files(session, run, run.statement_signatures))
        return
    report = run_detail(session, run, detailed=phases)
    documents = _strategy(session, run) if phases is None else {}
    context.mirror.write_run(report, phases=phases, index=index, documents=documents)


Signatures = Sequence[Mapping[str, str]]


def finished_files(
    session: RowSession, run: Run, signatures: Signatures | Callable[[bytes], Signatures] | None
) -> tuple[RunDetail, dict[str, bytes]]:
    """Return all files of a run that is over, by name, and the report that they were made of.

    `signatures` are those of its statement, or a function that makes them of the statement's
    payload; None for a run without a statement.
    """
    report = run_detail(session, run, detailed=None)
    files = _strategy(session, run)
    found = issues.list_run_issues(session, run.id)
    request = pull_request(
        report,
        reasons=report.promotion_reasons,
        warnings=report.promotion_warnings,
        open_issues=open_issues(session, run, found),
    )
    files[PULL_REQUEST] = pull_request_page(request)
    files |= render_run(report, None, index_answer(run, found))
    render = run_record(
        report,
        commits=list_recorded_commits(session, run.id),
        ci_runs=ci_runs.list_of_run(session, run.id),
        events=[_event(row) for row in runs.list_events(session, run.id, after=0, limit=None)],
    )
    if signatures is not None:
        payload = payload_of(json.loads(render(files)))
        made = signatures(payload) if callable(signatures) else signatures
        files = {STATEMENT: write_envelope(payload, made), **files}
    return report, {RECORD: render(files), **files}  # the summary stays the last


def _strategy(session: RowSession, run: Run) -> dict[str, bytes]:
    # Postgres keeps no order.
    return {strategy_name(run.strategy_version): encode_sorted(runs.get_strategy(session, run))}


def _event(row: EventRow) -> dict[str, Any]:
    document = event_document(row.sequence, runs.read_event(row), row.previous_hash)
    return {**document, "hash": row.hash}


def project_backlog(context: AppContext, session: RowSession) -> None:
    """Write the project's backlog as it stands now."""
    project_id = context.settings.project_id

    def read() -> list[BacklogEntryAnswer]:
        rows = issues.list_whole_backlog(session, project_id)
        return [derived(row, BacklogEntryAnswer.of) for row in rows]

    context.mirror.write_backlog(project_id, read)


def run_index(session: RowSession, run: Run) -> IssueIndexAnswer:
    """Return the run's issues by key."""
    return index_answer(run, issues.list_run_issues(session, run.id))


def index_answer(run: Run, found: Sequence[RunIssue]) -> IssueIndexAnswer:
    """Return issues, in the order in which they were first seen, by key."""
    return IssueIndexAnswer(run_id=run.run_id, issues_by_key=index_of(found))


def open_issues(
    session: RowSession, run: Run, found: Sequence[RunIssue] | None = None
) -> list[OpenIssue]:
    """Return the gravest keys that are open in a run, with what was said of them."""
    found = issues.list_run_issues(session, run.id) if found is None else found
    gravest = run_issues.open_issues(found, limit=TOP_OPEN_ISSUES)
    if not gravest:
        return []
    keys = [issue.issue_key for issue in gravest]
    texts = issues.list_descriptions(session, run.id, keys)
    return [replace(issue, description=texts.get(issue.issue_key)) for issue in gravest]


class Happened(NamedTuple):
    """The submissions to a phase, with the commits and CI's logs that came of them; its issues."""

    attempts: list[AttemptDetail]
    issues: list[Issue]


def run_detail(session: RowSession, run: Run, *, detailed: Collection[str] | None) -> RunDetail:
    """Return a run with attempts and issues of the `detailed` phases, None: of all."""
    by_name = runs.phases_of(run)
    wanted = [
        phase
        for name, phase in by_name.items()
        if (detailed is None or name in detailed) and run.event_sequence > 1
    ]
    found = happened_in(session, wanted) if wanted else {}
    tiers = []
    for tier in run.tiers:
        members = [_phase_detail(phase, found.get(phase.id)) for phase in tier.phases]
        tiers.append(TierDetail.of(tier, phases=members))
    return RunDetail.of(run, tiers=tiers, head_commit=run.work_commit)


def _phase_detail(phase: Phase, found: Happened | None) -> PhaseDetail:
    if found is None or not (found.attempts or found.issues):
        return derived(phase, _plain_detail)
    return _detail(phase, found.attempts, [derived(issue, PhaseIssue.of) for issue in found.issues])


def _plain_detail(phase: Phase) -> PhaseDetail:
    return _detail(phase, [], [])


def _detail(phase: Phase, attempts: list[AttemptDetail], found: list[PhaseIssue]) -> PhaseDetail:
    # The deadline of a lease moves with each heartbeat, which writes no file.
    deadline = None if phase.lease_id is not None else phase.deadline_at
    return PhaseDetail.of(phase, deadline_at=deadline, attempts=attempts, issues=found)


def happened_in(session: RowSession, phases: Sequence[Phase]) -> dict[int, Happened]:
    """Return what happened in each phase, by its key."""
    found = {phase.id: Happened([], []) for phase in phases}
    made, seen = submissions.list_attempts_and_issues(session, list(found))
    judged = [phase.id for phase in phases if phase.has_ci] if made else []
    ci_tails = ci_runs.list_tails(session, judged) if judged else {}
    for row, files, commits in made:
        found[row.phase_pk].attempts.append(
            AttemptDetail.of(
                row,
                commits=commits,
                files_changed=files,
                notes=row.body.get("notes") or row.body.get("review_notes"),
                log_tail=log_tail(
                    row.body, [tail for sha in commits for tail in ci_tails.get(sha, ())]
                ),
                # A new ticket has an order of its own, one from Postgres another: files have one.
                ticket=row.ticket and json.loads(canonical_json(row.ticket)),
                confidence=row.body.get("confidence"),
            )
        )
    for issue in seen:
        found[issue.phase_pk].issues.append(issue)
    return found
