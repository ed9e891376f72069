"""What happened to a run: one frozen class for each kind of event, and the hash chain over them.

An event contains everything that its effect needs: `evolve` (evolve.py) computes the next state
from a state and an event alone. An event's kind is the name of its class. On the wire and in the
table an event is an `EventRecord`: actor, time, phase or tier, former and next state, reason; the
remaining fields are its `data`. A field that has its default is left out of `data`, so an event
that was recorded before the field existed has the same content and the same hash.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, ClassVar

from .dependencies import DependencyChange, dependency_document
from .evidence import Evidence
from .money import MAX_USD, ZERO_USD, usd_text
from .run import CompletedBy, FailureCode
from .sightings import Cause
from .states import Cleanliness, PhaseStatus, RunStatus, TierStatus
from .terms import BuilderStatus, CiProfile, Recommendation, Role, Sandbox, Severity, Verdict

GENESIS_HASH = "0" * 64
SUPERVISOR = "supervisor"
OPERATOR = "operator"


def is_by_hand(actor: str) -> bool:
    """Tell whether an operator did something; events of earlier versions name no person or key."""
    return actor == OPERATOR or actor.startswith("local:operator@") or actor.endswith(":operator")


# The time of an event before `Decision.record` sets it.
UNSTAMPED = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The fields of every event. `Decision.record` sets its time and, if none is set, its actor."""

    at: datetime = UNSTAMPED
    actor: str = ""

    @property
    def kind(self) -> str:
        return type(self).__name__


