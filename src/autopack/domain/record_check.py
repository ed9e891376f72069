"""What the record of a finished run must satisfy: the one check of `run.json`. (rules §8)

`autopack verify`, `GET /runs/{run_id}/promotion` and `scripts/check_promotion.py` call
`check_record`. It reads the record as a stranger's: its shape, the seal of its commit, the chain of
its events. Then the events make the run anew by `evolve`, and what comes of that is compared with
what the record claims, and judged by `judge_promotion`. What git holds beside it is for `checker/`.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

from .dependencies import DependencyChange, dependency_document
from .errors import NotFoundError
from .events import (
    GENESIS_HASH,
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
    canonical_json,
    from_record,
    is_by_hand,
    to_record,
    wire_time,
)
from .evidence import Evidence, is_refuted
from .evolve import evolve, resolved_places
from .independence import has_approved, why_not_judge, why_not_reviewer
from .money import usd_text
from .naming import RECORD, branch_name, record_seals
from .order import WaitCause, waits_of
from .outcomes import CommitKind
from .promotion import judge_continued, judge_promotion
from .run import CompletedBy, PhaseState, RunState, TierState
from .run_terms import terms_sha256
from .sightings import CI_SOURCE, Cause
from .states import (
    PHASE_TRANSITIONS,
    RUN_TRANSITIONS,
    TIER_TRANSITIONS,
    PhaseStatus,
    RunStatus,
    TierStatus,
)
from .terms import CiProfile, EvidenceKind, Independence, RunScope, Verdict

SCHEMA_VERSION: Final = 1
MAX_SHOWN: Final = 500
MAX_DIGITS: Final = 20

JsonObject = dict[str, Any]


# The record's shape: a type, several of them, a list of one, or the members of an object. Members
# that are not named here came later or say nothing of the verdict.
_TEXT: Final = (str, type(None))
_COMMIT_SHAPE: Final = {
    "sha": str,
    "tree": str,
    "parent": str,
    "kind": str,
    "phase_id": _TEXT,
    "patch_sha256": _TEXT,
    "is_merged": bool,
}
_EVENT_SHAPE: Final = {
    "sequence": int,
    "at": str,
    "actor": str,
    "kind": str,
    "phase_id": _TEXT,
    "tier_id": _TEXT,
    "from_state": _TEXT,
    "to_state": _TEXT,
    "reason": _TEXT,
    "data": dict,
    "previous_hash": str,
    "hash": str,
}
_TIER_SHAPE: Final = {
    "tier_id": str,
    "tier_index": int,
    "state": str,
    "cleanliness": str,
    "cleanliness_reasons": [str],
    "token_cap": int,
    "tokens_used": int,
    "ci_run_cap": int,
    "ci_runs_count": int,
    "minors_tolerated": int,
    "minor_issues_count": int,
    "majors_tolerated": int,
    "major_issues_count": int,
}
_PHASE_SHAPE: Final = {
    "phase_id": str,
    "tier_id": str,
    "tier_index": int,
    "phase_index": int,
    "state": str,
    "ci_profile": str,
    "verdict": _TEXT,
    "completed_by": _TEXT,
    "tokens_used": int,
    "commit": _TEXT,
    "ci_runs": [{"commit_sha": str, "verdict": _TEXT, "is_flaky": bool}],
}
_RECORD_SHAPE: Final[JsonObject] = {
    "schema_version": int,
    "run_id": str,
    "project_id": str,
    "branch": str,
    "base_branch": str,
    "base_commit": str,
    "state": str,
    "failure_code": _TEXT,
    "failure_reason": _TEXT,
    "is_rolled_back": bool,
    "ended_at": str,
    "budgets": {
        "token_cap": int,
        "tokens_used": int,
        "max_minor_issues_total": int,
        "minor_issues_count": int,
        "major_issues_count": int,
    },
    "promotion": {"eligible": bool, "reasons": [str], "warnings": [str]},
    "tiers": [_TIER_SHAPE],
    "phases": [_PHASE_SHAPE],
    "commits": [_COMMIT_SHAPE],
    "files": [{"path": str, "sha256": str}],
    "events": [_EVENT_SHAPE],
}


class RecordError(Exception):
    """A reason against a record after which there is nothing more to check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordClaim:
    """What a record is said to be of. `base_branch` is where the branch is to go."""

    run_id: str
    branch: str
    base_branch: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecord:
    """What came of a record. `record` is None where it could not be read as one of this run."""

    record: JsonObject | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def check_record(data: bytes, message: str, claim: RecordClaim) -> CheckedRecord:
    """Return every reason against a record, and what to look at; no reason: it may be promoted.

    `data` is `run.json`, `message` that of the commit which holds it. Raises nothing.
    """
    findings = _Findings()
    record: JsonObject | None = None
    try:
        record = _read_record(findings, data, message, claim)
        _check_chain(findings, record["events"])
        _Replay(findings, record).run()
    except RecordError as refused:
        findings.reasons.append(str(refused))
    return CheckedRecord(
        record=record, reasons=tuple(findings.reasons), warnings=tuple(findings.warnings)
    )


