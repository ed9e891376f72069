"""The pages of the backlog: all issues, one issue, and its changes by an operator."""

from __future__ import annotations

from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query, Response
from fastapi.responses import HTMLResponse

from ..api.inputs import Context, Cursor, decode_cursor, encode_cursor
from ..api.project import Key
from ..domain.issues import BacklogOrder, BacklogStatus
from ..domain.terms import Severity
from ..services import issues, reports
from .rendering import HOME, Page
from .routes import InPage, PageRoute, back_to

router = APIRouter(include_in_schema=False, route_class=PageRoute)

ISSUES_A_PAGE: Final = 50
ORDERS: Final = (
    (BacklogOrder.PRESSING, "Most pressing"),
    (BacklogOrder.LAST_SEEN, "Last seen"),
    (BacklogOrder.OFTEN, "Most often seen"),
    (BacklogOrder.FIRST_SEEN, "First seen"),
)
_ISSUE: Final = "/project/issues/{issue_key:path}"
Choice = TypeVar("Choice", BacklogStatus, Severity, BacklogOrder)


@router.get(f"{HOME}/issues")
def list_issues(
    context: Context,
    page: InPage,
    text: Annotated[str, Query(max_length=64)] = "",
    status: str = "",
    severity: str = "",
    category: Annotated[str, Query(max_length=200)] = "",
    order: str = "",
    cursor: Cursor = None,
) -> HTMLResponse:
    """Show the issues that match, the most pressing first."""
    problems: list[str] = []
    sorting = _choice(BacklogOrder, order, problems) or BacklogOrder.PRESSING
    summary, _ = reports.issue_backlog_summary(context, limit=1, after=None)
    found, more = issues.backlog(
        context,
        limit=ISSUES_A_PAGE,
        after=decode_cursor(cursor, int)[0] if cursor else 0,
        status=_choice(BacklogStatus, status, problems),
        category=category or None,
        severity=_choice(Severity, severity, problems),
        containing=text.strip() or None,
        order=sorting,
    )
    query = {
        **{"text": text, "status": status, "severity": severity, "category": category},
        "order": sorting,
    }
    return page.render(
        "issues.html",
        422 if problems else 200,
        here="issues",
        json=("/project/issues/backlog?order=pressing", "/reports/issue_backlog_summary"),
        issues=found,
        summary=summary,
        thresholds=issues.cleanup_thresholds(context),
        query=query,
        orders=ORDERS,
        problem=" ".join(problems),
        is_later=cursor is not None,
        first_page=_address(page, query),
        next_page=None if more is None else _address(page, query, encode_cursor(more)),
        path_of=path_of,
    )


def _choice(kind: type[Choice], given: str, problems: list[str]) -> Choice | None:
    """Return the value of a field; for an unknown one None, with a message in `problems`."""
    if not given:
        return None
    try:
        return kind(given)
    except ValueError:
        problems.append(f"There is no {given[:50]!r}: it is {', '.join(kind)}.")
        return None


def _address(page: Page, query: dict[str, Any], cursor: str | None = None) -> str:
    given = {name: value for name, value in query.items() if value}
    if cursor is not None:
        given["cursor"] = cursor
    return f"{page.root}{HOME}/issues?{urlencode(given)}"


def path_of(issue_key: str) -> str:
    """Return the part of an address that names an issue, whatever its key holds."""
    return quote(issue_key, safe="")


@router.get(f"{HOME}/issues/{{issue_key:path}}")
def show_issue(context: Context, page: InPage, issue_key: Key) -> HTMLResponse:
    """Show an issue: what was last said of it, and where it was seen."""
    issue = issues.backlog_issue(context, issue_key)
    json = () if issue_key == "backlog" else (f"/project/issues/{path_of(issue_key)}",)
    return page.render("issue.html", here="issues", json=json, i=issue, path_of=path_of)


@router.post(f"{HOME}/issues/{{issue_key:path}}/resolve", name=f"POST {_ISSUE}/resolve")
def resolve(context: Context, page: InPage, issue_key: Key) -> Response:
    """Close an issue; a new report opens it again."""
    issues.resolve_backlog_issue(context, issue_key)
    return back_to(page, f"{HOME}/issues/{path_of(issue_key)}")


@router.post(f"{HOME}/issues/{{issue_key:path}}/reopen", name=f"POST {_ISSUE}/reopen")
def reopen(context: Context, page: InPage, issue_key: Key) -> Response:
    """Open an issue again, with its former age."""
    issues.reopen_backlog_issue(context, issue_key)
    return back_to(page, f"{HOME}/issues/{path_of(issue_key)}")
