"""The run that a record's events make, compared with what the record claims, and judged. (rules §8)

`evolve` makes it, as in the service.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

from .dependencies import DependencyChange, dependency_document
from .errors import NotFoundError
from .events import (
    ApprovalGiven,
    AuditorResultReceived,
    BuilderResultReceived,
    CiVerdictReceived,
    Event,
    EventError,
    EventRecord,
    IssueResolved,
    PatchApplied,
    PatchReplayed,
    PhaseApproved,
    PhaseCompleted,
    PhaseMoved,
    PhaseUndone,
    RunEnded,
    RunRolledBack,
    RunStarted,
    TierCleanlinessChanged,
    TierStateChanged,
    TokensCounted,
    from_record,
    is_by_hand,
    to_record,
    wire_time,
)
from .evidence import Evidence, is_refuted
from .evolve import evolve, resolved_places
from .independence import has_approved, why_not_judge, why_not_reviewer
from .money import usd_text
from .order import WaitCause, waits_of
from .outcomes import CommitKind
from .promotion import judge_continued, judge_promotion
from .record_start import state_at_start
from .record_text import Findings, JsonObject, show
from .run import CompletedBy, RunState, TierState
from .run_terms import terms_sha256
from .sightings import CI_SOURCE, Cause
from .states import PHASE_TRANSITIONS, RUN_TRANSITIONS, TIER_TRANSITIONS, PhaseStatus, RunStatus
from .terms import Verdict

# Of run, tier and phase: the figures that follow from the events. One that a record does not have
# is not compared: records of earlier versions have fewer.
_RUN_FIGURES: Final = (
    "state",
    "failure_code",
    "failure_reason",
    "ended_at",
    "is_rolled_back",
    "base_problem",
    "head_commit",
)
_BUDGET_FIGURES: Final = (
    "tokens_used",
    "tokens_measured",
    "cost_usd",
    "minor_issues_count",
    "major_issues_count",
    "debt_status",
)
_TIER_FIGURES: Final = (
    "state",
    "cleanliness",
    "cleanliness_reasons",
    "ci_runs_count",
    "tokens_used",
    "tokens_measured",
    "cost_usd",
    "minor_issues_count",
    "major_issues_count",
)
_PHASE_FIGURES: Final = (
    "state",
    "verdict",
    "sandbox",
    "evidence",
    "completed_by",
    "built_by",
    "reviewed_by",
    "approved_by",
    "judged_by",
    "tokens_used",
    "tokens_measured",
    "cost_usd",
    "builder_attempts_used",
    "auditor_attempts_used",
    "minor_issues_count",
    "major_issues_count",
    "start_commit",
    "commit",
    "dependencies",
    "failure_reason",
)
# What a record that cannot be replayed makes of the rules, which trust their input.
_MISFITS: Final = (
    ArithmeticError,
    AttributeError,
    EventError,
    InvalidOperation,
    LookupError,
    NotFoundError,
    TypeError,
    ValueError,
)


class Replay:
    """The run as its events make it, to compare with what the record says that it came to."""

    def __init__(
        self, findings: Findings, record: JsonObject, *, continued_at: str | None = None
    ) -> None:
        self.continued_at = continued_at  # where the run that continues this one starts
        self.heads: dict[str, str | None] = {}  # of the branch, when a phase was complete
        self.expect = findings.expect
        self.findings = findings
        self.record = record
        self.commits: list[tuple[str, ...]] = []
        self.is_review = False  # the latest that came from outside: a review, or something else
        self.judged: tuple[str, str] | None = None  # the latest verdict: of which phase, what

    def run(self) -> None:
        """Compare and judge as far as the events can be followed."""
        state = self.follow()
        try:
            if state is not None:
                self._judge(state)
        except _MISFITS as error:
            self._refuse_order(error)

    def follow(self) -> RunState | None:
        """Compare the record with what follows from its events; None if they have no order."""
        self._expect_once("phase", [each["phase_id"] for each in self.record["phases"]])
        self._expect_once("tier", [each["tier_id"] for each in self.record["tiers"]])
        try:
            state = state_at_start(self.record)
            tier_of = {phase.phase_id: phase.tier_id for phase in state.phases}
            for document in self.record["events"]:
                state = self._take(state, document, tier_of)
            self._compare(state)
        except _MISFITS as error:
            self._refuse_order(error)
            return None
        return state

    def _refuse_order(self, error: Exception) -> None:
        self.findings.reasons.append(f"the events cannot be replayed: {error!r} is out of place")

    def _expect_once(self, noun: str, names: Sequence[str]) -> None:
        for name, times in Counter(names).items():
            self.expect(times == 1, f"the record names {noun} '{name}' {times} times")

    def _take(self, state: RunState, document: JsonObject, tier_of: Mapping[str, str]) -> RunState:
        """Check what an event must satisfy where it stands, and let it have its effect."""
        number, phase_id = document["sequence"], document["phase_id"]
        if phase_id is not None:
            tier_id = tier_of[phase_id]
            self.expect(
                document["tier_id"] == tier_id,
                f"event {number} puts phase '{phase_id}' into tier {show(document['tier_id'])}",
            )
        self._check_move(state, document)
        at = datetime.fromisoformat(document["at"])
        if at.tzinfo is None or wire_time(at) != document["at"]:
            raise EventError(f"the time {show(document['at'])} of event {number}")
        columns = {name: document[name] for name in _EVENT_COLUMNS}
        event = from_record(EventRecord(**{**columns, "at": at}))
        written = to_record(event)
        for name in _PLACE_COLUMNS:
            self.expect(
                getattr(written, name) == document[name],
                f"event {number} ({event.kind}) has {name} {show(document[name])},"
                " which its kind has not",
            )
        self.expect(
            isinstance(event, RunStarted) is (number == 1),
            f"event {number} ({document['kind']}) does not follow: a run starts once, and first",
        )
        self._check_event(state, number, event)
        self._note_commit(event)
        if isinstance(event, PhaseCompleted):
            phase = state.phase(event.phase_id)
            is_beside = state.is_parallel and phase.before_commit is not None
            self.heads[event.phase_id] = phase.commit if is_beside else state.head_commit
        return evolve(state, event)

    def _check_move(self, state: RunState, document: JsonObject) -> None:
        """Expect a change of state to begin where the run stands, and the rules to allow it.

        (rules §2)
        """
        before, after = document["from_state"], document["to_state"]
        if after is None:
            return
        what, current, allowed = _mover(state, document)
        number = document["sequence"]
        self.expect(
            current == before,
            f"event {number} ({document['kind']}) does not follow: {what} is {current}",
        )
        if allowed is not None:
            self.expect(
                after in allowed.get(before, ()),
                f"event {number} moves {what} from {before} to {after}, which no rule allows",
            )

    def _check_event(self, state: RunState, number: int, event: Event) -> None:
        if state.is_over:
            # A failure may end the run within a change, whose other events follow at that moment.
            is_same_change = (
                state.state is not RunStatus.DONE_SUCCESS and event.at == state.ended_at
            )
            self.expect(
                is_same_change or isinstance(event, RunRolledBack),
                f"event {number} ({event.kind}) comes after the end of the run",
            )
        match event:
            case RunStarted():
                self._check_start(state, event)
            case RunEnded():
                self._check_end(state, number, event)
            case AuditorResultReceived():
                self.is_review = True
                phase = state.phase(event.phase_id)
                why_not = why_not_reviewer(phase, event.actor, event.model)
                self._expect_independent(number, event, why_not)
            case ApprovalGiven() | PhaseApproved():
                self.expect(
                    not has_approved(state.phase(event.phase_id), event.actor),
                    f"event {number} counts the approval of phase '{event.phase_id}' by"
                    f" {show(event.actor)} twice",
                )
            case BuilderResultReceived():
                self.is_review = False
            case CiVerdictReceived():
                self.is_review = False
                self.judged = event.phase_id, event.verdict
                why_not = why_not_judge(state.phase(event.phase_id), event.actor)
                self._expect_independent(number, event, why_not)
                self.expect(
                    event.commit == (state.phase(event.phase_id).commit or state.head_commit),
                    f"event {number}: CI judged {event.commit}, which is not the commit of"
                    f" phase '{event.phase_id}'",
                )
                self.expect(
                    event.verdict is not Verdict.GREEN or not is_refuted(event.evidence),
                    f"event {number}: CI is green, and its evidence speaks against it",
                )
                self.expect(
                    len({each.kind for each in event.evidence}) == len(event.evidence),
                    f"event {number} has two entries of evidence of one kind",
                )
            case TokensCounted():
                self.expect(event.tokens >= 0, f"event {number} counts {event.tokens} tokens")
            case PhaseMoved():
                self._check_order(state, number, event)
                self._check_judged(state, number, event)
                self._check_approved(state, number, event)
            case IssueResolved():
                self._check_resolution(state, number, event)

    def _check_start(self, state: RunState, event: RunStarted) -> None:
        record = self.record
        self.expect(
            event.terms_sha256 in (None, terms_sha256(state)),
            "the events tell of a run with other caps, profiles or required evidence",
        )
        self.expect(event.to_state is RunStatus.RUN_CREATED, f"the run starts as {event.to_state}")
        self.expect(
            event.base_commit == record["base_commit"]
            and event.base_branch == record["base_branch"],
            "the events tell of a run from another base",
        )
        self.expect(
            (event.continues, event.continued_commit)
            == (record.get("continues"), record.get("continued_commit")),
            "the events tell of another run that this one continues",
        )
        self.expect(
            (event.rebases, event.rebased_commit)
            == (record.get("rebases"), record.get("rebased_commit")),
            "the events tell of another run that this one rebases",
        )
        self.expect(
            bool(event.is_sandbox_required) is record.get("is_sandbox_required", False),
            "the events tell another tale of whether a sandbox is required",
        )
        self.expect(
            event.dependencies_need_review is record.get("dependencies_need_review", False),
            "the events tell another tale of whether new dependencies need a review",
        )
        self.expect(
            event.is_parallel is record.get("is_parallel", False),
            "the events tell another tale of whether phases are side by side",
        )
        strategy = record.get("strategy_version", event.strategy_version)
        self.expect(
            event.strategy_version == strategy,
            f"the run: strategy_version is {show(strategy)} in the record,"
            f" {event.strategy_version} by its events",
        )

    def _check_end(self, state: RunState, number: int, event: RunEnded) -> None:
        """Expect a run that succeeded to be done, and within its own caps. (rules §3)"""
        for phase in state.phases:
            self.expect(
                phase.state.is_final,
                f"event {number} ends the run while phase '{phase.phase_id}' is {phase.state}",
            )
        if event.to_state is not RunStatus.DONE_SUCCESS:
            return
        self.expect(
            state.tokens_used <= state.token_cap,
            f"event {number} ends the run as {event.to_state} with {state.tokens_used} tokens"
            f" used, {state.token_cap} allowed",
        )
        cap = state.cost_cap_usd
        self.expect(
            cap is None or state.cost_usd <= cap,
            f"event {number} ends the run as {event.to_state} with {usd_text(state.cost_usd)} USD"
            f" spent, {cap} allowed",
        )

    def _check_order(self, state: RunState, number: int, event: PhaseMoved) -> None:
        """Expect a phase to start when all that it depends on have ended. (rules §2.7)

        Records of earlier versions do not say whether phases could be side by side.
        """
        if event.STATE is not PhaseStatus.EXECUTING or "is_parallel" not in self.record:
            return
        for wait in waits_of(state).get(event.phase_id, ()):
            self.expect(
                wait.cause is not WaitCause.ORDER,
                f"event {number} starts phase '{event.phase_id}' before phase '{wait.phase_id}',"
                " on which it depends, has ended",
            )

    def _check_judged(self, state: RunState, number: int, event: PhaseMoved) -> None:
        """Expect CI to complete a phase by green alone, and green to do nothing else. (rules §6)

        A hand may complete a phase, and the end of the run skips it, whatever CI says.
        """
        phase = state.phase(event.phase_id)
        is_hand = isinstance(event, PhaseCompleted) and event.completed_by is CompletedBy.HAND
        is_left_out = event.STATE is PhaseStatus.SKIPPED
        if phase.state is PhaseStatus.CI_RUNNING and not is_hand and not is_left_out:
            self.expect(
                (phase.verdict is Verdict.GREEN) is (event.STATE is PhaseStatus.COMPLETE),
                f"event {number} moves phase '{event.phase_id}' from {phase.state} to"
                f" {event.STATE}, and its verdict is {show(phase.verdict)}",
            )

    def _check_approved(self, state: RunState, number: int, event: PhaseMoved) -> None:
        """Expect a reviewed phase to pass the gate with all approvals. (rules §2.4)

        A hand may let it pass.
        """
        phase = state.phase(event.phase_id)
        is_passed = event.STATE in (PhaseStatus.CI_RUNNING, PhaseStatus.COMPLETE)
        if phase.state is PhaseStatus.GATE and phase.unapproved_dependencies and is_passed:
            self.expect(
                not state.dependencies_need_review or phase.approved_by or is_by_hand(event.actor),
                f"event {number} lets phase '{event.phase_id}' pass with new dependencies and"
                " without an approval, which review.new_dependencies asks for",
            )
        if phase.state is PhaseStatus.GATE and phase.approved_by and is_passed:
            self.expect(
                not phase.approvals_missing or is_by_hand(event.actor),
                f"event {number} lets phase '{event.phase_id}' pass with"
                f" {len(phase.approved_by)} of {phase.approvals_needed} approvals",
            )

    def _expect_independent(
        self, number: int, event: AuditorResultReceived | CiVerdictReceived, why_not: str | None
    ) -> None:
        """Expect that no actor reviews or judges its own work. (rules §2.4)"""
        self.expect(
            why_not is None,
            f"event {number} of phase '{event.phase_id}' is by {show(event.actor)}, whose own work"
            f" it judges: {show(why_not)}",
        )

    def _check_resolution(self, state: RunState, number: int, event: IssueResolved) -> None:
        """Expect an issue to be resolved by who may resolve it, where it was seen. (rules §7)"""
        places = resolved_places(state, event)
        what = f"event {number} resolves {show(event.issue_key)} in phase '{event.phase_id}'"
        self.expect(places, f"{what}, where it was never seen")
        if event.cause is Cause.GREEN_VERDICT:
            self.expect(
                self.judged == (event.phase_id, Verdict.GREEN)
                and all(state.issues[place].source == CI_SOURCE for place in places),
                f"{what}, where CI did not raise it, or is not green",
            )
        elif event.cause is Cause.AUDITOR:
            self.expect(self.is_review, f"{what}, and no review says so")

    def _note_commit(self, event: Event) -> None:
        match event:
            case PatchApplied():
                commit = (event.commit, event.tree, event.parent, event.patch_sha256)
                self.commits.append((CommitKind.PATCH, event.phase_id, *commit))
            case PatchReplayed():
                where = (event.commit, event.tree, event.parent)
                self.commits.append((CommitKind.REPLAY, event.phase_id, *where))
            case PhaseUndone():
                self.commits.append((CommitKind.UNDO, event.phase_id, event.commit))
            case RunRolledBack():
                self.commits.append((CommitKind.ROLLBACK, event.phase_id, event.commit))

    # What the record claims

    def _compare(self, state: RunState) -> None:
        record = self.record
        self._same("the run", _RUN_FIGURES, state, record)
        self._same("the run", _BUDGET_FIGURES, state, record["budgets"])
        for phase in record["phases"]:
            made = state.phase(phase["phase_id"])
            # A record that says nothing of the sandbox says that there was none.
            claimed = {"sandbox": None, **phase}
            self._same(f"phase '{phase['phase_id']}'", _PHASE_FIGURES, made, claimed)
        for tier in record["tiers"]:
            name = f"tier '{tier['tier_id']}'"
            self._same(name, _TIER_FIGURES, state.tier(tier["tier_id"]), tier)
        recorded: list[tuple[str, ...]] = []
        for each in record["commits"]:
            fields: tuple[str, ...] = ("kind", "phase_id", "sha")
            if each["kind"] == CommitKind.PATCH:
                fields += ("tree", "parent", "patch_sha256")
            if each["kind"] == CommitKind.REPLAY:
                fields += ("tree", "parent")
            if each["kind"] != CommitKind.RECORD:
                recorded.append(tuple(each[field] for field in fields))
        self.expect(
            recorded == self.commits, "the record's commits are not those that its events tell of"
        )

    def _same(
        self, what: str, figures: Iterable[str], made: object, claimed: Mapping[str, object]
    ) -> None:
        for figure in figures:
            told = _as_recorded(getattr(made, figure))
            self.expect(
                claimed.get(figure, told) == told,
                f"{what}: {figure} is {show(claimed.get(figure))} in the record,"
                f" {show(told)} by its events",
            )

    def _judge(self, state: RunState) -> None:
        """Judge the run that the events made; the record's own verdict has to be the same."""
        verdict = judge_promotion(state)
        recorded = self.record["promotion"]
        self.expect(
            recorded["reasons"] == list(verdict.reasons)
            and recorded["warnings"] == list(verdict.warnings)
            and recorded["eligible"] is verdict.is_eligible,
            "the record's own verdict is not what its figures give",
        )
        if self.continued_at is not None:
            verdict = judge_continued(state)
            self._judge_start(state, self.continued_at)
        self.findings.reasons += verdict.reasons
        self.findings.warnings += verdict.warnings

    def _judge_start(self, state: RunState, commit: str) -> None:
        """Expect the run that continues this one to start at the last verified commit."""
        self.expect(state.is_over, "it is not over")
        verified = next(reversed(self.heads.values()), None)
        self.expect(
            verified == commit,
            f"its last verified commit is {show(verified)}, not {show(commit)}",
        )


