"""A change of one run: lock, decide, commit, then branch and files. (01)

1. The run's advisory lock spans everything; its row is locked within the transaction.
2. The rules decide; git objects are written, which nothing names yet.
3. The refs are locked and checked, then one commit in Postgres: the moment it happened.
4. The refs move, the files are written, `mirrored_revision` catches up.

A failure before the commit leaves nothing; a failure after it is rolled forward by whoever comes
next: the next request of the run, the periodic job, or the next start.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Final

import structlog
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from ..domain import judging
from ..domain.course import Course
from ..domain.errors import AutopackError, UnavailableError
from ..domain.events import SUPERVISOR
from ..domain.naming import (
    branch_ref,
    record_folder,
    record_message,
    snapshot_message,
    snapshot_name,
    snapshot_ref,
)
from ..domain.reports import RunIndex, RunReport
from ..domain.run import FailureCode, Verdict
from ..domain.run_issues import RunIssue, index_of
from ..domain.states import PhaseStatus, RunStatus
from ..domain.steering import pass_time
from ..domain.values import CiMode, CiProfile
from ..domain.work import CommitKind
from ..gitrepo import (
    CollisionError,
    RefMovedError,
    RefNameTakenError,
    RefUpdate,
    RepositoryUnusableError,
)
from ..jobs.queue import defer
from ..mirror import RECORD, patch_name
from ..models import CiRun, Commit, Phase, Run
from ..store import ci_runs, issues, leases, runs, submissions
from .house import House
from .projection import (
    finished_files,
    is_branch_elsewhere,
    project,
    project_backlog,
    roll_forward,
)
from .pushes import want_push
from .rebuilding import require_objects

logger = structlog.get_logger(__name__)

# Patches on the branch beyond this are in the record by their hash alone.
MAX_RECORDED_PATCH_BYTES: Final = 16_000_000
CI_QUEUE: Final = "ci"
CI_TASK: Final = "run_ci"


class ProjectionLaggingError(UnavailableError):
    """The change is recorded, but branch or files do not show it yet."""

    code = "projection_lagging"


class SupersededError(UnavailableError):
    """What is recorded here would not reach the branches of the clone that is served now."""

    code = "superseded"


class OutcomeUnknownError(UnavailableError):
    """Nobody can say yet whether the change happened."""

    code = "outcome_unknown"


class RunChange:
    """One change of one run, under its lock."""

    def __init__(self, house: House, session: Session, run: Run, actor: str) -> None:
        self.house = house
        self.session = session
        self.run = run
        self.now = house.now_in(run)
        self._before = runs.read_state(run)
        self.course = Course(self._before, self.now, actor)
        self.phases = runs.phases_of(run)
        self.touched: set[str] = set()
        self.is_index_touched = False
        self._issues: list[RunIssue] | None = None
        self.is_backlog_touched = False
        self._old_head = run.head_commit
        self._commits: list[Commit] = []
        self._is_concluded = False
        self._has_ended = False
        self._is_ci_waiting = False
        self._files: tuple[RunReport, Mapping[str, bytes]] | None = None
        self._updates: list[RefUpdate] = []
        self._revision = run.revision

    def phase(self, phase_id: str) -> Phase:
        return runs.get_phase(self.run, phase_id)

    def index(self) -> RunIndex:
        """The run's issues by key, as this change leaves them; ask when it is concluded."""
        return RunIndex(run_id=self.run.run_id, issues_by_key=index_of(self.issues()))

    def issues(self) -> list[RunIssue]:
        """The run's issues as this change has them so far, read once."""
        if self._issues is None:
            self.session.flush()
            self._issues = issues.list_run_issues(self.session, self.run.id)
        return self._issues

    def forget_issues(self) -> None:
        """Read the issues anew when they are asked for: they were changed."""
        self._issues = None

    @property
    def head(self) -> str:
        """The branch's head as this change has it so far."""
        return self._commits[-1].sha if self._commits else self._old_head

    def add_commit(
        self,
        kind: CommitKind,
        tree: str,
        message: str,
        *,
        phase: Phase | None = None,
        patch_pk: int | None = None,
        is_merged: bool = False,
        has_own_difference: bool = False,
    ) -> Commit:
        """Put a commit on the branch as this change will leave it; no ref moves yet.

        A commit that no submitted patch gives as it was sent (`has_own_difference`: the patch was
        mended) keeps its own difference, so that it can be made again.
        """
        repository, parents = self.house.repository, [self.head]
        has_own_difference = has_own_difference or is_merged or kind is CommitKind.RECORD
        signature = None
        if kind is CommitKind.RECORD:
            signature = repository.sign_commit(
                parents=parents, tree=tree, message=message, at=self.now
            )
        sha = repository.write_commit(
            parents=parents, tree=tree, message=message, at=self.now, signature=signature
        )
        commit = Commit(
            run_pk=self.run.id,
            kind=kind,
            sha=sha,
            tree=tree,
            parent=self.head,
            message=message,
            committed_at=self.now,
            phase_pk=phase.id if phase else None,
            patch_pk=patch_pk,
            is_merged=is_merged,
            signature=signature,
            difference=repository.diff(self.head, sha) if has_own_difference else None,
        )
        self._commits.append(commit)
        return commit

    def discard_commits(self) -> None:
        """Forget the commits added: of several patches all are applied or none."""
        self._commits.clear()

    def conclude(self) -> None:
        """Let everything follow from what was decided, and write it to the tables."""
        if self._is_concluded:
            return
        self._is_concluded = True
        self._undo_failed_phases()
        before = {phase.phase_id: phase for phase in self._before.phases}
        in_ci = {name for name, phase in before.items() if phase.state is PhaseStatus.CI_RUNNING}
        in_ci |= self._request_ci(in_ci)
        state, events = self.course.finish()
        self._give_up_ci(in_ci)
        self.touched |= {
            phase.phase_id for phase in state.phases if phase != before[phase.phase_id]
        }
        ended = [
            lease_id
            for phase in state.phases
            if (lease_id := before[phase.phase_id].lease_id) and lease_id != phase.lease_id
        ]
        if ended:
            leases.end_leases(self.session, ended, self.now)
        for phase in state.phases:
            held = before[phase.phase_id].pending_submission_id
            if held is not None and held != phase.pending_submission_id:
                submissions.discard_pending(self.session, held)
        self._has_ended = state.state.is_final and not self.run.state.is_final
        self._is_ci_waiting = any(
            phase.state is PhaseStatus.CI_RUNNING
            and before[phase.phase_id].state is not PhaseStatus.CI_RUNNING
            for phase in state.phases
        )
        runs.write_state(self.run, state, self._before)
        completed = [
            self.phases[phase.phase_id]
            for phase in state.phases
            if phase.state is PhaseStatus.COMPLETE
            and before[phase.phase_id].state is not PhaseStatus.COMPLETE
        ]
        self._take_snapshots(completed)
        self._resolve_cleaned(completed)
        self._place_commits(self._commits)
        runs.add_events(self.session, self.run, events)
        if events or self.touched or self._commits:
            self.run.revision = self._revision + 1
            self.run.updated_at = self.now
            if self._has_ended or (self.course.is_over and self._commits):
                self._record()
            self._want_push()
        if self._commits:
            branch = branch_ref(self.run.run_id)
            self._updates.insert(0, RefUpdate(branch, self.head, self._old_head))

    def commit(self) -> None:
        """Commit to Postgres, then let branch and files follow."""
        self.conclude()
        self.session.flush()
        if self._updates:
            with self.house.repository.prepare_refs(self._updates) as refs:
                commit_for_good(self.session)
                following(self.run, refs.commit)
        else:
            commit_for_good(self.session)
        if self.run.revision != self._revision:
            following(self.run, self._write_files)

    def _write_files(self) -> None:
        if self._files is not None:
            self.house.mirror.write_files(*self._files)
        else:
            self._project()
        if self.is_backlog_touched:
            project_backlog(self.house)
        runs.mark_mirrored(self.session, self.run.id, self.run.revision)

    def _project(self) -> None:
        # Somebody may have removed the run's files: then all of them are written again.
        is_whole = self.house.mirror.has_run(self.run.run_id)
        project(
            self.house,
            self.session,
            self.run,
            phases=self.touched if is_whole else None,
            index=self.index() if self.is_index_touched or not is_whole else None,
        )

    def _want_push(self) -> None:
        """Let the remote follow: at a snapshot, at the end, and when a finished run changes. (06)

        The wish is part of this change; whoever pushes does so after it, elsewhere.
        """
        has_snapshot = any(update.ref.startswith("refs/tags/") for update in self._updates)
        is_wanted = (
            self.house.repository.remote is not None
            and self.run.failure_code is not FailureCode.BRANCH_MOVED
            and (
                has_snapshot
                or self._has_ended
                or self._is_ci_waiting
                or (self.course.is_over and bool(self._commits))
            )
        )
        if is_wanted:
            want_push(self.session, self.run, self.now)

    def _place_commits(self, commits: Sequence[Commit]) -> None:
        if not commits:
            return
        position = submissions.next_position(self.session, self.run.id)
        for offset, commit in enumerate(commits):
            commit.position = position + offset
        self.session.add_all(commits)
        self.run.head_commit = commits[-1].sha
        if commits[-1].kind is not CommitKind.RECORD:
            self.run.work_commit = self.run.head_commit

    def _record(self) -> None:
        """Let the branch end in a commit of the run's files. (06)

        It is what may be promoted, so a run succeeds with it or not at all; a failed one may end
        where no commit can be made. A branch that somebody else moved gets none.
        """
        run, repository = self.run, self.house.repository
        if (
            not self.house.settings.commit_run_record
            or run.failure_code is FailureCode.BRANCH_MOVED
        ):
            return
        self.session.flush()
        report, files = finished_files(self.session, run)
        patches = submissions.list_accepted_patches(self.session, run.id, MAX_RECORDED_PATCH_BYTES)
        recorded = {**files, **{patch_name(name): content for name, content in patches.items()}}
        message = record_message(
            run.run_id,
            run.state,
            hashlib.sha256(files[RECORD]).hexdigest(),
            # It is the head that a push of several commits shows to CI.
            is_strict=any(
                phase.ci_profile is CiProfile.STRICT and phase.state is PhaseStatus.COMPLETE
                for phase in self.course.run.phases
            ),
        )
        try:
            tree = repository.put_folder(self.head, record_folder(run.run_id), recorded)
            commit = self.add_commit(CommitKind.RECORD, tree, message)
        except (RepositoryUnusableError, CollisionError) as error:
            if isinstance(error, RepositoryUnusableError) and run.state is RunStatus.DONE_SUCCESS:
                raise
            logger.warning("run_not_recorded", run_id=run.run_id, why=str(error))
            return
        self._place_commits([commit])
        self._files = report, files

    def _undo_failed_phases(self) -> None:
        """Restore the tree that a failed phase started from, by a commit. (02 §2)"""
        repository = self.house.repository
        for phase in self.course.run.phases:
            row = self.phases[phase.phase_id]
            has_just_failed = (
                phase.state is PhaseStatus.FAILED and row.state is not PhaseStatus.FAILED
            )
            if not has_just_failed or phase.start_commit in (None, self.head):
                continue
            tree = repository.tree_of(str(phase.start_commit))
            if tree == repository.tree_of(self.head):
                continue
            message = (
                f"Undo phase {phase.phase_id}\n\n"
                f"It failed, so the tree is again that of {phase.start_commit}.\n\n"
                f"Autopack-Run: {self.run.run_id}\nAutopack-Phase: {phase.phase_id}\n"
            )
            commit = self.add_commit(CommitKind.UNDO, tree, message, phase=row)
            self.course.change_run(head_commit=commit.sha)
            self.course.note(
                "PhaseUndone", phase_id=phase.phase_id, data={"commit": commit.sha, "tree": tree}
            )

    def _resolve_cleaned(self, completed: Sequence[Phase]) -> None:
        """Resolve the aged issues whose cleanup CI has found good. (02 §3)"""
        keys = [
            phase.issue_key
            for phase in completed
            if phase.issue_key is not None and phase.verdict is Verdict.GREEN
        ]
        if keys:
            issues.resolve_cleaned(self.session, self.run.project_id, keys, self.now)
            self.is_backlog_touched = True

    def request_ci_run(self, phase_id: str, *, at: datetime | None = None) -> None:
        """Let our own CI judge what a phase waits to have judged, in a worker, after this change.

        Not before `at`.
        """
        phase = self.course.phase(phase_id)
        row = self.phases[phase_id]
        commit = phase.commit or self.head
        run = ci_runs.add_ci_run(
            self.session,
            CiRun(
                run_pk=self.run.id,
                phase_pk=row.id,
                commit_sha=commit,
                profile=phase.ci_profile,
                attempt=ci_runs.next_attempt(self.session, row.id, commit),
                requested_at=self.now,
            ),
        )
        judging.request_run(self.course, phase_id, run.id, run.attempt)
        defer(
            self.session,
            CI_TASK,
            queue=CI_QUEUE,
            arguments={"ci_run_id": run.id},
            queueing_lock=f"{CI_TASK}:{run.id}",
            at=at,
        )

    def _request_ci(self, judged: set[str]) -> set[str]:
        """Have judged what has just come to CI, where CI is our own; return those phases."""
        come = {
            phase.phase_id
            for phase in self.course.run.phases
            if phase.state is PhaseStatus.CI_RUNNING and phase.phase_id not in judged
        }
        if come and runs.get_strategy(self.session, self.run)["ci"]["mode"] == CiMode.LOCAL:
            for phase_id in come:
                self.request_ci_run(phase_id)
        return come

    def _give_up_ci(self, phase_ids: set[str]) -> None:
        """End the runs of CI of those phases that wait for none any more."""
        left = [
            self.phases[phase_id].id
            for phase_id in phase_ids
            if self.course.phase(phase_id).state is not PhaseStatus.CI_RUNNING
        ]
        if left:
            for run in ci_runs.list_under_way(self.session, left):
                run.ended_at = max(self.now, run.started_at or self.now)
                run.reason = "nobody waits for it any more"

    def _take_snapshots(self, completed: Sequence[Phase]) -> None:
        """Tag the head for each phase that has just completed. (02 §6)"""
        for phase in completed:
            name = snapshot_name(self.run.run_id, phase.tier_id, phase.phase_id)
            message = snapshot_message(self.run.run_id, phase.phase_id, phase.name)
            repository, head = self.house.repository, self.head
            signature = repository.sign_tag(name=name, commit=head, message=message, at=self.now)
            phase.snapshot_tag = name
            phase.snapshot_commit = head
            phase.snapshot_signature = signature
            phase.snapshot_oid = repository.write_tag(
                name=name, commit=head, message=message, at=self.now, signature=signature
            )
            self.run.last_snapshot = name
            self._updates.append(RefUpdate(snapshot_ref(name), phase.snapshot_oid, None))


