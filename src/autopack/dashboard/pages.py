"""The pages of all runs: overview, list, how to start one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, HTMLResponse
from starlette.exceptions import HTTPException

from ..api.inputs import Context, Cursor, decode_moment, encode_moment
from ..domain.promotion import PromotionState
from ..domain.run import FailureCode
from ..domain.run_filter import RunFilter
from ..domain.states import RunStatus
from ..domain.times import whole_minutes_used
from ..services import runs
from ..services.attention import attention, last_rehearsals
from ..services.context import AppContext
from ..services.nodes import list_nodes
from ..views.attention import AttentionItem
from ..views.runs import ListedRun
from .rendering import HOME, STATIC, Page, assets_version
from .routes import InPage, PageRoute, not_found

router = APIRouter(include_in_schema=False, route_class=PageRoute)

RUNS_A_PAGE: Final = 50
RUNS_ON_HOME: Final = 25
ITEMS_OF_A_KIND: Final = 3
SINCE: Final = timedelta(days=1)
MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
LIVE, CANCELLED = "live", "cancelled"
CHOICES: Final = (
    ("", "All"),
    (LIVE, "Under way"),
    (RunStatus.DONE_SUCCESS, "Succeeded"),
    (RunStatus.DONE_FAILED_REQUIRES_HUMAN_REVIEW, "Needs a person"),
    (RunStatus.DONE_FAILED_BUDGET_EXHAUSTED, "Budget spent"),
    (RunStatus.DONE_FAILED_ENVIRONMENT, "Environment failed"),
    (RunStatus.DONE_FAILED_POLICY_VIOLATION, "Policy violated"),
    (CANCELLED, "Cancelled"),
)


@router.get(HOME)
def home(context: Context, page: InPage) -> HTMLResponse:
    """Show what runs and what ended since yesterday."""
    return page.render(
        "home.html",
        here="home",
        json=("/runs?live=true", "/attention", "/nodes"),
        stream=f"{page.root}{HOME}/stream?page=home",
        **home_values(context, page.now),
        address=str(page.request.base_url).rstrip("/"),
    )


def home_values(context: AppContext, now: datetime) -> dict[str, Any]:
    """Return what the overview shows of the runs."""
    running, more_running = runs.list_runs(
        context, RunFilter(is_live=True), limit=RUNS_ON_HOME, before=None
    )
    ended, more_ended = runs.list_runs(
        context, RunFilter(ended_since=now - SINCE), limit=RUNS_ON_HOME, before=None
    )
    needed = attention(context)
    is_empty = not running and not ended and not _has_runs(context)
    first_items, other_items = _few_of_each_kind(needed.items)
    return _of_runs(context, now) | {
        "attention": needed,
        "first_items": first_items,
        "other_items": other_items,
        "is_live": False,
        "running": running,
        "more_running": more_running is not None,
        "ended": ended,
        "more_ended": more_ended is not None,
        "is_empty": is_empty,
        "nodes": list_nodes(context),
    }


def _few_of_each_kind(
    items: Sequence[AttentionItem],
) -> tuple[list[AttentionItem], list[AttentionItem]]:
    """Return what is shown at once, and the rest: many of one kind would bury the other kinds."""
    first: list[AttentionItem] = []
    others: list[AttentionItem] = []
    number = Counter[str]()
    for item in items:
        number[item.kind] += 1
        (first if number[item.kind] <= ITEMS_OF_A_KIND else others).append(item)
    return first, others


def _has_runs(context: AppContext) -> bool:
    page, _ = runs.list_runs(context, RunFilter(), limit=1, before=None)
    return bool(page)


def _of_runs(context: AppContext, now: datetime) -> dict[str, Any]:
    """Return the functions by which templates show runs."""
    rehearsals = last_rehearsals(context)

    def minutes(run: ListedRun) -> int:
        return whole_minutes_used(run.created_at, run.ended_at or now)

    def into_main(run: ListedRun) -> tuple[str, str]:
        """Return the verdict on merging and a reason; the base branch may have moved since."""
        last = rehearsals.get(run.run_id)
        if (
            run.promotion is PromotionState.ELIGIBLE
            and last
            and last.head_commit == run.head_commit
        ):
            if last.is_merged:
                return "merged", ""
            if last.reasons:
                return str(PromotionState.BLOCKED), last.reasons[0]
        reasons = run.promotion_reasons if run.promotion is PromotionState.BLOCKED else ()
        return str(run.promotion), next(iter(reasons), "")

    return {"minutes": minutes, "shown_state": shown_state, "into_main": into_main}


def shown_state(run: Any) -> str:
    """Return a run's state for people, who tell a cancelled run from one that failed."""
    return CANCELLED if run.failure_code is FailureCode.CANCELLED else str(run.state)


