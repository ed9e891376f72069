"""A change of one run while it is made: its events, and its new git objects.

A use case opens a change (opening.py), and then reads weigh → act → decide → settle:

    action = weigh_…(change.state, given, change.now)  # what git must do
    …                                                  # git runs; no ref moves yet
    change.decide(given)                               # the events, and the state from them
    settle(change)                                     # consequences, in git and in the tables

When the change is closed, it is committed to Postgres, and then branch and files follow
(opening.py, after_commit.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Final

from ..domain.debt import Closing
from ..domain.deciding import Decided, Given, decide, touches_issues
from ..domain.errors import ConflictError
from ..domain.events import Event, IssueRecorded, PhaseEvent
from ..domain.issues import IssueReport
from ..domain.outcomes import CommitKind
from ..domain.retention import DetailsRemovedError
from ..domain.run import PhaseState
from ..domain.run_issues import RunIssue
from ..domain.sightings import Sighting
from ..gitrepo import RefUpdate
from ..models import BacklogEntry, Commit, Issue, Phase, Run
from ..store import issues, runs
from ..store.commits import COMMITS
from ..store.session import RowSession
from ..views.issues import IssueIndexAnswer
from ..views.runs import RunDetail
from .context import AppContext
from .projection import index_answer, run_index

# Commits that no patch of their own run produces.
_OWN_DIFFERENCE: Final = frozenset({CommitKind.RECORD, CommitKind.REPLAY})


class RunImportedError(ConflictError):
    """The run came from another service, which alone may change or promote it."""

    code = "run_imported"


def require_details(run: Run) -> None:
    """Check that a run is this service's, and has all that a change of it needs.

    Raises RunImportedError, DetailsRemovedError.
    """
    if run.imported_at is not None:
        raise RunImportedError(
            f"run '{run.run_id}' was imported at {run.imported_at:%Y-%m-%d %H:%M} UTC and can only"
            " be read: change it at the service that built it"
        )
    if run.details_removed_at is not None:
        raise DetailsRemovedError.of(run.run_id, run.details_removed_at)


class RunChange:
    """One change of one run, under its lock.

    `before` is the run's state before the change, `state` the one after the events so far. `run`
    and `phases` are its rows, which are updated when the change is settled.
    """

    def __init__(self, context: AppContext, session: RowSession, run: Run, actor: str) -> None:
        self.context: Final = context
        self.session: Final = session
        self.run: Final = run
        self.actor = actor
        self.now: Final = context.now_in(run)
        self.phases: Final = runs.phases_of(run)
        self.before = self.state = runs.read_state(run)
        self.events: list[Event] = []
        self.commits: list[Commit] = []
        self.objects: Final = context.repository.new_objects()  # installed before the commit
        self.ref_updates: list[RefUpdate] = []
        self.revision_before: Final = run.revision
        self.is_new_branch = False  # the branch is created by this change
        self.reports: list[tuple[str, IssueReport]] = []
        self.known_issues: dict[tuple[str, str], Issue] = {}  # the rows of reported keys, by place
        # Keys of the backlog that this change closes: the phase that cleaned up, and the proof.
        self.cleaned: dict[str, tuple[str, Closing]] = {}
        self.backlog_entries: dict[str, BacklogEntry] = {}  # of the reports, after the commit
        self.placed_commits = 0
        self.record: tuple[RunDetail, Mapping[str, bytes]] | None = None
        self.first_head: Final = run.head_commit
        self._named_phases: set[str] = set()
        self._is_backlog_touched = False
        self._has_issues = False
        self._index: tuple[Mapping[tuple[str, str], Sighting], IssueIndexAnswer] | None = None

    def name_agent(self, agent: str | None) -> None:
        """Let the events name an agent without a key by the name that it gives itself."""
        self.actor = self.context.caller.named(agent).actor

    def phase(self, phase_id: str) -> Phase:
        """Return a phase's row. Raises NotFoundError."""
        return runs.get_phase(self.run, phase_id)

    def phase_state(self, phase_id: str) -> PhaseState:
        """Return a phase's state after the events so far. Raises NotFoundError."""
        return self.state.phase(phase_id)

    def decide(self, given: Given) -> None:
        """Let the rules decide, and update the state. A refusal changes nothing."""
        self.prepare(given)
        self.take(decide(self.state, given, self.now, self.actor))

    def take(self, decided: Decided) -> None:
        """Take over what the rules have decided about the state so far."""
        self.state = decided.state
        self.events += decided.events

    def prepare(self, given: Given) -> None:
        """Read the run's issues if the decision about this input concerns them."""
        if touches_issues(given):
            self.read_issues()

    def read_issues(self) -> None:
        """Read the run's issues, once."""
        if not self._has_issues:
            self._know(issues.list_run_issues(self.session, self.run.id))

    def read_reported(self, phase: Phase, keys: Sequence[str]) -> Mapping[str, datetime]:
        """Read the run's issues, and what is known of keys that are reported in a phase.

        Returns since when a key needs cleanup, for each that does.
        """
        run = self.run
        known = issues.read_known(self.session, run.project_id, run.id, phase.id, keys)
        if not self._has_issues:
            self._know(known.of_run)
        self.known_issues |= {(phase.phase_id, row.issue_key): row for row in known.rows}
        return known.aged

    def _know(self, found: Sequence[RunIssue]) -> None:
        self._has_issues = True
        self.before, self.state = self.before.with_issues(found), self.state.with_issues(found)

    def index(self) -> IssueIndexAnswer:
        """Return the run's issues by key, after the settled change."""
        if not self._has_issues:
            return run_index(self.session, self.run)
        entries = self.state.issues
        if self._index is None or self._index[0] is not entries:  # the answer and a file show it
            found = [self._run_issue(each) for each in entries.values()]
            self._index = entries, index_answer(self.run, found)
        return self._index[1]

    def _run_issue(self, entry: Sighting) -> RunIssue:
        """Return an entry with its place in the run; new entries of this change have none yet."""
        if isinstance(entry, RunIssue):
            return entry
        phase = self.phase(entry.phase_id)
        place = (entry.phase_id, entry.issue_key)
        return RunIssue(
            **{each.name: getattr(entry, each.name) for each in fields(entry)},
            category=next(
                report.category
                for phase_id, report in self.reports
                if (phase_id, report.issue_key) == place
            ),
            tier_id=phase.tier_id,
            tier_index=phase.tier_index,
            phase_index=phase.phase_index,
        )

    def touch(self, phase_id: str) -> None:
        """Mark a phase's file to be written, although no event names the phase."""
        self._named_phases.add(phase_id)

    def touch_backlog(self) -> None:
        """Mark the project's backlog to be written, although no issue was reported."""
        self._is_backlog_touched = True

    @property
    def sightings(self) -> list[IssueRecorded]:
        """The reports that the project's backlog counts."""
        return [
            event
            for event in self.events
            if isinstance(event, IssueRecorded) and not event.is_expected
        ]

    @property
    def touches_backlog(self) -> bool:
        return self._is_backlog_touched or bool(self.cleaned or self.sightings)

    @property
    def touched_phases(self) -> set[str]:
        """The phases whose files must be written."""
        told = {event.phase_id for event in self.events if isinstance(event, PhaseEvent)}
        return told | self._named_phases

    @property
    def head(self) -> str:
        """The branch's head after this change so far."""
        return self.commits[-1].sha if self.commits else self.first_head

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
        """Add a commit to the branch of this change; no ref moves yet.

        A commit that no submitted patch produces as it was sent (`has_own_difference`: the patch
        was repaired) stores its own diff, so that it can be rebuilt.
        """
        repository, parents = self.context.repository, [self.head]
        has_own_difference = has_own_difference or is_merged or kind in _OWN_DIFFERENCE
        signature = None
        if kind is CommitKind.RECORD:
            signature = repository.sign_commit(
                parents=parents, tree=tree, message=message, at=self.now
            )
        sha = repository.write_commit(
            parents=parents,
            tree=tree,
            message=message,
            at=self.now,
            signature=signature,
            into=self.objects,
        )
        if has_own_difference:
            self.objects.install()  # git makes the difference
        commit = COMMITS.new(
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
            # None where nothing differs: a commit that is made again on a base that has its change.
            difference=(repository.diff(self.head, sha) or None) if has_own_difference else None,
        )
        self.commits.append(commit)
        return commit

    def drop_commits(self, kept: int) -> None:
        """Drop the commits after the first `kept`: patches are applied all or none."""
        del self.commits[kept:]