def check_copied(data: bytes, message: str, claim: RecordClaim) -> CheckedRecord:
    """Return every reason why a record is not what a service wrote: its seal, chain and replay.

    Says nothing about promotion, so a record of a failed run may be whole. Raises nothing.
    """
    findings = _Findings()
    record: JsonObject | None = None
    try:
        record = _read_record(findings, data, message, claim)
        _check_chain(findings, record["events"])
        _Replay(findings, record).follow()
    except RecordError as refused:
        findings.reasons.append(str(refused))
    return CheckedRecord(
        record=record, reasons=tuple(findings.reasons), warnings=tuple(findings.warnings)
    )


def check_continued(data: bytes, message: str, record: JsonObject) -> CheckedRecord:
    """Check the record of the failed run that `record` continues. (rules §2.5)

    Its complete phases must satisfy what a promoted run's must, and `record` must start where the
    last of them ended. Raises nothing.
    """
    run_id = str(record["continues"])
    claim = RecordClaim(
        run_id=run_id, branch=branch_name(run_id), base_branch=record["base_branch"]
    )
    findings = _Findings()
    earlier: JsonObject | None = None
    try:
        earlier = _read_record(findings, data, message, claim)
        _check_chain(findings, earlier["events"])
        _Replay(findings, earlier, continued_at=record["base_commit"]).run()
    except RecordError as refused:
        findings.reasons.append(str(refused))
    return CheckedRecord(
        record=earlier, reasons=tuple(findings.reasons), warnings=tuple(findings.warnings)
    )


def check_rebased(data: bytes, message: str, record: JsonObject) -> CheckedRecord:
    """Check the record of the run whose commits `record` makes again. (rules §8.1)

    It must satisfy all that is asked of a run that is promoted itself. Raises nothing.
    """
    run_id = str(record["rebases"])
    claim = RecordClaim(
        run_id=run_id, branch=branch_name(run_id), base_branch=record["base_branch"]
    )
    return check_record(data, message, claim)


def replay_reasons(record: JsonObject, earlier: Iterable[JsonObject]) -> tuple[str, ...]:
    """Compare the commits that a rebased run makes again with those of the earlier records.

    `earlier` are the records of the run that is rebased and of those that it continues, oldest
    first.
    """
    records = [*earlier]
    wanted = [commit for each in records for commit in accepted_commits(each)]
    made = [
        event["data"].get("original")
        for event in record["events"]
        if event["kind"] == PatchReplayed.__name__
    ]
    if made == wanted:
        return _leniency(record, records)
    left = [commit for commit in wanted if commit not in made]
    more = [commit for commit in made if commit not in wanted]
    if left:
        return (f"commit {show(left[0])} of the rebased run is not made again",)
    if more:
        return (f"commit {show(more[0])} is made again, and no complete phase has it",)
    return ("the commits of the rebased run are made again in another order",)