@router.get(f"{HOME}/attention-count")
def attention_count(context: Context, page: InPage) -> HTMLResponse:
    """Return the number beside "Home" for the pages that do not compute it."""
    return page.render("attention-count.html", attention=attention(context))


@router.get(f"{HOME}/start")
def start(page: InPage) -> HTMLResponse:
    """Show how a run is started."""
    address = str(page.request.base_url).rstrip("/")
    return page.render("start.html", address=address, is_empty=False)


@router.get(f"{HOME}/runs")
def list_runs(
    context: Context,
    page: InPage,
    text: Annotated[str, Query(max_length=64)] = "",
    state: str = "",
    promotion: str = "",
    since: str = "",
    live: str = "",
    cursor: Cursor = None,
) -> HTMLResponse:
    """Show the runs that match, newest first."""
    query = RunQuery(text, LIVE if live == "true" else state, promotion, since)
    before = None if cursor is None else decode_moment(cursor)
    values = runs_values(context, query, page.now, before)
    is_live = before is None and values["problem"] is None
    return page.render(
        "runs.html",
        200 if values["problem"] is None else 422,
        here="runs",
        json=("/runs",),
        stream=f"{page.root}{HOME}/stream?page=runs&{query.encoded()}" if is_live else None,
        choices=CHOICES,
        query=query,
        is_later=cursor is not None,
        first_page=_runs_page(page, query),
        next_page=_runs_page(page, query, values["more"]) if values["more"] else None,
        **values,
    )


@dataclass(frozen=True, slots=True)
class RunQuery:
    """What the form of the list of runs asks for, as it was sent."""

    text: str = ""
    state: str = ""
    promotion: str = ""
    since: str = ""

    def encoded(self, **more: str) -> str:
        return urlencode({name: value for name, value in (asdict(self) | more).items() if value})


def runs_values(
    context: AppContext, query: RunQuery, now: datetime, before: tuple[datetime, int] | None
) -> dict[str, Any]:
    """Return what a page of the list of runs shows; `problem` is what was not understood."""
    wanted, problem = _filter(query.text, query.state, query.promotion, query.since)
    found, more = runs.list_runs(context, wanted, limit=RUNS_A_PAGE, before=before)
    return _of_runs(context, now) | {
        "runs": found,
        "problem": problem,
        "more": None if more is None else encode_moment(*more),
    }


def _runs_page(page: Page, query: RunQuery, cursor: str = "") -> str:
    return f"{page.root}{HOME}/runs?{query.encoded(cursor=cursor)}"


def _filter(text: str, state: str, promotion: str, since: str) -> tuple[RunFilter, str | None]:
    """Return what a form asks for, and what of it is not understood and left out."""
    problem = None
    status = code = verdict = ended_since = None
    if state == CANCELLED:
        code = FailureCode.CANCELLED
    elif state not in ("", LIVE):
        try:
            status = RunStatus(state)
        except ValueError:
            problem = f"There is no state {state[:50]!r}."
    if promotion:
        try:
            verdict = PromotionState(promotion)
        except ValueError:
            problem = f"There is no verdict {promotion[:50]!r} on merging."
    if since:
        try:
            ended_since = datetime.combine(date.fromisoformat(since), time(), UTC)
        except ValueError:
            problem = f"{since[:50]!r} is no date, such as 2026-01-31."
    wanted = RunFilter(
        status=status,
        failure_code=code,
        promotion=verdict,
        is_live=True if state == LIVE else None,
        ended_since=ended_since,
        containing=text.strip() or None,
    )
    return wanted, problem


async def static_file(digest: str, name: str) -> Response:
    """Serve a file under an address that changes with its content, so that it is kept for good."""
    path = STATIC / name
    if digest != assets_version() or path.suffix not in MEDIA_TYPES or path.parent != STATIC:
        raise HTTPException(404)
    return FileResponse(
        path,
        media_type=MEDIA_TYPES[path.suffix],
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


async def nowhere(request: Request) -> Response:
    """Answer for an address that no page has."""
    return not_found(request, "there is no such page")
