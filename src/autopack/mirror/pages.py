"""The Markdown files: a run, its tiers, its phases, for people who open them on GitHub.

A page is a function of the run alone, without a clock: the same run gives the same bytes. All text
of agents goes through `markdown.inline`, `code` or `quote`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import NamedTuple

from ..domain.events import wire_time
from ..domain.issues import IssueStatus
from ..domain.money import short_usd
from ..domain.naming import strategy_name
from ..domain.order import first_at_hand
from ..domain.run import CompletedBy, DebtStatus, FailureCode, has_ended_early
from ..domain.state_words import PHASE_WORDS, TIER_WORDS
from ..domain.states import Cleanliness, PhaseStatus, RunStatus
from ..domain.terms import Independence, Sandbox, Verdict
from ..domain.times import duration
from ..views.issues import PhaseIssue
from ..views.results import AttemptDetail
from ..views.runs import PhaseDetail, RunDetail, TierDetail
from .dependencies import dependency_section, phase_dependencies
from .markdown import NONE, bullets, code, inline, quote, table

RUN_WORDS = {
    RunStatus.PLAN_BOOTSTRAP: "The plan is being written",
    RunStatus.RUN_CREATED: "Created",
    RunStatus.PHASE_QUEUEING: "Waiting for a Builder",
    RunStatus.PHASE_EXECUTION: "A Builder is at work",
    RunStatus.GATE: "In review",
    RunStatus.CI_RUNNING: "CI is running",
    RunStatus.SNAPSHOT_CREATED: "Snapshot taken, more to do",
    RunStatus.DONE_SUCCESS: "Succeeded",
    RunStatus.DONE_FAILED_BUDGET_EXHAUSTED: "Failed: a budget was exhausted",
    RunStatus.DONE_FAILED_POLICY_VIOLATION: "Failed: policy was violated",
    RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW: "Failed: needs a person's review",
    RunStatus.DONE_FAILED_ENVIRONMENT: "Failed: the environment is broken",
}
VERDICT_WORDS = {
    None: "none yet",
    Verdict.GREEN: "green",
    Verdict.RED: "red",
    Verdict.DID_NOT_RUN: "CI did not run",
}
DEBT_WORDS = {
    DebtStatus.CLEAN: "none",
    DebtStatus.HAS_MINOR_ISSUES: "minor issues",
    DebtStatus.EXCESS_MINOR_ISSUES: "more minor issues than allowed",
    DebtStatus.HAS_MAJOR_ISSUES: "major issues",
}
_STAMP = re.compile(rb"\A<!-- autopack revision=(\d{1,16}) created_at=(\S{1,32}) -->\n")
_SHORT_SHA = 7
_CELL = 160


@dataclass(frozen=True, slots=True)
class Stamp:
    """The run and revision that a page shows; `created_at` distinguishes two runs of one id."""

    revision: int
    created_at: datetime


def stamp_of(head: bytes) -> Stamp | None:
    """Read the stamp from the beginning of a page."""
    found = _STAMP.match(head)
    if found is None:
        return None
    try:
        return Stamp(int(found[1]), datetime.fromisoformat(found[2].decode("ascii")))
    except ValueError:
        return None


def tier_name(tier: TierDetail) -> str:
    return f"tier_{tier.tier_index}_{tier.tier_id}.md"


class PhaseInTable(NamedTuple):
    """What tables show of a phase, under the names of its view."""

    phase_id: str
    phase_index: int
    name: str
    state: PhaseStatus
    completed_by: CompletedBy | None
    builder_attempts_used: int
    auditor_attempts_used: int
    tokens_used: int
    cost_usd: Decimal
    major_issues_count: int
    minor_issues_count: int
    verdict: Verdict | None
    sandbox: Sandbox | None
    commit: str | None


_in_table = attrgetter(*PhaseInTable._fields)


def phase_name(phase: PhaseDetail | PhaseInTable) -> str:
    return f"phase_{phase.phase_index}_{phase.phase_id}.md"


def issues_name(phase_index: int, phase_id: str) -> str:
    return f"phase_{phase_index}_{phase_id}_issues.json"


def verdict_words(phase: PhaseDetail | PhaseInTable) -> str:
    """Return a phase's verdict in words, and whether its CI ran without a sandbox."""
    words = VERDICT_WORDS[phase.verdict]
    return f"{words}, without a sandbox" if phase.sandbox is Sandbox.NONE else words


