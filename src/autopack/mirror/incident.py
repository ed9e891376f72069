"""`incident.json` and `incident.md`: one incident pack, for machines and for people."""

from __future__ import annotations

from decimal import Decimal

from ..domain.incident import is_troubled, next_steps
from ..domain.issues import IssueStatus
from ..domain.money import short_usd
from ..domain.run import FailureCode
from ..domain.terms import Severity
from ..domain.times import whole_minutes_used
from ..views.incident import IncidentBudget, IncidentIssue, IncidentPack, TroubledPhase
from ..views.issues import PhaseIssue
from ..views.runs import PhaseDetail, RunDetail
from .documents import encode
from .markdown import NONE, bullets, code, inline, quote, table

JSON_NAME = "incident.json"
PAGE_NAME = "incident.md"
LAST_ATTEMPTS = 3


def incident_pack(run: RunDetail) -> IncidentPack | None:
    """Return the incident pack of a failed run; None for any other run.

    The run must contain the attempts and issues of all its phases.
    """
    if run.failure_code is None or run.failure_reason is None or run.ended_at is None:
        return None
    phases = run.phases
    return IncidentPack.of(
        run,
        phases=[_troubled(phase) for phase in phases if is_troubled(phase.state, phase.started_at)],
        budgets=_budgets(run),
        open_issues=[
            IncidentIssue.of(issue, phase_id=phase.phase_id, severity=issue.effective_severity)
            for phase in phases
            for issue in sorted(phase.issues, key=_gravest_first)
            if issue.status is IssueStatus.OPEN and not issue.is_expected
        ],
        next_steps=next_steps(
            run.failure_code,
            branch=run.branch,
            head_commit=run.head_commit,
            last_snapshot=run.last_snapshot,
        ),
    )


def _troubled(phase: PhaseDetail) -> TroubledPhase:
    return TroubledPhase.of(
        phase,
        attempts_count=len(phase.attempts),
        last_attempts=phase.attempts[-LAST_ATTEMPTS:],
    )


def _gravest_first(issue: PhaseIssue) -> tuple[bool, str]:
    return issue.effective_severity != Severity.MAJOR, issue.issue_key


def _budgets(run: RunDetail) -> list[IncidentBudget]:
    """Yield the budgets of the run and its tiers, and the exhausted budgets of phases."""
    minutes = whole_minutes_used(run.created_at, run.ended_at or run.updated_at)
    budgets = [_budget("run token_cap", run.token_cap, run.tokens_used)]
    if run.cost_cap_usd is not None:
        budgets.append(_budget("run cost_cap_usd", run.cost_cap_usd, run.cost_usd))
    duration = _budget("run max_duration_minutes", run.max_duration_minutes, minutes)
    duration.is_passed = run.failure_code is FailureCode.DURATION_CAP  # to the second, not minute
    issues = ("run max_minor_issues_total", run.max_minor_issues_total, run.minor_issues_count)
    budgets += [duration, _budget(*issues)]
    for tier in run.tiers:
        name = f"tier {tier.tier_id}"
        budgets.append(_budget(f"{name} token_cap", tier.token_cap, tier.tokens_used))
        budgets.append(_budget(f"{name} ci_run_cap", tier.ci_run_cap, tier.ci_runs_count))
        for phase in tier.phases:
            name = f"phase {phase.phase_id} incident_token_cap"
            used = _budget(name, phase.incident_token_cap, phase.tokens_used)
            budgets += [used] if used.is_passed else []
    return budgets


def _budget(name: str, cap: int | Decimal, used: int | Decimal) -> IncidentBudget:
    return IncidentBudget(name=name, cap=cap, used=used, is_passed=used > cap)


def incident_json(pack: IncidentPack) -> bytes:
    """Render `incident.json`."""
    document = pack.model_dump(mode="json")
    for phase in document["phases"]:
        for attempt in phase["last_attempts"]:  # in the order of earlier versions' files
            attempt["created_at"] = attempt.pop("created_at")
    return encode(document)


def incident_page(pack: IncidentPack) -> bytes:
    """Render `incident.md`."""
    blocks = [
        f"# Incident: run {inline(pack.run_id)}",
        f"**{pack.state}** ({code(pack.failure_code)})",
        quote(pack.failure_reason),
        "## What to do next",
        bullets(inline(step) for step in pack.next_steps),
        "## Phases in trouble",
        *(block for phase in pack.phases for block in _phase(phase)),
        "" if pack.phases else "None.",
        "## Budgets",
        table(
            ("Budget", "Used", "Cap", ""),
            (
                (
                    inline(budget.name),
                    _amount(budget.used),
                    _amount(budget.cap),
                    "passed" if budget.is_passed else "",
                )
                for budget in pack.budgets
            ),
            right=(1, 2),
        ),
        "## Open issues",
        (
            table(
                ("Issue", "Phase", "Severity", "Seen", "Source", "Description"),
                (
                    (
                        code(issue.issue_key),
                        code(issue.phase_id),
                        issue.severity,
                        f"{issue.occurrence_count:,}x",
                        inline(issue.source),
                        inline(issue.description, 160) if issue.description else NONE,
                    )
                    for issue in pack.open_issues
                ),
                right=(3,),
            )
            if pack.open_issues
            else "None."
        ),
        "## Branch",
        bullets(
            (
                f"**Branch:** {code(pack.branch)}",
                f"**Head:** {code(pack.head_commit)}",
                f"**Base:** {code(pack.base_branch)} at {code(pack.base_commit)}",
                f"**Last snapshot:** {code(pack.last_snapshot or '')}",
            )
        ),
    ]
    return ("\n\n".join(block for block in blocks if block) + "\n").encode("utf-8", "replace")


def _amount(figure: int | Decimal) -> str:
    return short_usd(figure) if isinstance(figure, Decimal) else f"{figure:,}"


def _phase(phase: TroubledPhase) -> list[str]:
    blocks = [
        f"### {inline(phase.phase_id)}: {inline(phase.name)}",
        f"`{phase.state}` after {phase.attempts_count} attempts.",
        quote(phase.failure_reason) if phase.failure_reason else "",
    ]
    for attempt in phase.last_attempts:
        who = ", ".join(inline(name) for name in (attempt.agent, attempt.model) if name)
        blocks.append(
            f"**{attempt.role.capitalize()} attempt {attempt.attempt}**"
            f"{f' ({who})' if who else ''}: {attempt.outcome}, {attempt.tokens_used:,} tokens"
            f"{' (measured)' if attempt.is_measured else ''}"
            f"{f', {short_usd(attempt.cost_usd)}' if attempt.cost_usd else ''}."
        )
        blocks += [quote(text) for text in (attempt.reason, attempt.notes) if text]
        if attempt.log_tail:
            blocks.append("Its last output:")
            blocks.append(quote(attempt.log_tail))
    return blocks