def following(run: Run, step: Callable[[], None]) -> None:
    """Do a step that comes after the commit: what fails in it is rolled forward later.

    Raises ProjectionLaggingError.
    """
    try:
        step()
    except Exception as error:  # whatever it is, the change is recorded
        why = error.detail if isinstance(error, AutopackError) else type(error).__name__
        logger.warning("projection_lags", run_id=run.run_id, why=why, exc_info=True)
        raise ProjectionLaggingError(
            f"run '{run.run_id}' is recorded at revision {run.revision}, but branch or files do "
            f"not show it yet ({why}); they will as soon as they can, so do not send this again"
        ) from error


def commit_for_good(session: Session) -> None:
    """Commit. Raises OutcomeUnknownError when the database goes away in the midst of it."""
    try:
        session.commit()
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise OutcomeUnknownError(
            "the database went away during the commit, so this may be recorded or not; send the "
            "same request again, with the same Idempotency-Key if it had one"
        ) from error


def require_place(house: House) -> None:
    """See that the database still belongs to this clone. Raises SupersededError."""
    if house.superseded.is_set():
        raise SupersededError("another clone's service has taken over this database; stop this one")


@contextmanager
def locked_session(house: House, run_id: str, *, is_waiting: bool = True) -> Iterator[Session]:
    """Hold a run's lock, whether there is such a run or not. Raises SupersededError."""
    require_place(house)
    with (
        house.engine.connect() as connection,
        Session(bind=connection, expire_on_commit=False) as session,
        runs.run_lock(session, run_id, is_waiting=is_waiting),
    ):
        yield session


