"""The pages of the ruleset: what is in force, its versions, and a change before it is saved."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Final

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse
from markupsafe import escape
from starlette.exceptions import HTTPException

from ..api.inputs import Context, Cursor, decode_cursor, encode_cursor
from ..domain.errors import InvalidError
from ..domain.events import canonical_json
from ..domain.ruleset import Ruleset
from ..services import backtests, rulesets
from ..services.context import AppContext
from .rendering import HOME, Page
from .routes import InPage, PageRoute, back_to
from .sign_in import Form

router = APIRouter(include_in_schema=False, route_class=PageRoute)

RUNS_COMPARED: Final = 100
RUNS_SHOWN: Final = 20
VERSIONS_A_PAGE: Final = 20


@router.get(f"{HOME}/ruleset")
def show_ruleset(context: Context, page: InPage) -> HTMLResponse:
    """Show the policy that is in force, and a form to change it."""
    today = rulesets.read_ruleset(context)
    return _render(context, page, today, _text(today))


@router.get(f"{HOME}/ruleset/versions")
def show_versions(context: Context, page: InPage, cursor: Cursor = None) -> HTMLResponse:
    """Show each ruleset that was in force, and what it changed."""
    before = decode_cursor(cursor, int)[0] if cursor else None
    versions, more = rulesets.list_versions(context, limit=VERSIONS_A_PAGE, before=before)
    return page.render(
        "ruleset-versions.html",
        here="ruleset",
        json=("/project/ruleset/versions",),
        versions=versions,
        is_later=before is not None,
        older=None if more is None else encode_cursor(more),
        value_text=value_text,
        pretty=lambda document: json.dumps(document, indent=2),
    )


@router.post(f"{HOME}/ruleset/preview", name="POST /strategy/backtest")
def preview(context: Context, page: InPage, form: Form) -> HTMLResponse:
    """Show what a ruleset would change, and how past runs would have ended under it."""
    today = rulesets.read_ruleset(context)
    text = form.get("document", "")
    try:
        document = _document(text, today)
        changes = rulesets.diff_ruleset(context, document).changes
        compared = backtests.backtest(context, document, None, RUNS_COMPARED, is_changed_only=True)
    except InvalidError as error:
        return _render(context, page, today, text, status=422, problem=error.detail)
    change = {
        "document": escape(json.dumps(document)),
        "fields": [each for each in changes if each.field != "version"],
        "compared": compared,
        "runs": compared.runs[:RUNS_SHOWN],
        "standing": _digest(today),
    }
    return _render(context, page, today, text, change=change)


@router.post(f"{HOME}/ruleset", name="PUT /project/ruleset")
def save(context: Context, page: InPage, form: Form) -> Response:
    """Put a ruleset in force that was shown before, unless another one was meanwhile."""
    today = rulesets.read_ruleset(context)
    text = form.get("document", "")
    if form.get("standing") != _digest(today):
        problem = "The ruleset changed since this change was shown: look at it again."
        return _render(context, page, today, text, status=409, problem=problem)
    try:
        rulesets.write_ruleset(context, _document(text, today))
    except InvalidError as error:
        return _render(context, page, today, text, status=422, problem=error.detail)
    return back_to(page, f"{HOME}/ruleset")


def _document(text: str, today: Ruleset) -> dict[str, Any]:
    """Return the ruleset that a form holds, with the next version if it names none of its own.

    Raises InvalidRulesetError.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise rulesets.InvalidRulesetError(f"the text is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise rulesets.InvalidRulesetError("the text is no JSON object")
    if document.get("version") in (None, today.version):
        is_same = document == today.model_dump(mode="json")
        document["version"] = today.version + (not is_same)
    return document


def _text(ruleset: Ruleset) -> str:
    return json.dumps(ruleset.model_dump(mode="json"), indent=2)


def _digest(ruleset: Ruleset) -> str:
    return hashlib.sha256(canonical_json(ruleset.model_dump(mode="json"))).hexdigest()


def _render(
    context: AppContext,
    page: Page,
    today: Ruleset,
    text: str,
    *,
    status: int = 200,
    problem: str | None = None,
    change: dict[str, Any] | None = None,
) -> HTMLResponse:
    if problem is not None and not page.may_act:
        raise HTTPException(status, problem)
    document = today.model_dump(mode="json")
    tables = {
        "Budgets": {
            **{f"run.{name}": value for name, value in document["run"].items()},
            **{f"tier.{name}": value for name, value in document["tier"].items()},
            **{name: document[name] for name in ("attempt_minutes", "audit_minutes")},
        },
    }
    return page.render(
        "ruleset.html",
        status,
        here="ruleset",
        json=("/project/ruleset", "/project/ruleset/versions", "/project/protected_paths"),
        rs=document,
        tables=tables,
        paths=rulesets.protected_paths(context),
        # As a whole: other text is cut where it is long.
        text=escape(text),
        problem=problem,
        change=change,
        value_text=value_text,
    )


def value_text(value: Any) -> str:
    """Return a value of a ruleset for people."""
    match value:
        case None:
            return "none"
        case bool():
            return "yes" if value else "no"
        case int() | float():
            return f"{value:,}"
        case str():
            return value
        case _:
            return json.dumps(value, ensure_ascii=False)
