"""The page of one run: its phases, one of them in detail, and what an operator can do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse

from ..api.inputs import Context, RunId
from ..domain.errors import ConflictError
from ..domain.money import measured_text, short_usd
from ..domain.next_step import step_when_blocked
from ..domain.operating import require_rollback
from ..domain.rehearsal import RehearsalResult
from ..domain.segments import SegmentKind
from ..domain.states import PhaseStatus, RunStatus
from ..domain.times import duration, whole_minutes_used
from ..services import run_pages
from ..services.context import AppContext
from ..services.run_pages import RunAndPhase
from ..views.promotion import PromotionVerdictAnswer
from ..views.results import TimelineAnswer
from ..views.runs import PhaseAnswer, RunAnswer
from .changes import read_changes
from .pages import shown_state
from .rendering import HOME
from .routes import InPage, PageRoute

router = APIRouter(include_in_schema=False, route_class=PageRoute)

# The parts of the page that change while it is open, by the id of their element.
PARTS: Final = ("head", "facts", "tiers", "next", "budgets", "promotion", "phase")
TICKET_PLACES: Final = 20


@router.get(f"{HOME}/runs/{{run_id}}")
def show_run(
    context: Context,
    page: InPage,
    run_id: RunId,
    phase: Annotated[str | None, Query(max_length=200)] = None,
) -> HTMLResponse:
    """Show a run, and one of its phases in detail."""
    values = run_values(context, run_id, phase, page.now)
    run: RunAnswer = values["r"]
    chosen: PhaseAnswer = values["sel"]
    stream = None
    if run.ended_at is None:
        stream = f"{page.root}{HOME}/stream?page=run&run={run_id}&phase={chosen.phase_id}"
        stream += f"&after={values['event_count']}"
    return page.render(
        "run.html",
        here="runs",
        stream=stream,
        json=(
            f"/runs/{run_id}",
            f"/runs/{run_id}/phases/{chosen.phase_id}/attempts",
            f"/runs/{run_id}/ci",
            f"/runs/{run_id}/events",
            f"/runs/{run_id}/promotion",
        ),
        **values,
    )


def run_values(
    context: AppContext, run_id: str, phase_id: str | None, now: datetime
) -> dict[str, Any]:
    """Return what the page's template knows of a run. Raises NotFoundError."""
    found = run_pages.read_run_page(context, run_id, phase_id)
    run, phase = found.run, found.phase
    promotion = run_pages.read_promotion(context, run_id)
    return {
        "r": run,
        "sel": phase,
        "shown": shown_state(run),
        "sentence": _sentence(run, promotion),
        "next_detail": _next_detail(run, promotion),
        "phases": [each for tier in run.tiers for each in tier.phases],
        "lease": next((each for each in run.leases if each.phase_id == phase.phase_id), None),
        "attempts": found.attempts,
        "ci_command": found.ci_command,
        "falls": waterfalls(found.timeline, run, now),
        "axis": (f"{run.created_at:%H:%M}", f"{run.ended_at or now:%H:%M}"),
        "is_failed": run.ended_at is not None and run.state is not RunStatus.DONE_SUCCESS,
        "not_continuable": found.not_continuable,
        "tickets": {each.id: _ticket(each.ticket) for each in found.attempts if each.ticket},
        "ci_runs": found.ci_runs,
        "issues": found.issues,
        "feed": found.latest,
        "event_count": found.event_count,
        "budgets": _budgets(run, now),
        "promotion": promotion,
        "checks": _checks(run, promotion),
        "changes": read_changes(run_pages.read_changes(context, run_id, phase.phase_id)),
        "moves": found.moves,
        "snapshots": _snapshots(run, found),
    }


@dataclass(frozen=True, slots=True)
class Mark:
    """A mark of a waterfall; `x` and `width` are percents of the run's time."""

    kind: str
    x: float
    width: float = 0


@dataclass(frozen=True, slots=True)
class Waterfall:
    """How the time of a phase was spent; `words` say the same."""

    marks: list[Mark]
    words: str


# Work without one of these was lost: a cross says so.
_LOST: Final = frozenset(
    {"conflict", "failed", "refused", "over_budget", "lapsed", "empty", "red", "did_not_run"}
)
_FORMS: Final = {
    SegmentKind.WAIT: "w",
    SegmentKind.BUILD: "b",
    SegmentKind.REVIEW: "r",
    SegmentKind.CI: "c",
}
_WORDS: Final = {
    SegmentKind.WAIT: "waited",
    SegmentKind.BUILD: "built",
    SegmentKind.REVIEW: "was reviewed",
    SegmentKind.CI: "was in CI",
}
_LEAST_WIDTH: Final = 0.6


def waterfalls(timeline: TimelineAnswer, run: RunAnswer, now: datetime) -> dict[str, Waterfall]:
    """Place the parts of each phase's time on the time of the run."""
    end = run.ended_at or now
    whole = max((end - run.created_at).total_seconds(), 1.0)

    def place(moment: datetime) -> float:
        share = (min(max(moment, run.created_at), end) - run.created_at).total_seconds() / whole
        return round(100 * share, 2)

    found = {}
    for phase in timeline.phases:
        marks, seconds = [], dict.fromkeys(SegmentKind, 0.0)
        for each in phase.segments:
            until = each.ended_at or end
            left = place(each.started_at)
            width = round(max(place(until) - left, _LEAST_WIDTH), 2)
            marks.append(Mark(_FORMS[each.kind], min(left, 100 - _LEAST_WIDTH), width))
            if each.outcome in _LOST:
                marks.append(Mark("x", min(left + width, 99)))
            seconds[each.kind] += max(0.0, (until - each.started_at).total_seconds())
        words = [f"{_WORDS[kind]} {duration(spent)}" for kind, spent in seconds.items() if spent]
        if marks:
            found[phase.phase_id] = Waterfall(marks, ", ".join(words) or "no time yet")
    return found


