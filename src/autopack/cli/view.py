"""The view of a run for people: budgets as bars, tiers and phases."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..domain.money import measured_text, short_usd
from ..domain.run import FailureCode
from ..domain.states import PhaseStatus, RunStatus, TierStatus
from ..domain.terms import Sandbox
from ..domain.times import whole_minutes_used
from ..views.runs import ListedRun, PhaseAnswer, RunAnswer, TierAnswer
from .terminal import cell

BAR_WIDTH = 24
ID_WIDTH = 20
HEAD_LINES = 10
NEARLY = 0.9
BLANK = Text("")


def run_view(run: RunAnswer, height: int | None = None) -> RenderableType:
    """Return the view; in a window of that many lines only active tiers show their phases."""
    lines = HEAD_LINES + sum(len(tier.phases) + 2 for tier in run.tiers)
    return Group(*_parts(run, is_folded=height is not None and lines > height))


def _parts(run: RunAnswer, *, is_folded: bool) -> Iterator[RenderableType]:
    yield Text.assemble(
        cell(run.run_id, "bold"),
        "  ",
        cell(run.state),
        f"  {run.safety_profile}, {run.run_scope}  ",
        cell(f"{run.branch} at {run.head_commit[:10]}", "dim"),
    )
    if run.continues is not None:
        yield cell(f"continues {run.continues}", "dim")
    if run.rebases is not None:
        yield cell(f"rebases {run.rebases}", "dim")
    if run.failure_reason:
        is_told = run.failure_code is FailureCode.CANCELLED  # its reason starts with that word
        yield cell(
            run.failure_reason if is_told else f"{run.failure_code}: {run.failure_reason}", "red"
        )
    yield cell(f"next: {run.next.detail}", "yellow" if run.next.will_fail else "")
    for warning in run.warnings:
        yield cell(f"warning: {warning}", "yellow")
    yield BLANK
    yield _budgets(run)
    yield BLANK
    yield _tiers(run.tiers, is_folded=is_folded)
    if run.ended_at is not None:
        verdict = "eligible" if run.promotion_eligible_to_main else "not eligible"
        yield BLANK
        yield Text.assemble("promotion: ", cell(verdict))
        yield from (cell(f"  {reason}") for reason in run.promotion_reasons)


def _budgets(run: RunAnswer) -> Table:
    minutes = whole_minutes_used(run.created_at, run.ended_at or datetime.now(UTC))
    phases = run.phases
    grid = Table.grid(padding=(0, 2))
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in phases)
    grid.add_row("phases", _bar(done, len(phases), "green"), _ends(phases))
    for name, used, cap in (
        ("tokens", run.tokens_used, run.token_cap),
        ("minutes", minutes, run.max_duration_minutes),
        ("minor issues", run.minor_issues_count, run.max_minor_issues_total),
    ):
        counted = measured_text(used, run.tokens_measured) if name == "tokens" else ""
        grid.add_row(name, _bar(used, cap), f"{used:,} of {cap:,}{counted and ', '}{counted}")
    if run.cost_cap_usd is None:
        grid.add_row("cost", BLANK, short_usd(run.cost_usd))
    else:
        of = f"{short_usd(run.cost_usd)} of {short_usd(run.cost_cap_usd)}"
        grid.add_row("cost", _bar(float(run.cost_usd), float(run.cost_cap_usd)), of)
    return grid


def _ends(phases: Sequence[PhaseAnswer]) -> str:
    """Say how many phases are complete, and how many ended in another way."""
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in phases)
    others = ((PhaseStatus.FAILED, "failed"), (PhaseStatus.SKIPPED, "skipped"))
    counts = ((sum(phase.state is state for phase in phases), word) for state, word in others)
    ends = "".join(f", {count} {word}" for count, word in counts if count)
    return f"{done} of {len(phases)}{ends}"


def runs_view(runs: Sequence[ListedRun]) -> RenderableType:
    """Return the list of runs for a terminal: one line each, in which only the id is cut."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("run", overflow="ellipsis")  # the one that may become narrower
    for heading in ("state", "phases", "tokens", "started"):
        table.add_column(heading, no_wrap=True)
    for run in runs:
        table.add_row(
            _on_one_line(cell(run.run_id)),
            _short_state(run),
            cell(f"{run.phases_complete}/{run.phases_total}"),
            cell(f"{_short(run.tokens_used)}/{_short(run.token_cap)}"),
            cell(f"{run.created_at:%m-%d %H:%M}"),
        )
    return table