def _leniency(record: JsonObject, earlier: Iterable[JsonObject]) -> tuple[str, ...]:
    """Expect strict CI where a phase of the rebased run had it. (rules §8.1)"""
    was_strict = any(
        phase["ci_profile"] == CiProfile.STRICT for each in earlier for phase in each["phases"]
    )
    lenient = [
        phase["phase_id"] for phase in record["phases"] if phase["ci_profile"] != CiProfile.STRICT
    ]
    if not was_strict or not lenient:
        return ()
    return (f"phase '{show(lenient[0])}' is not strict, and a phase of the rebased run was",)


def accepted_commits(record: JsonObject) -> list[str]:
    """Return the commits that hold the patches of a record's complete phases, in order."""
    complete = {
        phase["phase_id"] for phase in record["phases"] if phase["state"] == PhaseStatus.COMPLETE
    }
    return [
        each["sha"]
        for each in record["commits"]
        if each["kind"] in (CommitKind.PATCH, CommitKind.REPLAY) and each["phase_id"] in complete
    ]


class _Findings:
    """The reasons against a record, as they are found."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.warnings: list[str] = []

    def expect(self, condition: object, reason: str) -> bool:
        if not condition:
            self.reasons.append(reason)
        return bool(condition)


# The record as a text


def _read_record(findings: _Findings, data: bytes, message: str, claim: RecordClaim) -> JsonObject:
    """Return `run.json`, whose shape is as it must be. Raises RecordError."""
    try:
        record = parse_json(data)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{RECORD} cannot be read: {error}") from None
    problem = shape_problem(record, _RECORD_SHAPE, RECORD)
    if problem:
        raise RecordError(problem)
    if record["schema_version"] != SCHEMA_VERSION:
        raise RecordError(
            f"{RECORD} is of version {record['schema_version']}, this checker reads"
            f" {SCHEMA_VERSION}: take the checker of the Autopack that made the record"
        )
    seals = record_seals(message)
    if findings.expect(
        len(seals) == 1, "the head of the branch is no record: something was committed after it"
    ):
        findings.expect(
            seals[0] == hashlib.sha256(data).hexdigest(),
            f"{RECORD} is not what the record's commit says: it was changed",
        )
    if not findings.expect(
        record["run_id"] == claim.run_id,
        f"the record is of run '{record['run_id']}', not of '{claim.run_id}'",
    ):
        raise RecordError("a record of another run says nothing of this one")
    findings.expect(
        record["branch"] == claim.branch,
        f"the record is of branch '{record['branch']}', not of '{claim.branch}'",
    )
    findings.expect(
        record["base_branch"] == claim.base_branch,
        f"the run started from '{record['base_branch']}', not from '{claim.base_branch}'",
    )
    return dict(record)


def parse_json(data: bytes) -> Any:
    """Read JSON that says everything once, in numbers of a sane size. Raises ValueError."""

    def members(pairs: list[tuple[str, Any]]) -> JsonObject:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("it names a member twice")
        return found

    def integer(text: str) -> int:
        if len(text) > MAX_DIGITS:
            raise ValueError("it has a number of too many digits")
        return int(text)

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is no JSON")

    record = json.loads(
        data.decode("utf-8"), object_pairs_hook=members, parse_int=integer, parse_constant=refuse
    )
    canonical_json(record)  # half of a surrogate pair is no text, and 1e999 no number
    return record


def shape_problem(value: Any, shape: Any, place: str) -> str | None:
    """Say what is not as it must be; None: nothing."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} is no object"
        for name, inner in shape.items():
            if name not in value:
                return f"{place} has no '{name}'"
            problem = shape_problem(value[name], inner, f"{place}: {name}")
            if problem:
                return problem
    elif isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} is no list"
        for number, each in enumerate(value):
            problem = shape_problem(each, shape[0], f"{place}[{number}]")
            if problem:
                return problem
    elif not isinstance(value, shape) or (isinstance(value, bool) and shape is not bool):
        return f"{place} is {show(value)}, which is not of its kind"
    return None