# The run


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    to_state: RunStatus = RunStatus.RUN_CREATED
    reason: str | None = None
    plan_sha256: str
    base_branch: str
    base_commit: str
    strategy_version: int
    is_sandbox_required: bool | None = None  # older records do not contain it
    # The failed run that this one continues, and the commit of its record.
    continues: str | None = None
    continued_commit: str | None = None
    # Whether a phase with new dependencies needs a review.
    dependencies_need_review: bool = False
    # Whether phases may be under way side by side.
    is_parallel: bool = False
    # The run whose commits this one makes again on a newer base, and the commit of its record.
    rebases: str | None = None
    rebased_commit: str | None = None
    # Of scope, caps, profiles and required evidence; older records do not contain it.
    terms_sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStateChanged(Event):
    from_state: RunStatus
    to_state: RunStatus
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run ended; a failure has a code, and `reason` explains it."""

    from_state: RunStatus
    to_state: RunStatus
    reason: str | None = None
    failure_code: FailureCode | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRolledBack(Event):
    """The branch of a run that is over was put back to the snapshot of a phase."""

    phase_id: str
    tier_id: str | None = None
    reason: str | None = None
    commit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineMeasured(Event):
    """CI's command ran on the run's base commit, before its phases need a verdict.

    `failing_checks` are the first names of the red checks, `checks_count` is how many there are.
    """

    reason: str | None = None
    profile: CiProfile
    commit: str
    verdict: Verdict
    failing_checks: tuple[str, ...] = ()
    checks_count: int = 0


# Tiers


@dataclass(frozen=True, slots=True, kw_only=True)
class TierStateChanged(Event):
    tier_id: str
    from_state: TierStatus
    to_state: TierStatus
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCleanlinessChanged(Event):
    tier_id: str
    from_state: Cleanliness
    to_state: Cleanliness
    reason: str | None = None


# Phases


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEvent(Event):
    phase_id: str
    tier_id: str | None = None  # which the decision sets
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseMoved(PhaseEvent):
    """A phase changed its state. `deadline_at` is when it must have left that state."""

    STATE: ClassVar[PhaseStatus]

    from_state: PhaseStatus | None = None  # which the decision sets
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseQueued(PhaseMoved):
    """The phase waits for a Builder. `is_attempt_used`: an operator took an attempt back."""

    STATE = PhaseStatus.QUEUED

    is_attempt_used: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseStarted(PhaseMoved):
    STATE = PhaseStatus.EXECUTING


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseGated(PhaseMoved):
    """The phase came to the gate, from which a review, CI or completion follows. (rules §2.1)"""

    STATE = PhaseStatus.GATE

    commit: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCiStarted(PhaseMoved):
    STATE = PhaseStatus.CI_RUNNING


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCompleted(PhaseMoved):
    STATE = PhaseStatus.COMPLETE

    completed_by: CompletedBy


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseFailed(PhaseMoved):
    STATE = PhaseStatus.FAILED


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSkipped(PhaseMoved):
    """The phase will not be built: an operator said so, or the run ended."""

    STATE = PhaseStatus.SKIPPED

    completed_by: CompletedBy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseUndone(PhaseEvent):
    """The tree is again what it was before the phase, which failed or has to be built again.

    `taken_off` are phases whose commits came after it: their patches are applied again.
    """

    commit: str
    tree: str
    taken_off: tuple[str, ...] = ()


# Work and leases


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseGranted(PhaseEvent):
    lease_id: int
    role: Role
    agent: str
    fence: int
    tokens_reserved: int
    cost_reserved_usd: Decimal = ZERO_USD
    account: str | None = None
    model: str | None = None
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseLapsed(PhaseEvent):
    """A Builder's attempt lasted too long: it used one try."""

    lease_id: int | None
    tokens_reported: int
    cost_reported_usd: Decimal = ZERO_USD


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLapsed(PhaseEvent):
    """A review lasted too long: it used one try of the Auditor."""

    lease_id: int | None
    tokens_reported: int
    cost_reported_usd: Decimal = ZERO_USD


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentUnavailable(PhaseEvent):
    """An agent could not work: its lease ends, and no try is used."""

    role: Role
    lease_id: int | None
    retry_at: datetime | None
    account: str | None
    tokens: int
    cost_usd: Decimal
    is_measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CapacityAwaited(PhaseEvent):
    """The phase waits for an agent's capacity, until `retry_at` where it is known."""

    retry_at: datetime | None = None
    account: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensCounted(PhaseEvent):
    """Tokens and money of an attempt. `is_measured`: a gateway counted them. (rules §3.1)"""

    tokens: int
    cost_usd: Decimal = ZERO_USD
    is_measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderResultReceived(PhaseEvent):
    """A Builder's attempt ended."""

    submission_id: int
    attempt: int
    status: BuilderStatus
    tokens_used: int
    cost_usd: Decimal = ZERO_USD
    patch_sha256: str | None
    model: str | None = None
    is_measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(PhaseEvent):
    """A try failed. Two tries with one `signature` failed in the same way."""

    role: Role
    signature: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TryReturned(PhaseEvent):
    """The Builder's try does not count: other phases have changed the branch since it began."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuilderTriesSpent(PhaseEvent):
    """The Builder loses the tries that it had left; `reason` names the rule. (rules §2.2, §3)

    Two tries failed in the same way, or the phase passed its cap of tokens. Tries that are used one
    by one record no such event.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchApplied(PhaseEvent):
    submission_id: int
    patch_sha256: str
    commit: str
    tree: str
    parent: str
    dependencies: tuple[DependencyChange, ...] = ()
    # It was on the branch before, and a phase before it was undone.
    is_again: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReplayed(PhaseEvent):
    """An accepted patch of the run that this one rebases is on the branch again.

    `original` is its commit there, in the phase `from_phase`; the Builders are of that phase.
    """

    original: str
    from_phase: str
    commit: str
    tree: str
    parent: str
    builders: tuple[str, ...] = ()
    builder_models: tuple[str, ...] = ()
    dependencies: tuple[DependencyChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchHeld(PhaseEvent):
    submission_id: int
    dependencies: tuple[DependencyChange, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRefused(PhaseEvent):
    submission_id: int


# Review


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRequested(PhaseEvent):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewOpened(PhaseEvent):
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditorResultReceived(PhaseEvent):
    submission_id: int
    attempt: int
    recommendation: Recommendation
    tokens_used: int
    cost_usd: Decimal = ZERO_USD
    patch_sha256s: tuple[str, ...]
    model: str | None = None
    is_measured: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewRefused(PhaseEvent):
    submission_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewFailed(PhaseEvent):
    """A review has no result, or none can be made; `reason` says why. (rules §2.1)

    What follows is another review, a Builder's try or the end of the phase.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingPatchDiscarded(PhaseEvent):
    """The pending patch no longer applies; the Auditor's try is returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalGiven(PhaseEvent):
    """An Auditor approved, and the phase needs other Auditors' approvals too.

    Its try is returned, unless it brought patches of its own.
    """

    commits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseApproved(PhaseEvent):
    """The last approval that the phase needed."""

    commits: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionRequested(PhaseEvent):
    """The Auditor sends the work back: a pending patch is discarded, fix-ups stay."""


# CI


@dataclass(frozen=True, slots=True, kw_only=True)
class CiRequested(PhaseEvent):
    ci_run_id: int
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CiStarted(PhaseEvent):
    ci_run_id: int
    deadline_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CiVerdictReceived(PhaseEvent):
    """CI judged a commit. A verdict with `is_repeated` is only recorded: another CI run follows."""

    ci_run_id: int
    commit: str
    verdict: Verdict
    sandbox: Sandbox | None = None
    failing_checks: tuple[str, ...]
    flaky: bool
    is_repeated: bool = False
    evidence: tuple[Evidence, ...] = ()
    # Of a cleanup phase: checks that were red where its issue was seen, and pass now.
    mended_checks: tuple[str, ...] = ()


# Issues


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueRecorded(PhaseEvent):
    issue_key: str
    category: str
    reported_severity: Severity | None
    severity: Severity
    effective_severity: Severity
    source: str
    is_expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueResolved(PhaseEvent):
    """A key is resolved in one phase, by an Auditor or by CI.

    Older records have no cause: they name a key once, in the phase where the Auditor or CI resolved
    it.
    """

    issue_key: str
    cause: Cause | None = None


# Records, and their chain

# In the data of each event of a request that is part of a trace: which span it was. It is hashed
# with the rest; events without it are as they were.
TRACEPARENT = "traceparent"


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRecord:
    """An event as it is stored, published and hashed."""

    kind: str
    actor: str
    at: datetime
    phase_id: str | None = None
    tier_id: str | None = None
    from_state: str | None = None
    to_state: str | None = None
    reason: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedEvent:
    """An event with its place in the run's chain."""

    sequence: int
    event: EventRecord
    previous_hash: str
    hash: str


class EventError(ValueError):
    """A record is not an event of a known kind and shape."""


_COLUMNS = frozenset(each.name for each in fields(EventRecord)) - {"kind", "data"}


def to_record(event: Event) -> EventRecord:
    """Write an event as it is stored."""
    columns: dict[str, Any] = {}
    data: dict[str, Any] = {}
    for name, default in _DEFAULTS[event.kind]:
        value = getattr(event, name)
        if name in _COLUMNS:
            columns[name] = value
        elif value != default:
            data[name] = _plain(value)
    if isinstance(event, PhaseMoved):
        columns["to_state"] = event.STATE
    return EventRecord(kind=event.kind, data=data, **columns)


def from_record(record: EventRecord) -> Event:
    """Read a stored event. Raises EventError for an unknown kind, or a value of a wrong type."""
    kind = _KINDS.get(record.kind)
    if kind is None:
        raise EventError(f"unknown event kind {record.kind!r}")
    given: dict[str, Any] = {}
    try:
        for name, read in _READERS[record.kind]:
            if name in _COLUMNS:
                value = getattr(record, name)
            elif name in record.data:
                value = record.data[name]
            else:
                continue
            given[name] = read(value)
        if issubclass(kind, PhaseMoved) and record.to_state != kind.STATE:
            raise ValueError(f"it leads to {record.to_state}")
        return kind(**given)
    except (TypeError, ValueError, InvalidOperation) as error:
        raise EventError(f"{record.kind} cannot be read: {error}") from None


def wire_time(moment: datetime) -> str:
    """Write a moment as UTC ISO 8601 with microseconds and `Z`."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def canonical_json(value: object) -> bytes:
    """Write JSON in the one form that is hashed."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def event_document(sequence: int, event: EventRecord, previous_hash: str) -> dict[str, Any]:
    """Return the event as it is published, without its own hash."""
    return {
        "sequence": sequence,
        "at": wire_time(event.at),
        "actor": event.actor,
        "kind": event.kind,
        "phase_id": event.phase_id,
        "tier_id": event.tier_id,
        "from_state": event.from_state,
        "to_state": event.to_state,
        "reason": event.reason,
        "data": dict(event.data),
        "previous_hash": previous_hash,
    }


def seal(events: Sequence[EventRecord], last_sequence: int, last_hash: str) -> list[SealedEvent]:
    """Append events to the run's hash chain."""
    sealed = []
    for event in events:
        last_sequence += 1
        document = event_document(last_sequence, event, last_hash)
        digest = hashlib.sha256(canonical_json(document)).hexdigest()
        sealed.append(
            SealedEvent(sequence=last_sequence, event=event, previous_hash=last_hash, hash=digest)
        )
        last_hash = digest
    return sealed


def _subclasses(kind: type[Event]) -> dict[str, type[Event]]:
    found: dict[str, type[Event]] = {}
    for each in kind.__subclasses__():
        found[each.__name__] = each
        found |= _subclasses(each)
    return found


def _hints(kind: type[Event]) -> list[tuple[str, Any]]:
    hints = typing.get_type_hints(kind)
    return [(each.name, hints[each.name]) for each in fields(kind)]


def _reader(hint: Any) -> Callable[[Any], Any]:
    """Return the function that reads a field's value from JSON, by the field's type."""
    if isinstance(hint, types.UnionType):  # `X | None`, the only union that events have
        inner = _reader(next(each for each in typing.get_args(hint) if each is not type(None)))
        return lambda value: None if value is None else inner(value)
    if typing.get_origin(hint) is tuple:
        inner = _reader(typing.get_args(hint)[0])
        return lambda value: tuple(inner(each) for each in _of_type(list, value))
    if hint is DependencyChange:
        return lambda value: hint(
            **{name: _of_type(str, each) for name, each in _of_type(dict, value).items()}
        )
    if hint is Evidence:
        return Evidence.read
    if hint is datetime:
        return _read_time
    if hint is Decimal:
        return _read_usd
    if issubclass(hint, StrEnum):
        return lambda value: hint(value)
    return lambda value: _of_type(hint, value)


def _of_type(kind: type[Any], value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of type {kind.__name__}")
    return value


def _read_usd(value: Any) -> Decimal:
    amount = Decimal(_of_type(str, value))
    if not 0 <= amount <= MAX_USD:  # a forged 1E+999999999 would be written out in full
        raise ValueError(f"{value!r} is no amount in USD")
    return amount


def _read_time(value: Any) -> datetime:
    return value if isinstance(value, datetime) else datetime.fromisoformat(value)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return wire_time(value)
    if isinstance(value, Decimal):
        return usd_text(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    if isinstance(value, DependencyChange):
        return dependency_document(value)
    if isinstance(value, Evidence):
        return value.document()
    return value


_KINDS = _subclasses(Event)
EVENT_KINDS = frozenset(_KINDS)
# For each kind: its fields with their defaults (`dataclasses.MISSING` where there is none), and the
# functions that read their values from JSON.
_DEFAULTS = {
    name: tuple((each.name, each.default) for each in fields(kind)) for name, kind in _KINDS.items()
}
_READERS = {
    name: tuple((each, _reader(hint)) for each, hint in _hints(kind))
    for name, kind in _KINDS.items()
}