_FAILURES = {
    RunStatus.DONE_FAILED_BUDGET_EXHAUSTED: "budget",
    RunStatus.DONE_FAILED_POLICY_VIOLATION: "policy",
    RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW: "review",
    RunStatus.DONE_FAILED_ENVIRONMENT: "environment",
}


def _short_state(run: ListedRun) -> Text:
    """Return a run's state in a few words: its progress, or how it ended."""
    if run.failure_code is FailureCode.CANCELLED:  # its state is that of a failure
        return cell("cancelled", "dim")
    if run.state is RunStatus.DONE_SUCCESS:
        is_eligible = run.promotion_eligible_to_main
        return cell(
            "done, eligible" if is_eligible else "done, blocked",
            "green" if is_eligible else "yellow",
        )
    if run.state in _FAILURES:
        return cell(f"failed: {_FAILURES[run.state]}", "red")
    return cell(run.state.lower().replace("_", " "), "cyan")


def _tiers(tiers: Sequence[TierAnswer], *, is_folded: bool) -> Table:
    """Return a table with one line for each tier and phase; in 80 columns only the name is cut."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, overflow="ellipsis", max_width=ID_WIDTH)
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", ratio=1)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, justify="right")
    for number, tier in enumerate(tiers):
        is_open = not is_folded or tier.state in (TierStatus.IN_PROGRESS, TierStatus.FAILED)
        if number and not is_folded:
            table.add_row()
        table.add_row(*_tier(tier))
        for phase in tier.phases if is_open else ():
            table.add_row(*_phase(phase))
            if why := _why(phase):
                style = "red" if phase.unavailable_reason is None else "yellow"
                table.add_row("", "", cell(why, style))
    return table


def _tier(tier: TierAnswer) -> tuple[Text, ...]:
    done = sum(phase.state is PhaseStatus.COMPLETE for phase in tier.phases)
    return (
        cell(tier.tier_id, "bold"),
        cell(tier.state),
        _on_one_line(cell(tier.name, "bold")),
        BLANK,
        cell(f"{done}/{len(tier.phases)} phases"),
        cell(f"{_short(tier.tokens_used)}/{_short(tier.token_cap)}"),
        cell(short_usd(tier.cost_usd) if tier.cost_usd else ""),
    )


def _phase(phase: PhaseAnswer) -> tuple[Text, ...]:
    unconfined = ", no sandbox" if phase.sandbox is Sandbox.NONE else ""
    return (
        cell(f"  {phase.phase_id}"),
        cell(phase.state),
        _on_one_line(cell(phase.name)),
        cell(f"CI {phase.verdict}{unconfined}" if phase.verdict else ""),
        cell(f"{phase.builder_attempts_used}/{phase.max_builder_attempts} tries"),
        cell(f"{_short(phase.tokens_used)}/{_short(phase.incident_token_cap)}"),
        cell(short_usd(phase.cost_usd) if phase.cost_usd else ""),
    )


def _why(phase: PhaseAnswer) -> str | None:
    """Return what a phase waits for, else why its last try failed."""
    if phase.unavailable_reason is None:
        return phase.failure_reason
    until = f" until {phase.retry_at:%Y-%m-%d %H:%M UTC}" if phase.retry_at else ""
    return f"waits for an agent{until}: {phase.unavailable_reason}"


def _on_one_line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _short(count: int) -> str:
    """Return a count of tokens with about three digits."""
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _bar(used: float, cap: float, style: str = "") -> Text:
    """Return a bar for the used share of a cap; yellow near the cap and red above it."""
    share = min(used / cap, 1.0) if cap else float(used > 0)
    if not style:
        style = "red" if used > cap else "yellow" if share > NEARLY else "cyan"
    filled = int(share * BAR_WIDTH)
    return Text.assemble(("━" * filled, style), ("─" * (BAR_WIDTH - filled), "dim"))