@contextmanager
def changing(
    house: House, run_id: str, *, actor: str = SUPERVISOR, is_waiting: bool = True
) -> Iterator[RunChange]:
    """Hold a run's lock, bring the run up to date, and commit what the body decides.

    An exception in the body leaves everything as it was. Raises RunBusyError when somebody else
    holds the run and we are not to wait.
    """
    with locked_session(house, run_id, is_waiting=is_waiting) as session:
        run = up_to_date(house, session, run_id)
        change = RunChange(house, session, run, actor)
        try:
            yield change
        except RepositoryUnusableError:
            session.rollback()
            _heal(house, session, run_id)
            raise
        with _ending_if_moved(house, session, run_id, is_raised=True):
            change.commit()


def up_to_date(house: House, session: Session, run_id: str) -> Run:
    """Roll forward what lags and let time pass; both are changes of their own.

    Raises RefMovedError when this is how a stranger's hand on the branch is found.
    """
    run = runs.lock_run(session, run_id)
    is_lagging = run.mirrored_revision < run.revision
    if is_lagging or (run.ended_at is None and is_branch_elsewhere(house, run_id, run.head_commit)):
        with _ending_if_moved(house, session, run_id, is_raised=not is_lagging):
            _roll_forward(house, session, run, is_needed=is_lagging)
        session.commit()  # whatever the request comes to, this is done
        run = runs.lock_run(session, run_id)
    if _is_overdue(run, house.now_in(run)):
        change = RunChange(house, session, run, SUPERVISOR)
        pass_time(change.course)
        with _ending_if_moved(house, session, run_id, is_raised=True):
            change.commit()
        session.commit()
        run = runs.lock_run(session, run_id)
    return run