def run_page(run: RunDetail) -> bytes:
    """Render `run_summary.md`."""
    phases = run.phases
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in phases)
    spent = (run.ended_at or run.updated_at) - run.created_at
    allowed = timedelta(minutes=run.max_duration_minutes)
    figures = [
        _figure("Phases complete", done, len(phases)),
        _figure("Tokens", run.tokens_used, run.token_cap),
        *_measured(run),
        _cost(run.cost_usd, run.cost_cap_usd),
        (
            "Duration" if run.ended_at else "Duration so far",
            duration(spent.total_seconds()),
            duration(allowed.total_seconds()),
            _percent(int(spent.total_seconds()), int(allowed.total_seconds())),
        ),
        _figure("Minor issues", run.minor_issues_count, run.max_minor_issues_total),
        ("Major issues", _number(run.major_issues_count), NONE, NONE),
    ]
    return _page(
        run,
        f"# Run {inline(run.run_id)}",
        f"**{_run_words(run)}** (`{run.state}`)",
        quote(run.failure_reason) if run.failure_reason else "",
        "## What next",
        _next_step(run, phases),
        "## Figures",
        _figures(figures),
        "## Promotion",
        *_promotion(run),
        "## Tiers and phases",
        *(block for tier in run.tiers for block in _tier_overview(tier)),
        *dependency_section(phases),
        "## Details",
        _facts(_whereabouts(run)),
    )


def _run_words(run: RunDetail) -> str:
    """Describe the state of a run; the state of a cancelled run is that of a failed one."""
    if run.failure_code is FailureCode.CANCELLED:
        return "Cancelled"
    return RUN_WORDS[run.state]


def _begun(words: str) -> str:
    """Return words as the begin of a sentence; `capitalize` would make `in CI` to `In ci`."""
    return words[:1].upper() + words[1:]


def tier_page(run: RunDetail, tier: TierDetail) -> bytes:
    """Render `tiers/tier_<tier_index>_<tier_id>.md`."""
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in tier.phases)
    figures = [
        _figure("Phases complete", done, len(tier.phases)),
        _figure("Tokens", tier.tokens_used, tier.token_cap),
        *_measured(tier),
        _cost(tier.cost_usd, None),
        _figure("CI runs", tier.ci_runs_count, tier.ci_run_cap),
        _figure("Minor issues", tier.minor_issues_count, tier.minors_tolerated),
        _figure("Major issues", tier.major_issues_count, tier.majors_tolerated),
    ]
    return _page(
        run,
        f"# Tier {inline(tier.tier_id)}: {inline(tier.name)}",
        f"**{_begun(_tier_words(tier))}** (`{tier.state}`), {_cleanliness(tier)}."
        f" Part of [run {inline(run.run_id)}](../run_summary.md).",
        bullets(inline(reason) for reason in tier.cleanliness_reasons),
        quote(tier.description) if tier.description else "",
        "## Figures",
        _figures(figures),
        "## Phases",
        _phase_table(tier.phases, "../phases/"),
    )


def phase_page(run: RunDetail, tier: TierDetail, phase: PhaseDetail) -> bytes:
    """Render `phases/phase_<phase_index>_<phase_id>.md`."""
    return _page(
        run,
        f"# Phase {inline(phase.phase_id)}: {inline(phase.name)}",
        f"**{_begun(PHASE_WORDS[phase.state])}** (`{phase.state}`){_by_hand(phase)}."
        f" Part of [tier {inline(tier.tier_id)}](../tiers/{tier_name(tier)})"
        f" of [run {inline(run.run_id)}](../run_summary.md).",
        quote(phase.failure_reason) if phase.failure_reason else "",
        "## Task",
        quote(phase.description) if phase.description else "No description.",
        _facts(_task(phase)),
        "## What was used" if phase.state.is_final else "## What is left",
        table(("Budget", "Used", "Left", "Allowed"), _budgets(phase), right=(1, 2, 3)),
        _facts(_times(phase)),
        "## Attempts",
        _attempts(phase.attempts),
        *_notes(phase.attempts),
        *phase_dependencies(phase),
        "## Issues",
        _issues(phase),
        "## Commits",
        _facts(_commits(phase)),
    )


def _page(run: RunDetail, *blocks: str) -> bytes:
    stamp = f"<!-- autopack revision={run.revision} created_at={wire_time(run.created_at)} -->"
    text = "\n\n".join([stamp, *(block for block in blocks if block)]) + "\n"
    return text.encode("utf-8", "replace")


def _phase_address(run: RunDetail, phase: PhaseDetail | None) -> str:
    return f"/runs/{run.run_id}/phases/{phase.phase_id if phase else '{phase_id}'}"


