"""A run as people look at it: its budgets as bars, its tiers and phases."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..api.schemas.runs import PhaseAnswer, RunAnswer, TierAnswer
from .terminal import cell

BAR_WIDTH = 24
NEARLY = 0.9
BLANK = Text("")


def run_view(run: RunAnswer) -> RenderableType:
    """Return all that a screen should hold of a run."""
    return Group(*_parts(run))


def _parts(run: RunAnswer) -> Iterator[RenderableType]:
    yield Text.assemble(
        cell(run.run_id, "bold"),
        "  ",
        cell(run.state),
        f"  {run.safety_profile}, {run.run_scope}  ",
        cell(f"{run.branch} at {run.head_commit[:10]}", "dim"),
    )
    if run.failure_reason:
        yield cell(f"{run.failure_code}: {run.failure_reason}", "red")
    for warning in run.warnings:
        yield cell(f"warning: {warning}", "yellow")
    yield BLANK
    yield _budgets(run)
    for tier in run.tiers:
        yield BLANK
        yield _tier(tier)
    if run.ended_at is not None:
        verdict = "eligible" if run.promotion_eligible_to_main else "not eligible"
        yield BLANK
        yield Text.assemble("promotion: ", cell(verdict))
        yield from (cell(f"  {reason}") for reason in run.promotion_reasons)


def _budgets(run: RunAnswer) -> Table:
    end = run.ended_at or datetime.now(UTC)
    minutes = max((end - run.created_at).total_seconds(), 0) / 60
    phases = [phase for tier in run.tiers for phase in tier.phases]
    grid = Table.grid(padding=(0, 2))
    done = sum(phase.state.is_final for phase in phases)
    grid.add_row("phases", _bar(done, len(phases), "green"), f"{done} of {len(phases)}")
    for name, used, cap in (
        ("tokens", run.tokens_used, run.token_cap),
        ("minutes", int(minutes), run.max_duration_minutes),
        ("minor issues", run.minor_issues_count, run.max_minor_issues_total),
    ):
        grid.add_row(name, _bar(used, cap), f"{used:,} of {cap:,}")
    return grid


def _tier(tier: TierAnswer) -> Table:
    done = sum(phase.state.is_final for phase in tier.phases)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_row(
        cell(tier.tier_id, "bold"),
        cell(tier.state),
        cell(tier.name, "bold"),
        _bar(done, len(tier.phases), "green"),
        cell(f"{done} of {len(tier.phases)} phases"),
        cell(f"{tier.tokens_used:,} of {tier.token_cap:,} tokens"),
    )
    for phase in tier.phases:
        table.add_row(*_phase(phase))
    return table


def _phase(phase: PhaseAnswer) -> tuple[RenderableType, ...]:
    tries = f"{phase.builder_attempts_used} of {phase.max_builder_attempts} tries"
    return (
        cell(f"  {phase.phase_id}"),
        cell(phase.state),
        cell(f"{phase.name}: {phase.failure_reason}" if phase.failure_reason else phase.name),
        _bar(phase.tokens_used, phase.incident_token_cap),
        cell(tries),
        cell(f"{phase.tokens_used:,} of {phase.incident_token_cap:,} tokens"),
    )


def _bar(used: int, cap: int, style: str = "") -> Text:
    """Draw the used share of a cap; a budget turns yellow near its end and red past it."""
    share = min(used / cap, 1.0) if cap else float(used > 0)
    if not style:
        style = "red" if used > cap else "yellow" if share > NEARLY else "cyan"
    filled = int(share * BAR_WIDTH)
    return Text.assemble(("━" * filled, style), ("─" * (BAR_WIDTH - filled), "dim"))
