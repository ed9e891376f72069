"""A recorded run, decided again under another strategy.

The inputs are read from the events: results, issues, an operator's commands, the clock. What git
answered about a patch stays as recorded. Everything else is decided again, by the same `decide` and
`conclude` as the first time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from itertools import groupby
from typing import TypeVar

from . import events as e
from .building import BuilderResult, PatchAction
from .capacity import Unavailable
from .claiming import LeaseLostError, PhaseClaim, WorkAsked
from .deadlines import Lapse, Tick
from .deciding import Given, Undone, conclude, decide, weigh_auditor_result, weigh_builder_result
from .errors import AutopackError
from .issue_rules import IssueSeen, IssuesSeen
from .issues import base_severity
from .judging import CiRunBegun, CiRunWanted, CiVerdict
from .operating import CANCELLED, BranchMoved, Cancel, RollbackCommit, StatusByHand
from .order import after_it, has_commits, to_undo
from .patches import AppliedPatch, PendingPatch, RefusedPatch
from .rebasing import Rebase, RebasedPatch
from .reviewing import RefusedReview, Review, ReviewWish
from .run import FailureCode, RunState
from .states import PhaseStatus, RunStatus
from .terms import Role, Severity

# Caps of the run that a claim or an attempt's tokens can use up.
_CAPS = (FailureCode.TOKEN_CAP, FailureCode.COST_CAP)
Kind = TypeVar("Kind", bound=e.Event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """The first difference between the backtest and the record."""

    sequence: int
    at: datetime
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestOutcome:
    """The result of a recorded run under another strategy."""

    run: RunState
    parting: Parting | None
    skipped_inputs: int
    assumed_patches: int


def decide_again(
    run: RunState, events: Sequence[tuple[int, e.Event]], major_categories: Collection[str]
) -> BacktestOutcome:
    """Decide a recorded run again, from its starting state under another strategy. (rules §9)

    `events` are the record's, each with its sequence, in order. The events of one change have one
    time.
    """
    tested = _Backtester(run, major_categories)
    recorded = _Recorded(run.state, {phase.phase_id: phase.state for phase in run.phases})
    parting: Parting | None = None
    for at, group in groupby(events, key=lambda numbered: numbered[1].at):
        numbered = [each for each in group if not isinstance(each[1], e.RunStarted)]
        if not numbered:
            continue
        change = [event for _, event in numbered]
        tested.take(change)
        recorded.read(change)
        detail = recorded.difference(tested.run)
        if detail is not None and parting is None:
            parting = Parting(sequence=numbered[0][0], at=at, detail=detail)
    return BacktestOutcome(
        run=tested.run,
        parting=parting,
        skipped_inputs=tested.skipped_inputs,
        assumed_patches=tested.assumed_patches,
    )


@dataclass(slots=True)
class _Recorded:
    """The states according to the events that have been read so far."""

    run: RunStatus
    phases: dict[str, PhaseStatus]

    def read(self, events: Sequence[e.Event]) -> None:
        for event in events:
            match event:
                case e.PhaseMoved():
                    self.phases[event.phase_id] = event.STATE
                case e.RunStateChanged() | e.RunEnded():
                    self.run = event.to_state

    def difference(self, run: RunState) -> str | None:
        """Return where the backtest differs in its states; None: nowhere."""
        for phase in run.phases:
            recorded = self.phases[phase.phase_id]
            if recorded is not phase.state:
                why = f" ({phase.failure_reason})" if phase.failure_reason else ""
                return f"phase '{phase.phase_id}' was {recorded} and would be {phase.state}{why}"
        if self.run is not run.state and self.run.is_final != run.is_over:
            why = f" ({run.failure_reason})" if run.failure_reason else ""
            return f"the run was {self.run} and would be {run.state}{why}"
        return None


def _rebase(events: Sequence[e.PatchReplayed]) -> Rebase:
    return Rebase(
        from_run="",
        patches=tuple(
            RebasedPatch(**{each.name: getattr(event, each.name) for each in fields(RebasedPatch)})
            for event in events
        ),
    )


@dataclass(slots=True)
class _Backtester:
    run: RunState
    major_categories: Collection[str]
    skipped_inputs: int = 0
    assumed_patches: int = 0

    def take(self, events: Sequence[e.Event]) -> None:
        """Apply the clock, then decide the inputs of one recorded change."""
        now, before = events[0].at, self.run
        self.run = decide(before, Tick(), now).state
        self._conclude(before, now)
        before = self.run
        try:
            for given in self._given(events, now):
                self.run = decide(self.run, given, now, events[0].actor).state
        except AutopackError:  # refused under these rules
            self.run = before
            self.skipped_inputs += 1
            return
        if self.run.is_parallel:
            self._undo(before, now)
        self._conclude(before, now)

    def _undo(self, before: RunState, now: datetime) -> None:
        """Take commits off the branch as the service does; all patches apply again. (rules §2.7)"""
        for phase in to_undo(before, self.run):
            mine = self.run.phase(phase.phase_id)
            if has_commits(mine) and (not self.run.is_over or mine.state.is_final):
                again = tuple(
                    (other.phase_id, _assumed(0, number))
                    for number, other in enumerate(after_it(self.run, mine))
                )
                undone = Undone(phase_id=mine.phase_id, commit="assumed", tree="", again=again)
                self.run = decide(self.run, undone, now).state

    def _conclude(self, before: RunState, now: datetime) -> None:
        if self.run != before:
            self.run = conclude(before, self.run, now).state

    def _given(self, events: Sequence[e.Event], now: datetime) -> Iterator[Given]:
        """Read the inputs of a change from its events."""
        builder = _first(events, e.BuilderResultReceived)
        auditor = _first(events, e.AuditorResultReceived)
        granted = _first(events, e.LeaseGranted)
        lapsed = _first(events, e.LeaseLapsed) or _first(events, e.AuditLapsed)
        verdict = _first(events, e.CiVerdictReceived)
        unavailable = _first(events, e.AgentUnavailable)
        if unavailable is not None:
            yield self._unavailable(unavailable)
        elif builder is not None:
            yield self._builder_result(builder, events, now)
        elif auditor is not None:
            yield self._review(auditor, events, now)
        elif granted is not None:
            yield PhaseClaim(
                phase_id=granted.phase_id,
                role=granted.role,
                agent=granted.agent,
                lease_id=granted.lease_id,
                account=granted.account,
                model=granted.model,
                deadline_at=None,
            )
        elif lapsed is not None and lapsed.lease_id is not None:
            yield Lapse(
                phase_id=lapsed.phase_id,
                lease_id=lapsed.lease_id,
                tokens_reported=lapsed.tokens_reported,
                cost_reported=lapsed.cost_reported_usd,
            )
        elif verdict is not None:
            yield self._verdict(verdict, events)
        else:
            yield from self._other(events)
        yield from self._ci_runs(events)

    def _other(self, events: Sequence[e.Event]) -> Iterator[Given]:
        issues = self._issues(events)
        wish = _first(events, e.ReviewRequested)
        rolled_back = _first(events, e.RunRolledBack)
        ended = _first(events, e.RunEnded)
        rebased = [each for each in events if isinstance(each, e.PatchReplayed)]
        if rebased:
            yield _rebase(rebased)
        elif issues:
            yield IssuesSeen(phase_id=_phase_of(events, e.IssueRecorded), issues=issues)
        elif wish is not None:
            yield ReviewWish(wish.phase_id)
        elif rolled_back is not None:
            yield RollbackCommit(
                to_phase=rolled_back.phase_id,
                commit=rolled_back.commit,
                reason=rolled_back.reason or "",
            )
        elif e.is_by_hand(events[0].actor):
            yield from self._by_hand(events, ended)
        elif ended is not None and ended.failure_code is FailureCode.BRANCH_MOVED:
            yield BranchMoved(ended.reason or "")
        elif ended is not None and ended.failure_code in _CAPS:
            for role in Role:  # an agent asked for work, and no budget was left for it
                if not self.run.is_over:
                    yield WorkAsked(role)

    def _by_hand(self, events: Sequence[e.Event], ended: e.RunEnded | None) -> Iterator[Given]:
        code = ended.failure_code if ended is not None else None
        if ended is not None and code is FailureCode.CANCELLED:
            # Earlier versions wrote "cancelled: …".
            why = (ended.reason or "").removeprefix(CANCELLED).removeprefix("cancelled")
            yield Cancel(why.removeprefix(": "))
            return
        counted = _first(events, e.TokensCounted)
        # Where the tokens ended the run, the phase moved because of that end, not by the operator.
        moved = _first(events, e.PhaseMoved) if code not in _CAPS else None
        known = moved or counted
        if known is not None:
            yield StatusByHand(
                phase_id=known.phase_id,
                wanted=moved.STATE if moved else self.run.phase(known.phase_id).state,
                tokens=counted.tokens if counted else 0,
            )

    def _unavailable(self, event: e.AgentUnavailable) -> Unavailable:
        """Return that an agent could not work, if it has the phase under these rules too."""
        if self.run.phase(event.phase_id).lease_id != event.lease_id:
            raise LeaseLostError(f"lease {event.lease_id} is not held here")
        return Unavailable(
            phase_id=event.phase_id,
            role=event.role,
            reason=event.reason or "",
            retry_at=event.retry_at,
            account=event.account,
            tokens=event.tokens,
            cost=event.cost_usd,
            is_measured=event.is_measured,
        )

    def _builder_result(
        self, event: e.BuilderResultReceived, events: Sequence[e.Event], now: datetime
    ) -> BuilderResult:
        result = BuilderResult(
            phase_id=event.phase_id,
            submission_id=event.submission_id,
            attempt=event.attempt,
            status=event.status,
            tokens=event.tokens_used,
            cost=event.cost_usd,
            patch_sha256=event.patch_sha256,
            model=event.model,
            is_measured=event.is_measured,
            issues=self._issues(events),
        )
        action = weigh_builder_result(self.run, result, now, event.actor)
        refused = _first(events, e.PatchRefused)
        if action is PatchAction.NOTHING:
            return result
        if refused is not None:
            is_forgiven = _first(events, e.TryReturned) is not None
            return replace(result, patch=RefusedPatch(refused.reason or "", is_forgiven))
        is_pending = action is PatchAction.KEEP_PENDING or (
            action is not PatchAction.APPLY and _first(events, e.PatchHeld) is not None
        )
        is_hopeless = is_pending and not self.run.phase(event.phase_id).auditor_tries_left
        if not (is_hopeless or _first(events, e.PatchApplied) or _first(events, e.PatchHeld)):
            self.assumed_patches += 1  # git was not asked then; assume that the patch applies
        return replace(
            result, patch=PendingPatch() if is_pending else _assumed(event.submission_id)
        )

    def _review(
        self, event: e.AuditorResultReceived, events: Sequence[e.Event], now: datetime
    ) -> Review:
        known = {each.issue_key for each in self.run.issues.values()}
        resolved = dict.fromkeys(each.issue_key for each in _all(events, e.IssueResolved))
        review = Review(
            phase_id=event.phase_id,
            submission_id=event.submission_id,
            attempt=event.attempt,
            recommendation=event.recommendation,
            tokens=event.tokens_used,
            cost=event.cost_usd,
            notes="as recorded",
            model=event.model,
            is_measured=event.is_measured,
            patch_sha256s=event.patch_sha256s,
            issues=self._issues(events),
            resolved_keys=tuple(key for key in resolved if key in known),
        )
        if not weigh_auditor_result(self.run, review, now, event.actor).is_wanted:
            return review
        refused = _first(events, e.ReviewRefused)
        if refused is not None:
            is_pending = _first(events, e.PendingPatchDiscarded) is not None
            return replace(review, patches=RefusedReview(refused.reason or "", is_pending))
        pending = self.run.phase(event.phase_id).pending_submission_id
        own = range(len(event.patch_sha256s))
        patches = tuple(_assumed(event.submission_id, number) for number in own)
        if pending is not None and event.recommendation == "approve":
            patches = (_assumed(pending), *patches)
        return replace(review, patches=patches)

    def _verdict(self, event: e.CiVerdictReceived, events: Sequence[e.Event]) -> CiVerdict:
        """Read a verdict; in a backtest it is on another commit."""
        phase = self.run.phase(event.phase_id)
        if phase.state is not PhaseStatus.CI_RUNNING:
            raise AutopackError("the phase waits for no verdict under these rules")
        return CiVerdict(
            phase_id=event.phase_id,
            ci_run_id=event.ci_run_id,
            commit=phase.commit or self.run.head_commit or "",
            verdict=event.verdict,
            sandbox=event.sandbox,
            reason=event.reason or "",
            failing_checks=event.failing_checks,
            is_flaky=event.flaky,
            is_repeated=event.is_repeated,
            issues=self._issues(events),
            evidence=event.evidence,
        )

    def _ci_runs(self, events: Sequence[e.Event]) -> Iterator[Given]:
        """Request and start the service's own CI as recorded, if the phase is in CI here too."""
        for event in events:
            if not isinstance(event, e.CiRequested | e.CiStarted):
                continue
            phase_id, ci_run_id = event.phase_id, event.ci_run_id
            if self.run.phase(phase_id).state is not PhaseStatus.CI_RUNNING:
                continue
            if isinstance(event, e.CiRequested):
                yield CiRunWanted(phase_id=phase_id, ci_run_id=ci_run_id, attempt=event.attempt)
            else:
                yield CiRunBegun(phase_id=phase_id, ci_run_id=ci_run_id)

    def _issues(self, events: Sequence[e.Event]) -> tuple[IssueSeen, ...]:
        return tuple(self._weigh_again(each) for each in _all(events, e.IssueRecorded))

    def _weigh_again(self, event: e.IssueRecorded) -> IssueSeen:
        """Return an issue with its severity under this strategy's default for its category."""
        was_aged = event.effective_severity is not event.severity
        severity = base_severity(event.reported_severity, event.category, self.major_categories)
        return IssueSeen(
            issue_key=event.issue_key,
            category=event.category,
            reported_severity=event.reported_severity,
            severity=severity,
            effective_severity=Severity.MAJOR if was_aged else severity,
            source=event.source,
            is_expected=event.is_expected,
        )


def _assumed(submission_id: int, number: int = 0) -> AppliedPatch:
    """Return an applied patch without a real commit, for a patch that is assumed to apply."""
    name = f"assumed:{submission_id}:{number}"
    return AppliedPatch(
        submission_id=submission_id, patch_sha256="", commit=name, tree="", parent="assumed"
    )


def _first(events: Sequence[e.Event], kind: type[Kind]) -> Kind | None:
    return next((event for event in events if isinstance(event, kind)), None)


def _all(events: Sequence[e.Event], kind: type[Kind]) -> list[Kind]:
    return [event for event in events if isinstance(event, kind)]


def _phase_of(events: Sequence[e.Event], kind: type[e.PhaseEvent]) -> str:
    return next(event.phase_id for event in events if isinstance(event, kind))