def _sentence(run: RunAnswer, promotion: PromotionVerdictAnswer) -> str:
    """Describe in a sentence how far the run is or how it ended, and whether it may be merged."""
    states = [phase.state for phase in run.phases]
    complete = f"{states.count(PhaseStatus.COMPLETE)} of {len(states)} phases complete"
    if run.ended_at is None:
        return f"{complete}: {run.next.detail}"
    took = f"after {duration((run.ended_at - run.created_at).total_seconds())}"
    if run.state is not RunStatus.DONE_SUCCESS:
        return f"Ended {took}, {complete}: {run.failure_reason or run.state}"
    if promotion.eligible:
        return f"Succeeded {took}. It may be merged into {run.base_branch}."
    reasons = "; ".join(promotion.reasons)
    return f"Succeeded {took}, but may not be merged into {run.base_branch}: {reasons}"


def _next_detail(run: RunAnswer, promotion: PromotionVerdictAnswer) -> str:
    """Return the next step; today's base branch may make it another one than at the run's end."""
    if run.promotion_eligible_to_main and not promotion.eligible:
        return step_when_blocked(run.branch, run.base_branch)
    return run.next.detail


def _snapshots(run: RunAnswer, found: RunAndPhase) -> list[str]:
    """Return the phases to whose end the branch can be reset."""
    try:
        require_rollback(run)
    except ConflictError:
        return []
    return [
        phase.phase_id
        for phase in run.phases
        if phase.state is PhaseStatus.COMPLETE and phase.snapshot_tag is not None
    ]


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as it is shown; a bar only where there is a cap."""

    name: str
    used: str
    cap: str = ""
    parts: tuple[float, float, float] | None = None
    note: str = ""


def _budgets(run: RunAnswer, now: datetime) -> list[Budget]:
    # Whole minutes, so that the part does not differ at each look.
    minutes = whole_minutes_used(run.created_at, run.ended_at or now)
    cost, cost_cap = float(run.cost_usd), run.cost_cap_usd
    held = float(run.cost_reserved_usd)
    return [
        Budget(
            "Tokens",
            f"{run.tokens_used:,}",
            f"{run.token_cap:,}",
            (run.tokens_used, run.token_cap, run.tokens_reserved),
            ", ".join(
                filter(
                    None,
                    (
                        f"{run.tokens_reserved:,} reserved" if run.tokens_reserved else "",
                        measured_text(run.tokens_used, run.tokens_measured),
                    ),
                )
            ),
        ),
        Budget(
            "Cost",
            f"${cost:,.2f}",
            "no cap" if cost_cap is None else f"${float(cost_cap):,.2f}",
            None if cost_cap is None else (cost, float(cost_cap), held),
            _dearest(run),
        ),
        Budget(
            "Minutes",
            f"{minutes:,}",
            f"{run.max_duration_minutes:,}",
            (minutes, run.max_duration_minutes, 0),
        ),
        Budget(
            "Minor issues",
            f"{run.minor_issues_count:,}",
            f"{run.max_minor_issues_total:,}",
            (run.minor_issues_count, run.max_minor_issues_total or 1, 0),
        ),
    ]


def _dearest(run: RunAnswer) -> str:
    """Name the phase that cost most, where one cost more than the others."""
    phases = run.phases
    first, *others = sorted(phases, key=lambda phase: phase.cost_usd, reverse=True)
    if not others or first.cost_usd == others[0].cost_usd:
        return ""
    return f"most in {first.phase_id}: {short_usd(first.cost_usd)}"


def _checks(run: RunAnswer, promotion: PromotionVerdictAnswer) -> list[tuple[str, str, str]]:
    """Return what speaks for and against merging: a state, a word, an explanation."""
    checks = []
    if run.ended_at is None:
        checks.append(("undecided", "the run is not over", "It is decided at its end."))
    else:
        checks += [("blocked", "against it", reason) for reason in promotion.reasons]
    checks += [("did_not_run", "look at", warning) for warning in promotion.warnings]
    rehearsal = promotion.rehearsal
    if rehearsal is not None and rehearsal.result is RehearsalResult.CLEAN:
        base = f"{rehearsal.base_branch} at {rehearsal.base_commit[:12]}"
        checks.append(("green", "merges", f"rehearsed with {base}"))
    if promotion.eligible:
        checks.append(("eligible", "every condition is met", ""))
    return checks


def _ticket(ticket: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the places of a repair ticket: what stands there, and what the patch makes of it."""
    places: list[dict[str, Any]] = []
    for file in ticket.get("files", ()):
        path = file.get("path") or ""
        hunks = [each for each in file.get("hunks", ()) if each.get("reason")]
        for hunk in hunks or [file]:
            is_merged = "merged" in hunk
            places.append(
                {
                    "path": path,
                    "reason": hunk.get("reason") or "",
                    "line": hunk.get("now_start"),
                    "now": hunk.get("now"),
                    "title": "Merged with the patch" if is_merged else "Where both differ",
                    "wanted": hunk.get("merged") or hunk.get("conflict") or "",
                }
            )
    return places[:TICKET_PLACES]