def _next_step(run: RunDetail, phases: Sequence[PhaseDetail]) -> str:
    current = first_at_hand(phases)
    name = f"phase {_phase_link(current, 'phases/')}" if current else "the next phase"
    until = f" until {_time(current.deadline_at)}" if current and current.deadline_at else ""
    match run.state:
        case RunStatus.PLAN_BOOTSTRAP:
            return "Nothing: the run starts by itself when its plan is written."
        case RunStatus.RUN_CREATED | RunStatus.PHASE_QUEUEING | RunStatus.SNAPSHOT_CREATED:
            return (
                f"A Builder takes {name} and posts its result:"
                f" `POST {_phase_address(run, current)}/builder_result`."
            )
        case RunStatus.PHASE_EXECUTION:
            return f"Nothing: a Builder has {name}{until}."
        case RunStatus.GATE:
            return (
                f"An Auditor reviews {name}{until}:"
                f" `POST {_phase_address(run, current)}/auditor_result`."
            )
        case RunStatus.CI_RUNNING:
            return f"Nothing: CI judges {name}{until}."
        case RunStatus.DONE_SUCCESS if run.promotion_eligible_to_main:
            command = f"autopack verify {run.run_id} --base {run.base_branch}"
            return (
                f"Review {code(run.branch)}, check its record ({code(command)}) and open a pull"
                f" request to {code(run.base_branch)} of [pull_request.md](pull_request.md)."
            )
        case RunStatus.DONE_SUCCESS:
            return (
                f"{code(run.branch)} is complete, but the reasons below forbid to merge it into"
                f" {code(run.base_branch)}. Settle them in a new run."
            )
        case RunStatus.DONE_FAILED_BUDGET_EXHAUSTED:
            return _after_failure(
                "raise that budget in the ruleset, or split the plan, and start a new run"
            )
        case RunStatus.DONE_FAILED_POLICY_VIOLATION:
            if run.failure_code is FailureCode.BRANCH_MOVED:
                return _after_failure(
                    f"find out which process moved {code(run.branch)} (the run left it at"
                    f" {_sha(run.head_commit)}), and start a new run"
                )
            return _after_failure("settle what broke the rules, and start a new run")
        case RunStatus.DONE_FAILED_ENVIRONMENT:
            return _after_failure("repair what could not run, and start a new run")
        case RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW if (
            run.failure_code is FailureCode.CANCELLED
        ):
            return "Nothing, unless you want to keep what is on the branch."
        case RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW:
            return _after_failure(
                "decide what to keep of the branch, change the plan, and start a new run"
            )


def _after_failure(advice: str) -> str:
    return f"Read [incident.md](incident.md), {advice}."


def _promotion(run: RunDetail) -> Iterable[str]:
    if not run.state.is_final:
        yield "Decided when the run ends."
        return
    if run.promotion_eligible_to_main:
        yield f"**Eligible** for {code(run.base_branch)}."
    else:
        yield f"**Not eligible** for {code(run.base_branch)}:"
    yield bullets(inline(reason) for reason in run.promotion_reasons)
    if run.promotion_warnings:
        yield "To look at before merging:"
        yield bullets(inline(warning) for warning in run.promotion_warnings)


def _tier_words(tier: TierDetail) -> str:
    return "ended early" if has_ended_early(tier.state, tier.phases) else TIER_WORDS[tier.state]


def _tier_overview(tier: TierDetail) -> Iterable[str]:
    yield (f"### [{inline(tier.tier_id)}](tiers/{tier_name(tier)}): {inline(tier.name, _CELL)}")
    yield f"{_begun(_tier_words(tier))}, {_cleanliness(tier)}."
    yield bullets(inline(reason) for reason in tier.cleanliness_reasons)
    yield _phase_table(tier.phases, "phases/")


def _cleanliness(tier: TierDetail) -> str:
    return "clean" if tier.cleanliness is Cleanliness.CLEAN else "not clean"


def _phase_table(phases: Sequence[PhaseDetail], place: str) -> str:
    if not phases:
        return "No phases."
    header = ("Phase", "Name", "State", "Attempts", "Tokens", "Cost", "Issues", "Verdict", "Commit")
    rows = (_phase_cells(PhaseInTable._make(_in_table(phase)), place) for phase in phases)
    return table(header, rows, right=(3, 4, 5))