def _heal(house: House, session: Session, run_id: str) -> None:
    """Make lost objects again, so that the request which missed them succeeds when sent again."""
    try:
        require_objects(house, session, runs.lock_run(session, run_id))
    except UnavailableError as error:
        logger.warning("objects_not_rebuilt", run_id=run_id, why=error.detail)


def _roll_forward(house: House, session: Session, run: Run, *, is_needed: bool) -> None:
    """Roll forward. Where nothing lags, a repository that cannot follow stops no other work."""
    try:
        roll_forward(house, session, run)
    except UnavailableError as error:
        if is_needed:
            raise
        logger.warning("repository_lags", run_id=run.run_id, why=error.detail)


def _is_overdue(run: Run, now: datetime) -> bool:
    if run.ended_at is not None:
        return False
    deadlines = [run.deadline_at]
    for tier in run.tiers:
        deadlines += [phase.deadline_at for phase in tier.phases if phase.deadline_at]
    return min(deadlines) <= now


@contextmanager
def _ending_if_moved(
    house: House, session: Session, run_id: str, *, is_raised: bool
) -> Iterator[None]:
    """End a run whose branch or tags a stranger moved; nothing of theirs is overwritten."""
    try:
        yield
    except (RefMovedError, RefNameTakenError) as error:
        session.rollback()
        change = RunChange(house, session, runs.lock_run(session, run_id), SUPERVISOR)
        change.course.end_failed(FailureCode.BRANCH_MOVED, error.detail)
        change.touched |= change.phases.keys()  # what lagged before has to be written as well
        change.is_index_touched = change.is_backlog_touched = True
        change.commit()
        session.commit()
        if is_raised:
            raise
