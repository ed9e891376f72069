"""`incident.json` and `incident.md`: one pack, for machines and for people."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal

from ..domain.incident import IncidentPack, TroubledPhase
from ..domain.money import short_usd
from .documents import encode
from .markdown import NONE, bullets, code, inline, quote, table

JSON_NAME = "incident.json"
PAGE_NAME = "incident.md"


def incident_json(pack: IncidentPack) -> bytes:
    """Render `incident.json`."""
    return encode(asdict(pack))


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
            f"{f', {short_usd(attempt.cost_usd)}' if attempt.cost_usd else ''}."
        )
        blocks += [quote(text) for text in (attempt.reason, attempt.notes) if text]
        if attempt.log_tail:
            blocks.append("Its last output:")
            blocks.append(quote(attempt.log_tail))
    return blocks