@lru_cache(maxsize=4_096)  # two pages show all phases, of which a change moves one
def _phase_cells(phase: PhaseInTable, place: str) -> tuple[str, ...]:
    return (
        _phase_link(phase, place),
        inline(phase.name, _CELL),
        PHASE_WORDS[phase.state] + _by_hand(phase),
        str(phase.builder_attempts_used + phase.auditor_attempts_used),
        _number(phase.tokens_used),
        short_usd(phase.cost_usd),
        _issue_counts(phase),
        verdict_words(phase) if phase.verdict else NONE,
        _sha(phase.commit),
    )


def _phase_link(phase: PhaseDetail | PhaseInTable, place: str) -> str:
    return f"[{inline(phase.phase_id)}]({place}{phase_name(phase)})"


def _by_hand(phase: PhaseDetail | PhaseInTable) -> str:
    return " by hand" if phase.completed_by is CompletedBy.HAND else ""


def _issue_counts(phase: PhaseDetail | PhaseInTable) -> str:
    counts = ((phase.major_issues_count, "major"), (phase.minor_issues_count, "minor"))
    return ", ".join(f"{count} {word}" for count, word in counts if count) or NONE


def _whereabouts(run: RunDetail) -> Iterable[tuple[str, str]]:
    yield "Project", inline(run.project_id)
    yield "Branch", code(run.branch)
    yield "Head", code(run.head_commit)
    yield "Base", f"{code(run.base_branch)} at {code(run.base_commit)}"
    if run.base_problem is not None:
        yield "CI on the base", inline(run.base_problem)
    if run.continues is not None:
        yield "Continues", code(run.continues)
    if run.rebases is not None:
        yield "Rebases", code(run.rebases)
    yield "Last snapshot", code(run.last_snapshot or "")
    yield "Debt", DEBT_WORDS[run.debt_status]
    yield "Profile", f"{_words(run.safety_profile)}, {_words(run.run_scope)}"
    version = run.strategy_version
    yield "Strategy", f"[version {version}]({strategy_name(version)})"
    if run.started_by:
        yield "Started by", code(run.started_by)
    yield "Created", _time(run.created_at)
    yield "Changed", _time(run.updated_at)
    if run.ended_at:
        yield "Ended", _time(run.ended_at)
    else:
        yield "Deadline", _time(run.deadline_at)


def _task(phase: PhaseDetail) -> Iterable[tuple[str, str]]:
    yield "Category", code(phase.task_category)
    yield "Complexity", phase.complexity
    yield "Builder mode", code(phase.builder_mode or "")
    yield "CI profile", phase.ci_profile
    if phase.evidence_required:
        yield "Evidence that a green verdict needs", ", ".join(phase.evidence_required)
    yield "Patches", "applied at once" if phase.auto_apply else "pending until an Auditor approves"
    yield "Auditor profile", code(phase.auditor_profile or "")
    if phase.independence is not Independence.NONE:
        yield "Reviewed by another", phase.independence
    if phase.approvals_needed > 1:
        yield "Approvals", f"{phase.approvals_needed} Auditors must approve"
    if phase.allow_empty:
        yield "Empty result", "allowed"
    if phase.allowed_paths is not None:
        yield "Allowed paths", ", ".join(map(code, phase.allowed_paths)) or "none"
    if phase.expected_issues:
        yield "Expected issues", ", ".join(map(code, phase.expected_issues))


def _budgets(phase: PhaseDetail) -> Iterable[tuple[str, str, str, str]]:
    for name, used, allowed in (
        ("Builder tries", phase.builder_attempts_used, phase.max_builder_attempts),
        ("Auditor tries", phase.auditor_attempts_used, phase.max_auditor_attempts),
        ("Tokens", phase.tokens_used, phase.incident_token_cap),
    ):
        yield name, _number(used), _number(max(0, allowed - used)), _number(allowed)


def _times(phase: PhaseDetail) -> Iterable[tuple[str, str]]:
    if phase.started_at:
        yield "Started", _time(phase.started_at)
    for what, actor in (
        ("Built by", phase.built_by),
        ("Reviewed by", phase.reviewed_by),
        ("Judged by", phase.judged_by),
    ):
        if actor:
            yield what, code(actor)
    if phase.approvals_needed > 1 and phase.approved_by:
        yield "Approved by", ", ".join(map(code, phase.approved_by))
    if phase.ended_at:
        yield "Ended", _time(phase.ended_at)
    elif phase.unavailable_reason is not None:
        until = f" until {_time(phase.retry_at)}" if phase.retry_at else ""
        yield "Waits", f"for an agent{until}: {inline(phase.unavailable_reason)}"
    elif phase.deadline_at:
        yield "Deadline", _time(phase.deadline_at)