_PLACE_COLUMNS: Final = ("phase_id", "tier_id", "from_state", "to_state")
_EVENT_COLUMNS: Final = (
    "kind",
    "actor",
    "at",
    "phase_id",
    "tier_id",
    "from_state",
    "to_state",
    "reason",
    "data",
)
_Table = Mapping[Any, frozenset[Any]]


def _mover(state: RunState, document: JsonObject) -> tuple[str, StrEnum | None, _Table | None]:
    """Return what an event moves, where that stands now, and the table that says where it may go.

    The state is None for what is not created yet, the table None where any move is allowed.
    """
    kind = document["kind"]
    if document["phase_id"] is not None:
        name = document["phase_id"]
        return f"phase '{name}'", state.phase(name).state, PHASE_TRANSITIONS
    if kind == RunStarted.__name__:
        return "the run", None, None
    if kind == TierCleanlinessChanged.__name__:
        name = document["tier_id"]
        return f"tier '{name}'", _tier(state, name).cleanliness, None
    if kind == TierStateChanged.__name__:
        name = document["tier_id"]
        return f"tier '{name}'", _tier(state, name).state, TIER_TRANSITIONS
    return "the run", state.state, RUN_TRANSITIONS


def _tier(state: RunState, tier_id: str) -> TierState:
    return {tier.tier_id: tier for tier in state.tiers}[tier_id]


def _as_recorded(value: object) -> object:
    """Write a figure of a state as the record has it."""
    if isinstance(value, Decimal):
        return usd_text(value)
    if isinstance(value, datetime):
        return wire_time(value)
    if isinstance(value, DependencyChange):
        return dependency_document(value)
    if isinstance(value, Evidence):
        return value.document()
    return [_as_recorded(each) for each in value] if isinstance(value, tuple) else value
