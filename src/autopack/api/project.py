"""The project: its ruleset, strategies compiled from it, and an operator's changes to issues."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Path
from pydantic import Field

from ..domain.plan import Plan
from ..domain.ruleset import Ruleset
from ..domain.values import Closed, Identifier, IssueKey, Several
from ..services import backtests, issues, rulesets
from ..views.issues import BacklogEntryAnswer, BacklogIssueAnswer
from ..views.project import (
    BacktestAnswer,
    DryRunAnswer,
    ProtectedPathsAnswer,
    RulesetDiffAnswer,
    RulesetVersionsAnswer,
)
from .bodies import StrictRoute
from .errors import problems
from .examples import BACKTEST, PLAN, RULESET, RULESET_DIFF, example
from .inputs import Context, Cursor, PageLimit, decode_cursor, encode_cursor

router = APIRouter(tags=["project"], route_class=StrictRoute)

Key = Annotated[
    IssueKey,
    Path(
        description="The issue's key.",
        openapi_examples={"guide": {"value": "test_failure__auth_missing"}},
    ),
]


class DryRun(Plan):
    """A plan, and optionally another ruleset to compile it under."""

    ruleset: dict[str, Any] | None = None


class Backtest(Closed):
    """A ruleset under which to decide finished runs again: the named ones, else the newest."""

    ruleset: dict[str, Any]
    run_ids: Several[Identifier] | None = None
    limit: Annotated[int, Field(strict=True, ge=1, le=1_000)] = 100
    changed_only: bool = False


class WantedRuleset(Closed):
    """A ruleset that may be put in force."""

    ruleset: dict[str, Any]


@router.get("/project/ruleset", responses=problems(422, 503), summary="Read the ruleset")
def get_ruleset(context: Context) -> Ruleset:
    """The operator's policy as a whole document, in the form of `PUT`."""
    return rulesets.read_ruleset(context)


@router.put("/project/ruleset", responses=problems(413, 422, 503), summary="Replace the ruleset")
def put_ruleset(
    context: Context,
    document: Annotated[
        dict[str, Any], Body(openapi_examples=example(RULESET, "Shorter runs, all else default"))
    ],
) -> Ruleset:
    """Active runs keep the strategy that they started with. Missing fields get their defaults."""
    return rulesets.write_ruleset(context, document)


@router.post(
    "/project/ruleset/diff",
    responses=problems(413, 422, 503),
    summary="Compare a ruleset with the one in force",
)
def diff_ruleset(
    context: Context,
    wanted: Annotated[WantedRuleset, Body(openapi_examples=example(RULESET_DIFF, "Half the time"))],
) -> RulesetDiffAnswer:
    """The fields that would change. Missing fields count as their defaults, as with `PUT`."""
    return rulesets.diff_ruleset(context, wanted.ruleset)


@router.get(
    "/project/ruleset/versions",
    responses=problems(422, 503),
    summary="List the versions of the ruleset",
)
def list_versions(
    context: Context, limit: PageLimit = 20, cursor: Cursor = None
) -> RulesetVersionsAnswer:
    """Each ruleset that was in force: since when, by whom, what it changed, and the document."""
    before = decode_cursor(cursor, int)[0] if cursor else None
    page, more = rulesets.list_versions(context, limit=limit, before=before)
    return RulesetVersionsAnswer(
        project_id=context.settings.project_id,
        versions=page,
        next_cursor=None if more is None else encode_cursor(more),
    )


@router.get(
    "/project/protected_paths",
    responses=problems(422, 503),
    summary="Read which paths are protected",
)
def protected_paths(context: Context) -> ProtectedPathsAnswer:
    """What no patch of a run that starts now may change, and where each pattern comes from."""
    return rulesets.protected_paths(context)


@router.post(
    "/strategy/dry_run",
    responses=problems(413, 422, 503),
    summary="Compile a strategy, start nothing",
)
def dry_run(
    context: Context,
    wanted: Annotated[DryRun, Body(openapi_examples=example(PLAN, "One tier with one phase"))],
) -> DryRunAnswer:
    """The caps and checks that each phase of a plan would get."""
    plan = Plan(run=wanted.run, tiers=wanted.tiers, phases=wanted.phases)
    strategy, today = rulesets.dry_run(context, plan, wanted.ruleset)
    return DryRunAnswer(strategy=strategy, today=today)


@router.post(
    "/strategy/backtest", responses=problems(404, 413, 422, 503), summary="Decide past runs again"
)
def backtest(
    context: Context,
    wanted: Annotated[
        Backtest, Body(openapi_examples=example(BACKTEST, "The newest runs, half the time"))
    ],
) -> BacktestAnswer:
    """Decide past runs again under a ruleset; say whose outcome, cost or eligibility would change.

    With `changed_only` the answer leaves the other runs out. The recorded answer of git on each
    patch is kept.
    """
    return backtests.backtest(
        context,
        wanted.ruleset,
        wanted.run_ids,
        wanted.limit,
        is_changed_only=wanted.changed_only,
    )


@router.get(
    "/project/issues/{issue_key:path}",
    responses=problems(404, 422, 503),
    summary="Read an issue of the backlog",
)
def get_issue(context: Context, issue_key: Key) -> BacklogIssueAnswer:
    """The last report of an issue, and the phases that reported it last.

    A key named `backlog` cannot be read here: `/project/issues/backlog` is the whole backlog.
    """
    return issues.backlog_issue(context, issue_key)


@router.post(
    "/project/issues/{issue_key:path}/resolve",
    responses=problems(404, 422, 503),
    summary="Close an issue of the backlog",
)
def resolve(context: Context, issue_key: Key) -> BacklogEntryAnswer:
    """Closes an issue by hand; a new report opens it again."""
    return issues.resolve_backlog_issue(context, issue_key)


@router.post(
    "/project/issues/{issue_key:path}/reopen",
    responses=problems(404, 422, 503),
    summary="Open an issue of the backlog again",
)
def reopen(context: Context, issue_key: Key) -> BacklogEntryAnswer:
    """Opens a resolved issue again, with its former age."""
    return issues.reopen_backlog_issue(context, issue_key)