def _attempts(attempts: Sequence[AttemptDetail]) -> str:
    if not attempts:
        return "None yet."
    header = (
        "#",
        "Role",
        "Agent",
        "Outcome",
        "Reason",
        "Files",
        "Tokens",
        "Cost",
        "Commits",
        "When",
    )
    rows = (
        (
            str(attempt.attempt),
            attempt.role.capitalize(),
            _agent(attempt),
            _words(attempt.outcome),
            inline(attempt.reason, _CELL) if attempt.reason else NONE,
            str(len(attempt.files_changed)),
            _number(attempt.tokens_used) + (" (measured)" if attempt.is_measured else ""),
            NONE if attempt.cost_usd is None else short_usd(attempt.cost_usd),
            ", ".join(map(_sha, attempt.commits)) or NONE,
            _time(attempt.created_at),
        )
        for attempt in attempts
    )
    return table(header, rows, right=(0, 5, 6, 7))


def _agent(attempt: AttemptDetail) -> str:
    # Without a key the actor is the agent's name and the host.
    by_key = attempt.actor if attempt.actor and attempt.actor.startswith("key:") else None
    names = (attempt.agent, attempt.model, by_key)
    return ", ".join(inline(name, _CELL) for name in names if name) or NONE


def _notes(attempts: Sequence[AttemptDetail]) -> Iterable[str]:
    for attempt in attempts:
        who = f"{attempt.role.capitalize()} attempt {attempt.attempt}"
        if attempt.notes:
            yield f"### Notes of {who}"
            yield quote(attempt.notes)
        if attempt.log_tail:
            yield f"### Last output of {who}"
            yield quote(attempt.log_tail)


def _issues(phase: PhaseDetail) -> str:
    if not phase.issues:
        return "None."
    header = ("Issue", "Severity", "Status", "Seen", "Source", "Description")
    rows = (
        (
            code(issue.issue_key, _CELL),
            _severity(issue),
            "resolved" if issue.status is IssueStatus.RESOLVED else "open",
            f"{_number(issue.occurrence_count)}x",
            inline(issue.source, _CELL),
            inline(issue.description, _CELL) if issue.description else NONE,
        )
        for issue in phase.issues
    )
    listing = f"../issues/{issues_name(phase.phase_index, phase.phase_id)}"
    return f"{table(header, rows, right=(3,))}\n\n[All reports]({listing})."


def _severity(issue: PhaseIssue) -> str:
    if issue.is_expected:
        return f"{issue.severity}, expected"
    if issue.effective_severity != issue.severity:
        return f"{issue.effective_severity}, aged from {issue.severity}"
    return issue.severity


def _commits(phase: PhaseDetail) -> Iterable[tuple[str, str]]:
    if phase.depends_on is not None:
        yield "Depends on", ", ".join(map(code, phase.depends_on)) or "no other phase"
    yield "Started from", code(phase.start_commit or "")
    for attempt in phase.attempts:
        for commit in attempt.commits:
            yield f"{attempt.role.capitalize()} attempt {attempt.attempt}", code(commit)
    yield "Ended at", code(phase.commit or "")
    yield "Snapshot", code(phase.snapshot_tag or "")
    yield "Verdict", verdict_words(phase)
    for each in phase.evidence:
        yield "Evidence", inline(each.text)


def _sha(commit: str | None) -> str:
    return code((commit or "")[:_SHORT_SHA])


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(count: int) -> str:
    return f"{count:,}"


def _figures(rows: Iterable[tuple[str, str, str, str]]) -> str:
    return table(("Figure", "So far", "Allowed", "Share"), rows, right=(1, 2, 3))


def _figure(name: str, count: int, allowed: int) -> tuple[str, str, str, str]:
    return name, _number(count), _number(allowed), _percent(count, allowed)


def _measured(spender: RunDetail | TierDetail) -> Iterable[tuple[str, str, str, str]]:
    """Say how many of the tokens a gateway counted. Nothing, where it counted none."""
    if spender.tokens_measured:
        yield "Tokens measured", _number(spender.tokens_measured), NONE, NONE


def _cost(spent: Decimal, cap: Decimal | None) -> tuple[str, str, str, str]:
    if cap is None:
        return "Cost", short_usd(spent), NONE, NONE
    return "Cost", short_usd(spent), short_usd(cap), f"{int(100 * spent / cap)}%"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return bullets(f"**{name}:** {value}" for name, value in facts if value != NONE)


def _percent(part: int, whole: int) -> str:
    return f"{100 * part // whole}%" if whole else NONE


def _time(moment: datetime | None) -> str:
    if moment is None:
        return NONE
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
