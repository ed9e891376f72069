"""The entry point of the rules: a state and an input give events. (rules §1)

    decided = decide(state, given, now)            # what happened, and the state after it
    concluded = conclude(state, decided.state, now)    # what follows for tiers and run

Between `decide` and `conclude` the use case does in git what the events demand. Nothing here reads
a clock, a database or a repository, so recorded inputs can be decided again under other rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from . import consequences
from .building import BuilderResult, PatchAction, accept_result, weigh_result
from .capacity import Unavailable, accept_unavailable
from .claiming import PhaseClaim, WorkAsked, accept_claim, ask_for_work
from .deadlines import Lapse, Tick, accept_lapse, pass_time
from .decision import Decision
from .events import SUPERVISOR, Event, PhaseUndone
from .issue_rules import IssuesSeen, accept_issues
from .judging import (
    BaseMeasured,
    CiRunBegun,
    CiRunWanted,
    CiVerdict,
    accept_verdict,
    begin_run,
    note_base,
    request_run,
)
from .operating import (
    BranchMoved,
    Cancel,
    RollbackCommit,
    StatusByHand,
    cancel,
    end_moved,
    roll_back,
    set_status,
)
from .patches import AppliedPatch, record_applied
from .rebasing import Rebase, accept_rebase
from .reviewing import (
    Review,
    ReviewWish,
    WeighedReview,
    accept_review,
    ask_for_review,
    weigh_review,
)
from .run import FailureCode, RunState
from .terms import Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """A phase's commits were undone by a commit that restores the tree before them.

    `again` are the patches of other phases that came after them, each now one more commit.
    """

    phase_id: str
    commit: str
    tree: str
    again: tuple[tuple[str, AppliedPatch], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Entangled:
    """A phase cannot be undone without another one, whose patch does not apply without it."""

    phase_id: str
    other_id: str


Given = (
    BuilderResult
    | Review
    | ReviewWish
    | CiVerdict
    | CiRunWanted
    | CiRunBegun
    | BaseMeasured
    | WorkAsked
    | PhaseClaim
    | Tick
    | Lapse
    | Unavailable
    | IssuesSeen
    | StatusByHand
    | Cancel
    | RollbackCommit
    | BranchMoved
    | Undone
    | Entangled
    | Rebase
)


@dataclass(frozen=True, slots=True)
class Decided:
    """The events of a decision, and the state that `fold` makes of them."""

    events: tuple[Event, ...]
    state: RunState


def decide(state: RunState, given: Given, now: datetime, actor: str = SUPERVISOR) -> Decided:
    """Return the events that an input causes.

    Raises a typed refusal (errors.py); a refused input changes nothing.
    """
    decision = Decision(state, now, actor)
    match given:
        case BuilderResult():
            accept_result(decision, given)
        case Review():
            accept_review(decision, given)
        case ReviewWish():
            ask_for_review(decision, given)
        case CiVerdict():
            accept_verdict(decision, given)
        case CiRunWanted():
            request_run(decision, given)
        case CiRunBegun():
            begin_run(decision, given)
        case BaseMeasured():
            note_base(decision, given)
        case WorkAsked():
            ask_for_work(decision, given)
        case PhaseClaim():
            accept_claim(decision, given)
        case Tick():
            pass_time(decision, given)
        case Lapse():
            accept_lapse(decision, given)
        case Unavailable():
            accept_unavailable(decision, given)
        case IssuesSeen():
            accept_issues(decision, given)
        case StatusByHand():
            set_status(decision, given)
        case Cancel():
            cancel(decision, given)
        case RollbackCommit():
            roll_back(decision, given)
        case BranchMoved():
            end_moved(decision, given)
        case Rebase():
            accept_rebase(decision, given)
        case Undone():
            _undo(decision, given)
        case Entangled():
            consequences.end_failed(
                decision,
                FailureCode.PHASE_FAILED,
                f"phases '{given.phase_id}' and '{given.other_id}' are entangled: the first has to"
                " be undone, and the patch of the second does not apply without it",
            )
    return Decided(tuple(decision.events), decision.state)


def _undo(decision: Decision, given: Undone) -> None:
    decision.record(
        PhaseUndone(
            phase_id=given.phase_id,
            commit=given.commit,
            tree=given.tree,
            taken_off=tuple(dict.fromkeys(phase_id for phase_id, _ in given.again)),
        )
    )
    for phase_id, applied in given.again:
        record_applied(decision, phase_id, applied, is_again=True)


def touches_issues(given: Given) -> bool:
    """Return whether an input is about issues, so that the state must contain the run's issues."""
    match given:
        case IssuesSeen():
            return True
        case BuilderResult():
            return bool(given.issues)
        case Review():
            return bool(given.issues or given.resolved_keys)
        case CiVerdict():
            return given.verdict is Verdict.GREEN or bool(given.issues)
    return False


def conclude(before: RunState, state: RunState, now: datetime) -> Decided:
    """Return the events of tiers and run that follow from a change, as its last step."""
    decision = Decision(state, now)
    consequences.conclude(decision, before)
    return Decided(tuple(decision.events), decision.state)


def weigh_builder_result(
    state: RunState, result: BuilderResult, now: datetime, actor: str
) -> PatchAction:
    """Return what the use case must do with a result's patch. Raises the refusals of `decide`."""
    return weigh_result(Decision(state, now, actor), result)


def weigh_auditor_result(
    state: RunState, review: Review, now: datetime, actor: str
) -> WeighedReview:
    """Return whether a review's patches must be applied. Raises the refusals of `decide`."""
    return weigh_review(Decision(state, now, actor), review)
