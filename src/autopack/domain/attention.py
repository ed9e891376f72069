"""What needs a person: one function a kind, over plain values. (docs/attention.md)

Nothing of it is stored: an item is there while its cause is, and has the same `id` each time. Only
for a run that is over, the cause may stay for ever; an operator or the merge of its branch closes
it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final
from urllib.parse import quote

from .errors import ConflictError, NotFoundError
from .listing import listed
from .money import short_usd
from .naming import branch_name
from .printable import one_line
from .run import FailureCode
from .states import PhaseStatus, RunStatus
from .terms import Role
from .times import whole_minutes_used


class AttentionKind(StrEnum):
    """Why a person is needed."""

    RUN_FAILED = "run_failed"
    BRANCH_MOVED = "branch_moved"
    PROMOTION_BLOCKED = "promotion_blocked"
    RUN_ELIGIBLE = "run_eligible"
    BUDGET_LOW = "budget_low"
    AGENTS_UNAVAILABLE = "agents_unavailable"
    PHASE_UNCLAIMED = "phase_unclaimed"
    CI_DID_NOT_RUN = "ci_did_not_run"
    DEAF_GATE = "deaf_gate"
    PUSH_FAILING = "push_failing"
    ISSUES_AGED = "issues_aged"
    DISK_LOW = "disk_low"
    KEY_EXPIRING = "key_expiring"
    WEBHOOK_OFF = "webhook_off"


class Urgency(StrEnum):
    """`error`: work has stopped. `warning`: work will stop soon. `notice`: a person can wait."""

    ERROR = "error"
    WARNING = "warning"
    NOTICE = "notice"


class ClosedAs(StrEnum):
    """Why a run that is over needs no person any more."""

    MERGED = "merged"
    DISMISSED = "dismissed"
    CONTINUED = "continued"


class NotDismissibleError(ConflictError):
    code = "not_dismissible"


# A run that ended longer ago is listed by `GET /runs` alone.
LISTED_DAYS: Final = 30
MOST_OF_A_KIND: Final = 100
BUDGET_SHARE: Final = Decimal("0.8")
UNCLAIMED_AFTER: Final = timedelta(minutes=10)
KEY_WARNING: Final = timedelta(days=7)
NAMED_ISSUES: Final = 3
# A small disk is nearly full by its bytes, a large one by its share, unless enough bytes are left.
DISK_BYTES: Final = 1_000_000_000
DISK_SHARE: Final = 0.05
DISK_ENOUGH_BYTES: Final = 20_000_000_000
INODE_SHARE: Final = 0.02
TEXT_LENGTH: Final = 300

DISMISSIBLE: Final = frozenset(
    {
        AttentionKind.RUN_FAILED,
        AttentionKind.BRANCH_MOVED,
        AttentionKind.PROMOTION_BLOCKED,
        AttentionKind.RUN_ELIGIBLE,
        AttentionKind.CI_DID_NOT_RUN,
    }
)
# These concern keys and webhooks, which only operators may see.
FOR_OPERATORS: Final = frozenset({AttentionKind.KEY_EXPIRING, AttentionKind.WEBHOOK_OFF})


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do about it: a request of the API, and the command that does the same.

    `path` is None for what only a command does.
    """

    label: str
    command: str
    method: str = "GET"
    path: str | None = None
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """Something that needs a person. `since` is None where nothing tells it.

    `evidence` is a path of the API. `subject` tells needs of one kind apart.
    """

    kind: AttentionKind
    urgency: Urgency
    subject: str = ""
    since: datetime | None
    run_id: str | None = None
    phase_id: str | None = None
    text: str
    evidence: str
    action: Action

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.subject}" if self.subject else str(self.kind)

    @property
    def is_dismissible(self) -> bool:
        """Whether it is about a run that is over; the phase of a live run is none."""
        return self.kind in DISMISSIBLE and self.phase_id is None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndedRun:
    """A run that is over and not closed. `today` are the reasons against its merge as of now."""

    run_id: str
    state: RunStatus
    failure_code: FailureCode | None
    failure_reason: str | None
    is_eligible: bool
    reasons: Sequence[str]
    today: Sequence[str] = ()
    base_branch: str
    ended_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """A run that has used much of a budget. `tokens_since`, `cost_since`: from when on."""

    run_id: str
    created_at: datetime
    updated_at: datetime
    max_duration_minutes: int
    token_cap: int
    tokens_used: int
    tokens_since: datetime | None
    cost_cap_usd: Decimal | None
    cost_usd: Decimal
    cost_since: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPhase:
    """The phase that a live run is about, if no agent holds it or CI did not judge it.

    `since`: the last event that let it wait. `ci_failed_at`: when its last CI run did not run.
    `base_problem`: why CI's command does not run on the commit that the run started from.
    `deaf_gate`: which seeded faults CI did not notice when it last measured them, at `deaf_at`.
    """

    run_id: str
    phase_id: str
    state: PhaseStatus
    has_agent: bool
    since: datetime
    unavailable_reason: str | None
    retry_at: datetime | None
    ci_failed_at: datetime | None
    ci_reason: str | None
    base_problem: str | None = None
    run_created_at: datetime | None = None
    deaf_at: datetime | None = None
    deaf_gate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FailingPushes:
    """Pushes that fail; the run and the error are those of the one that waits longest."""

    count: int
    run_id: str
    since: datetime
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgedIssues:
    """Issues that wait for a cleanup; `keys` are the oldest of them."""

    count: int
    keys: Sequence[str]
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A file system of the service, by the folder that is on it."""

    name: str
    folder: str
    free_bytes: int
    total_bytes: int
    free_inodes: int
    total_inodes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiringKey:
    name: str
    roles: Sequence[str]
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedWebhook:
    name: str
    off_at: datetime
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """Everything that the rules look at, as of one moment."""

    ended: Sequence[EndedRun] = ()
    live: Sequence[LiveRun] = ()
    phases: Sequence[OpenPhase] = ()
    pushes: FailingPushes | None = None
    issues: AgedIssues | None = None
    disks: Sequence[Disk] = ()
    keys: Sequence[ExpiringKey] = ()
    webhooks: Sequence[StoppedWebhook] = ()


def _clipped(text: str) -> str:
    """Return foreign text as one short line, for the end of a sentence."""
    line = one_line(" ".join(text.split()))
    return line if len(line) <= TEXT_LENGTH else f"{line[: TEXT_LENGTH - 1]}…"


def _run(run_id: str) -> str:
    return f"/runs/{quote(run_id, safe='')}"


def _dismissal(kind: AttentionKind, run_id: str) -> Action:
    item = f"{kind}:{run_id}"
    return Action(
        label="Dismiss it when you have read why",
        method="POST",
        path=f"/attention/{quote(item, safe=':')}/dismiss",
        command=f"autopack attention dismiss {shlex.quote(item)}",
    )


# Failures that have a kind of their own; None is a success.
_OF_OTHER_KINDS: Final = (None, FailureCode.BRANCH_MOVED, FailureCode.CI_DID_NOT_RUN)


def _run_failed(now: Situation, _at: datetime) -> Iterator[Need]:
    for run in now.ended:
        if run.failure_code not in _OF_OTHER_KINDS:
            yield Need(
                kind=AttentionKind.RUN_FAILED,
                urgency=Urgency.ERROR,
                subject=run.run_id,
                since=run.ended_at,
                run_id=run.run_id,
                text=f"failed: {_clipped(run.failure_reason or str(run.failure_code))}",
                evidence=f"/reports/run_summary/{quote(run.run_id, safe='')}",
                action=Action(
                    label="Continue it when the cause is removed",
                    method="POST",
                    path=f"{_run(run.run_id)}/continue",
                    body={},
                    command=f"autopack run retry {run.run_id}",
                ),
            )


def _branch_moved(now: Situation, _at: datetime) -> Iterator[Need]:
    for run in now.ended:
        if run.failure_code is FailureCode.BRANCH_MOVED:
            yield Need(
                kind=AttentionKind.BRANCH_MOVED,
                urgency=Urgency.ERROR,
                subject=run.run_id,
                since=run.ended_at,
                run_id=run.run_id,
                text=f"ended because another process moved its branch:"
                f" {_clipped(run.failure_reason or branch_name(run.run_id))}",
                evidence=f"{_run(run.run_id)}/integration_status",
                action=_dismissal(AttentionKind.BRANCH_MOVED, run.run_id),
            )


def _promotion_blocked(now: Situation, _at: datetime) -> Iterator[Need]:
    for run in now.ended:
        reasons = [*run.reasons, *run.today]
        if run.failure_code is None and reasons:
            more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
            yield Need(
                kind=AttentionKind.PROMOTION_BLOCKED,
                urgency=Urgency.WARNING,
                subject=run.run_id,
                since=run.ended_at,
                run_id=run.run_id,
                text=f"succeeded, but may not be merged: {_clipped(reasons[0])}{more}",
                evidence=f"{_run(run.run_id)}/promotion",
                action=_dismissal(AttentionKind.PROMOTION_BLOCKED, run.run_id),
            )


def _run_eligible(now: Situation, _at: datetime) -> Iterator[Need]:
    for run in now.ended:
        if run.is_eligible and not run.today:
            yield Need(
                kind=AttentionKind.RUN_ELIGIBLE,
                urgency=Urgency.NOTICE,
                subject=run.run_id,
                since=run.ended_at,
                run_id=run.run_id,
                text=f"succeeded and may be merged into {run.base_branch}",
                evidence=f"{_run(run.run_id)}/promotion",
                action=Action(
                    label="Review and merge it",
                    path=f"{_run(run.run_id)}/promotion",
                    command=f"autopack promote {run.run_id} --open",
                ),
            )


def _budget_low(now: Situation, at: datetime) -> Iterator[Need]:
    for run in now.live:
        parts: list[tuple[str, datetime]] = []
        if run.tokens_used >= BUDGET_SHARE * run.token_cap:
            words = f"{_share(run.tokens_used, run.token_cap)} of its {run.token_cap:,} tokens"
            parts.append((words, run.tokens_since or run.updated_at))
        cap = run.cost_cap_usd
        if cap is not None and run.cost_usd >= BUDGET_SHARE * cap:
            words = f"{_share(run.cost_usd, cap)} of its {short_usd(cap)}"
            parts.append((words, run.cost_since or run.updated_at))
        since = run.created_at + timedelta(minutes=run.max_duration_minutes) * float(BUDGET_SHARE)
        if at >= since:
            minutes = whole_minutes_used(run.created_at, at)
            share = _share(minutes, run.max_duration_minutes)
            parts.append((f"{share} of its {run.max_duration_minutes:,} minutes", since))
        if parts:
            yield Need(
                kind=AttentionKind.BUDGET_LOW,
                urgency=Urgency.WARNING,
                subject=run.run_id,
                since=min(since for _, since in parts),
                run_id=run.run_id,
                text=f"has used {' and '.join(words for words, _ in parts)}",
                evidence=f"/metrics/tiers/{quote(run.run_id, safe='')}",
                action=Action(
                    label="Let it go on, or cancel it",
                    method="POST",
                    path=f"{_run(run.run_id)}/cancel",
                    body={"reason": "its budget is nearly used up"},
                    command=f"autopack run cancel {run.run_id}"
                    " --reason 'its budget is nearly used up'",
                ),
            )


def _share(used: int | Decimal, cap: int | Decimal) -> str:
    return f"{int(100 * used / cap)} %"


def _wanted(phase: OpenPhase) -> Role | None:
    """Return the role that a phase waits for; None if an agent or CI has the phase."""
    if phase.has_agent:
        return None
    roles = {PhaseStatus.QUEUED: Role.BUILDER, PhaseStatus.GATE: Role.AUDITOR}
    return roles.get(phase.state)


def _agents_unavailable(now: Situation, at: datetime) -> Iterator[Need]:
    for phase in now.phases:
        role = _wanted(phase)
        if role is not None and phase.unavailable_reason is not None:
            until = ""
            if phase.retry_at is not None and phase.retry_at > at:
                until = f" until {phase.retry_at:%Y-%m-%d %H:%M} UTC"
            yield Need(
                kind=AttentionKind.AGENTS_UNAVAILABLE,
                urgency=Urgency.WARNING,
                subject=f"{phase.run_id}:{phase.phase_id}",
                since=phase.since,
                run_id=phase.run_id,
                phase_id=phase.phase_id,
                text=f"phase {phase.phase_id} waits{until}: the last {role.capitalize()} had no"
                f" capacity ({_clipped(phase.unavailable_reason)})",
                evidence=_run(phase.run_id),
                action=_work(phase, role, f"Let {_article(role)} with another account work"),
            )


def _phase_unclaimed(now: Situation, at: datetime) -> Iterator[Need]:
    for phase in now.phases:
        role = _wanted(phase)
        is_late = at - phase.since >= UNCLAIMED_AFTER
        if role is not None and phase.unavailable_reason is None and is_late:
            yield Need(
                kind=AttentionKind.PHASE_UNCLAIMED,
                urgency=Urgency.WARNING,
                subject=f"{phase.run_id}:{phase.phase_id}",
                since=phase.since,
                run_id=phase.run_id,
                phase_id=phase.phase_id,
                text=f"phase {phase.phase_id} waits for {_article(role)}, and none has claimed it",
                evidence=_run(phase.run_id),
                action=_work(phase, role, f"Start {_article(role)}"),
            )


def _article(role: Role) -> str:
    return "a Builder" if role is Role.BUILDER else "an Auditor"


def _work(phase: OpenPhase, role: Role, label: str) -> Action:
    return Action(
        label=label,
        method="POST",
        path=f"{_run(phase.run_id)}/claim",
        body={"role": role, "agent": "NAME"},
        command=f"autopack work --run {phase.run_id} --{role} COMMAND",
    )


def _ci_did_not_run(now: Situation, _at: datetime) -> Iterator[Need]:
    for run in now.ended:
        if run.failure_code is FailureCode.CI_DID_NOT_RUN:
            yield _without_ci(run.run_id, None, run.ended_at, run.failure_reason)
    for phase in now.phases:
        if phase.ci_failed_at is not None:
            yield _without_ci(phase.run_id, phase.phase_id, phase.ci_failed_at, phase.ci_reason)
        elif phase.base_problem is not None:
            since, why = phase.run_created_at or phase.since, phase.base_problem
            yield _without_ci(phase.run_id, phase.phase_id, since, why)


def _without_ci(run_id: str, phase_id: str | None, since: datetime, why: str | None) -> Need:
    where = "" if phase_id is None else f" for phase {phase_id}"
    return Need(
        kind=AttentionKind.CI_DID_NOT_RUN,
        urgency=Urgency.ERROR,
        subject=run_id if phase_id is None else f"{run_id}:{phase_id}",
        since=since,
        run_id=run_id,
        phase_id=phase_id,
        text=f"CI could not run{where}: {_clipped(why or 'no reason was given')}",
        evidence=f"{_run(run_id)}/ci",
        action=Action(
            label="Try the CI command in its sandbox",
            path=f"{_run(run_id)}/ci",
            command="autopack ci try",
        ),
    )


def _deaf_gate(now: Situation, _at: datetime) -> Iterator[Need]:
    for phase in now.phases:
        if phase.deaf_gate is not None:
            yield Need(
                kind=AttentionKind.DEAF_GATE,
                urgency=Urgency.WARNING,
                subject=phase.run_id,
                since=phase.deaf_at or phase.since,
                run_id=phase.run_id,
                text=f"CI does not notice faults in the new code: {_clipped(phase.deaf_gate)}",
                evidence=f"{_run(phase.run_id)}/ci",
                action=Action(
                    label="Show that the CI command is red where it must be",
                    path=f"{_run(phase.run_id)}/ci",
                    command="autopack gate prove",
                ),
            )


def _push_failing(now: Situation, _at: datetime) -> Iterator[Need]:
    if (pushes := now.pushes) is not None:
        runs = "1 run waits" if pushes.count == 1 else f"{pushes.count} runs wait"
        yield Need(
            kind=AttentionKind.PUSH_FAILING,
            urgency=Urgency.ERROR,
            since=pushes.since,
            run_id=pushes.run_id,
            text=f"{runs} to be pushed: {_clipped(pushes.error)}",
            evidence=f"{_run(pushes.run_id)}/integration_status",
            action=Action(
                label="Find what is wrong with the remote",
                path="/health",
                command="autopack doctor",
            ),
        )


def _issues_aged(now: Situation, _at: datetime) -> Iterator[Need]:
    if (aged := now.issues) is not None:
        keys = listed([_clipped(key) for key in aged.keys], NAMED_ISSUES, count=aged.count)
        what = "1 issue is" if aged.count == 1 else f"{aged.count} issues are"
        yield Need(
            kind=AttentionKind.ISSUES_AGED,
            urgency=Urgency.NOTICE,
            since=aged.since,
            text=f"{what} old enough for a cleanup: {keys}",
            evidence="/project/issues/backlog?status=needs_cleanup",
            action=Action(
                label="Clean up in the next multi-tier run, or resolve by hand",
                method="POST",
                path=f"/project/issues/{quote(aged.keys[0], safe='')}/resolve",
                command=f"autopack issues resolve {shlex.quote(aged.keys[0])}",
            ),
        )


def _disk_low(now: Situation, _at: datetime) -> Iterator[Need]:
    for disk in now.disks:
        is_short = disk.free_bytes < DISK_BYTES or (
            disk.free_bytes < DISK_SHARE * disk.total_bytes and disk.free_bytes < DISK_ENOUGH_BYTES
        )
        has_few_inodes = disk.free_inodes < INODE_SHARE * disk.total_inodes
        if is_short or has_few_inodes:
            left = f"{disk.free_bytes / 1e9:.1f} GB"
            if not is_short:
                left = f"{disk.free_inodes:,} inodes"
            yield Need(
                kind=AttentionKind.DISK_LOW,
                urgency=Urgency.ERROR,
                subject=disk.name,
                since=None,
                text=f"{left} left on the disk of {disk.folder} ({disk.name})",
                evidence="/health",
                action=Action(
                    label="Make room",
                    path="/health",
                    command=f"df -h {shlex.quote(disk.folder)}",
                ),
            )


def key_warning_begins(created_at: datetime, expires_at: datetime) -> datetime:
    """Return when a key is about to expire: a week before, or a quarter of a shorter lifetime."""
    return expires_at - min(KEY_WARNING, (expires_at - created_at) / 4)


def _key_expiring(now: Situation, at: datetime) -> Iterator[Need]:
    for key in now.keys:
        since = key_warning_begins(key.created_at, key.expires_at)
        if since <= at < key.expires_at:
            name = f"{key.name[:60]}-2"
            roles = " ".join(f"--role {role}" for role in key.roles)
            yield Need(
                kind=AttentionKind.KEY_EXPIRING,
                urgency=Urgency.WARNING,
                subject=key.name,
                since=since,
                text=f"key {key.name} expires at {key.expires_at:%Y-%m-%d %H:%M} UTC",
                evidence="/keys",
                action=Action(
                    label="Make a key that takes its place",
                    method="POST",
                    path="/keys",
                    body={"name": name, "roles": list(key.roles)},
                    command=f"autopack keys create --name {name} {roles} --expires 90d",
                ),
            )


def _webhook_off(now: Situation, _at: datetime) -> Iterator[Need]:
    for webhook in now.webhooks:
        yield Need(
            kind=AttentionKind.WEBHOOK_OFF,
            urgency=Urgency.WARNING,
            subject=webhook.name,
            since=webhook.off_at,
            text=f"webhook {webhook.name} is off: {_clipped(webhook.reason)}",
            evidence=f"/webhooks/{webhook.name}/deliveries",
            action=Action(
                label="Switch it on again when its receiver answers",
                method="POST",
                path=f"/webhooks/{webhook.name}/enable",
                command=f"autopack webhooks enable {webhook.name}",
            ),
        )


Rule = Callable[[Situation, datetime], Iterator[Need]]

#: One rule a kind: what needs a person, in a situation at a time.
RULES: Final[Mapping[AttentionKind, Rule]] = {
    AttentionKind.RUN_FAILED: _run_failed,
    AttentionKind.BRANCH_MOVED: _branch_moved,
    AttentionKind.PROMOTION_BLOCKED: _promotion_blocked,
    AttentionKind.RUN_ELIGIBLE: _run_eligible,
    AttentionKind.BUDGET_LOW: _budget_low,
    AttentionKind.AGENTS_UNAVAILABLE: _agents_unavailable,
    AttentionKind.PHASE_UNCLAIMED: _phase_unclaimed,
    AttentionKind.CI_DID_NOT_RUN: _ci_did_not_run,
    AttentionKind.DEAF_GATE: _deaf_gate,
    AttentionKind.PUSH_FAILING: _push_failing,
    AttentionKind.ISSUES_AGED: _issues_aged,
    AttentionKind.DISK_LOW: _disk_low,
    AttentionKind.KEY_EXPIRING: _key_expiring,
    AttentionKind.WEBHOOK_OFF: _webhook_off,
}
_ORDER: Final = list(Urgency)


def needs(situation: Situation, at: datetime, *, is_operator: bool = True) -> list[Need]:
    """Return what needs a person, the most urgent first, then the newest."""
    found = [
        need
        for kind, rule in RULES.items()
        if is_operator or kind not in FOR_OPERATORS
        for need in rule(situation, at)
    ]
    newest = sorted(found, key=lambda need: need.since or at, reverse=True)
    return sorted(newest, key=lambda need: _ORDER.index(need.urgency))


def dismissed_run(item: str) -> str:
    """Return the run that an item is about, for its dismissal.

    Raises NotFoundError, NotDismissibleError for an item that goes with its cause alone.
    """
    kind, _, subject = item.partition(":")
    if kind not in set(AttentionKind):
        raise NotFoundError(f"there is no attention item '{_clipped(item)}'")
    if kind not in DISMISSIBLE:
        raise NotDismissibleError(
            f"{kind} goes when its cause goes; these can be dismissed: "
            f"{', '.join(sorted(DISMISSIBLE))}"
        )
    return subject.partition(":")[0]