def show(value: object) -> str:
    """Write a value of any size and content as a piece of one line."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "…"


def _check_chain(findings: _Findings, events: Iterable[JsonObject]) -> None:
    """Expect each event to be sealed by a hash over itself and the one before. (rules §1)"""
    previous, last_at = GENESIS_HASH, ""
    for number, event in enumerate(events, start=1):
        if not findings.expect(
            event["sequence"] == number, f"event {number} is missing, or out of its place"
        ):
            return
        document = {name: value for name, value in event.items() if name != "hash"}
        sealed = hashlib.sha256(canonical_json(document)).hexdigest()
        if not findings.expect(
            event["previous_hash"] == previous and event["hash"] == sealed,
            f"event {number} ({event['kind']}) was changed: the chain of hashes breaks there",
        ):
            return
        findings.expect(
            event["at"] >= last_at, f"event {number} lies before the one that it follows"
        )
        previous, last_at = sealed, event["at"]


# The run that the events make


def _state_at_start(record: JsonObject) -> RunState:
    """Return the run before its first event, by what the record says of its plan and caps.

    `evolve` reads neither the plan's minutes and profiles, by which rules decide, so
    these are left at nothing.
    """
    tiers = {tier["tier_id"]: tier for tier in record["tiers"]}
    with_phases = {tiers[phase["tier_id"]]["tier_id"] for phase in record["phases"]}
    budgets = record["budgets"]
    return RunState(
        run_id=record["run_id"],
        state=RunStatus.RUN_CREATED,
        run_scope=RunScope(record.get("run_scope", RunScope.SINGLE_TIER)),
        token_cap=budgets["token_cap"],
        cost_cap_usd=_dollars(budgets.get("cost_cap_usd")),
        max_minor_issues_total=budgets["max_minor_issues_total"],
        max_duration_minutes=0,
        attempt_minutes=0,
        audit_minutes=0,
        deadline_at=datetime.min,  # noqa: DTZ901 - no rule asks for it here
        minor_cap_ends_run=False,
        any_failure_stops=False,
        high_risk_needs_review=False,
        is_sandbox_required=record.get("is_sandbox_required", False) is True,
        dependencies_need_review=record.get("dependencies_need_review", False) is True,
        is_parallel=record.get("is_parallel", False) is True,
        head_commit=record["base_commit"],
        tiers=tuple(_tier_at_start(tier, with_phases) for tier in record["tiers"]),
        phases=tuple(_phase_at_start(phase) for phase in record["phases"]),
    )


def _tier_at_start(tier: JsonObject, with_phases: set[str]) -> TierState:
    has_phases = tier["tier_id"] in with_phases
    return TierState(
        tier_id=tier["tier_id"],
        tier_index=tier["tier_index"],
        state=TierStatus.PENDING if has_phases else TierStatus.SKIPPED,
        token_cap=tier["token_cap"],
        ci_run_cap=tier["ci_run_cap"],
        minors_tolerated=tier["minors_tolerated"],
        majors_tolerated=tier["majors_tolerated"],
    )


def _phase_at_start(phase: JsonObject) -> PhaseState:
    names = phase.get("depends_on")
    return PhaseState(
        phase_id=phase["phase_id"],
        tier_id=phase["tier_id"],
        tier_index=phase["tier_index"],
        phase_index=phase["phase_index"],
        state=PhaseStatus.QUEUED,
        ci_profile=CiProfile(phase["ci_profile"]),
        has_ci=False,
        ci_timeout_seconds=0,
        max_builder_attempts=0,
        max_auditor_attempts=0,
        incident_token_cap=0,
        auto_apply=False,
        is_high_risk=False,
        allow_empty=False,
        independence=Independence(phase.get("independence", Independence.NONE)),
        approvals_needed=phase.get("approvals_needed", 1),
        depends_on=None if names is None else tuple(names),
        evidence_required=tuple(map(EvidenceKind, phase.get("evidence_required", ()))),
    )


def _dollars(amount: str | None) -> Decimal | None:
    return None if amount is None else Decimal(amount)


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


class _Replay:
    """The run as its events make it, to compare with what the record says that it came to."""

    def __init__(
        self, findings: _Findings, record: JsonObject, *, continued_at: str | None = None
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
            state = _state_at_start(self.record)
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

    None in the place of the state: it does not exist yet. None for the table: there is none.
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
