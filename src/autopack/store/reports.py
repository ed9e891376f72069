"""The data of reports: the backlog as a whole, runs that a budget ended, one run's record."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, and_, case, cast, func, not_, select, text, true
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.orm import Session
from sqlalchemy.sql import ColumnElement, FromClause
from sqlalchemy.sql.selectable import LateralFromClause

from ..domain.issues import BacklogStatus
from ..domain.metrics import has_helped, utilization
from ..domain.money import ZERO_USD
from ..domain.run import FailureCode
from ..domain.states import PhaseStatus, RunStatus
from ..domain.terms import Role, Severity, Verdict
from ..domain.times import minutes_used
from ..models import (
    BacklogEntry,
    CiRun,
    EventRow,
    Phase,
    Run,
    Submission,
    Tier,
    backlog_counts,
    run_counts,
)
from ..views.metrics import BudgetAnswer, budget
from ..views.reports import (
    AgingIssueAnswer,
    AttemptCountsAnswer,
    AuditorHelpAnswer,
    BacklogCountsAnswer,
    BudgetFailureAnswer,
    BudgetTotals,
    CiCountsAnswer,
    MoveAnswer,
    SliceSpenderAnswer,
    TierSpenderAnswer,
)
from .metrics import page_of_runs, total

TOP_SPENDERS = 3

BacklogByCategory = dict[str, BacklogCountsAnswer]


# The backlog


def count_backlog(
    session: Session, project_id: str, *, limit: int
) -> tuple[BacklogCountsAnswer, BacklogByCategory]:
    """Count the backlog's keys: in total, and for the `limit` categories with the most keys.

    Its cost depends on the number of kinds of keys, not on the number of keys.
    """
    kind = backlog_counts.c
    is_resolved = kind.status == BacklogStatus.RESOLVED
    is_major = kind.base_severity == Severity.MAJOR
    counts = {
        "total": total(kind.entries),
        "open": _keys(kind.status == BacklogStatus.OPEN),
        "needs_cleanup": _keys(kind.status == BacklogStatus.NEEDS_CLEANUP),
        "resolved": _keys(is_resolved),
        "minor": _keys(not_(is_resolved), not_(is_major)),
        "major": _keys(not_(is_resolved), is_major),
    }
    query = (
        select(
            kind.category,
            *(count.label(name) for name, count in counts.items()),
            *_over_all(counts),
        )
        .where(kind.project_id == project_id)
        .group_by(kind.category)
        .having(counts["total"] > 0)
        .order_by(counts["total"].desc(), kind.category)
        .limit(limit)
    )
    overall = dict.fromkeys(counts, 0)
    by_category = {}
    for row in session.execute(query).mappings():
        overall = {name: row[f"all_{name}"] for name in counts}
        by_category[row["category"]] = BacklogCountsAnswer.model_validate(dict(row))
    return BacklogCountsAnswer.model_validate(overall), by_category


def _keys(*conditions: ColumnElement[bool]) -> ColumnElement[int]:
    return total(case((and_(*conditions), backlog_counts.c.entries), else_=0))


def list_oldest_issues(session: Session, project_id: str, *, limit: int) -> list[AgingIssueAnswer]:
    """Return the unresolved keys with the highest age in runs, then in tiers."""
    query = (
        select(BacklogEntry)
        .where(
            BacklogEntry.project_id == project_id,
            BacklogEntry.status != BacklogStatus.RESOLVED,
        )
        .order_by(
            BacklogEntry.age_in_runs.desc(),
            BacklogEntry.age_in_tiers.desc(),
            BacklogEntry.id.desc(),
        )
        .limit(limit)
    )
    return [AgingIssueAnswer.of(row) for row in session.scalars(query)]


def list_issues_to_clean(
    session: Session, project_id: str, *, limit: int, after: tuple[datetime, int] | None
) -> list[tuple[int, AgingIssueAnswer]]:
    """Return the aged issues, the longest waiting first, each with its row's key."""
    query = (
        select(BacklogEntry)
        .where(
            BacklogEntry.project_id == project_id,
            BacklogEntry.status == BacklogStatus.NEEDS_CLEANUP,
        )
        .order_by(BacklogEntry.needs_cleanup_at, BacklogEntry.id)
        .limit(limit)
    )
    if after is not None:
        query = query.where(text("(needs_cleanup_at, id) > (:at, :id)")).params(
            at=after[0], id=after[1]
        )
    return [(row.id, AgingIssueAnswer.of(row)) for row in session.scalars(query)]


# Runs that a budget ended


def total_budget_failures(session: Session) -> BudgetTotals:
    """Count the runs that a budget ended, by budget, and return their average use of tokens."""
    kind = run_counts.c
    query = (
        select(kind.failure_code, total(kind.runs), func.sum(kind.token_shares))
        .where(kind.state == RunStatus.DONE_FAILED_BUDGET_EXHAUSTED)
        .group_by(kind.failure_code)
        .having(total(kind.runs) > 0)
    )
    rows = session.execute(query).all()
    found = sum(count for _, count, _ in rows)
    return BudgetTotals(
        total_budget_failures=found,
        average_token_utilization=utilization(float(sum(share for _, _, share in rows)), found),
        failures_by_budget={code: count for code, count, _ in rows if code is not None},
    )


def list_budget_failures(
    session: Session, *, limit: int, before: tuple[datetime, int] | None
) -> list[tuple[int, BudgetFailureAnswer]]:
    """Return the runs that a budget ended, newest first, each with its key."""
    query_of_page = page_of_runs(limit, before, RunStatus.DONE_FAILED_BUDGET_EXHAUSTED)
    page = query_of_page.where(Run.imported_at.is_(None)).subquery("page")
    phases = (
        select(
            func.count().label("phase_count"),
            func.count().filter(Phase.state == PhaseStatus.COMPLETE).label("phases_complete"),
            func.count().filter(_is_reviewed()).label("phases_reviewed"),
            func.count()
            .filter(_is_reviewed(), Phase.state == PhaseStatus.COMPLETE)
            .label("reviewed_complete"),
            total(Phase.auditor_attempts_used).label("auditor_attempts"),
        )
        .where(Phase.run_pk == page.c.id)
        .lateral("of_phases")
    )
    auditor = (
        select(total(Submission.tokens_used).label("auditor_tokens"))
        .where(Submission.run_pk == page.c.id, Submission.role == Role.AUDITOR)
        .lateral("of_auditor")
    )
    tiers, slices = _top_tiers(page), _top_slices(page)
    query = (
        select(page, phases, auditor, tiers.c.spenders, slices.c.spenders.label("slices"))
        .join_from(page, phases, true())
        .join(auditor, true())
        .join(tiers, true())
        .join(slices, true())
        .order_by(page.c.created_at.desc(), page.c.id.desc())
    )
    return [(row["id"], _budget_failure(row)) for row in session.execute(query).mappings()]


def _is_reviewed() -> ColumnElement[bool]:
    return Phase.auditor_attempts_used > 0


def _top_tiers(page: FromClause) -> LateralFromClause:
    top = (
        select(Tier.tier_id.label("name"), Tier.tokens_used.label("tokens"))
        .where(Tier.run_pk == page.c.id, Tier.tokens_used > 0)
        .order_by(Tier.tokens_used.desc(), Tier.tier_index)
        .limit(TOP_SPENDERS)
        .correlate(page)
        .subquery("top_tier")
    )
    return _as_list(top, "of_tiers")


def _top_slices(page: FromClause) -> LateralFromClause:
    name = func.concat(Phase.task_category, ":", Phase.complexity)
    top = (
        select(name.label("name"), func.sum(Phase.tokens_used).label("tokens"))
        .where(Phase.run_pk == page.c.id, Phase.tokens_used > 0)
        .group_by(name)
        .order_by(func.sum(Phase.tokens_used).desc(), name)
        .limit(TOP_SPENDERS)
        .correlate(page)
        .subquery("top_slice")
    )
    return _as_list(top, "of_slices")


def _as_list(top: FromClause, name: str) -> LateralFromClause:
    pair = func.jsonb_build_array(top.c.name, top.c.tokens)
    ordered = aggregate_order_by(pair, top.c.tokens.desc(), top.c.name)
    return select(func.jsonb_agg(ordered).label("spenders")).select_from(top).lateral(name)


def _budget_failure(row: Any) -> BudgetFailureAnswer:
    used = row["tokens_used"]
    return BudgetFailureAnswer.model_validate(
        {
            **row,
            "broken_budget": _broken_budget(row),
            "token_utilization": utilization(used, row["token_cap"]),
            "top_tiers": [
                TierSpenderAnswer(tier_id=name, tokens_used=tokens, share=utilization(tokens, used))
                for name, tokens in row["spenders"] or ()
            ],
            "top_slices": [
                SliceSpenderAnswer(slice=name, tokens_used=tokens, share=utilization(tokens, used))
                for name, tokens in row["slices"] or ()
            ],
            "auditor": AuditorHelpAnswer(
                helped=has_helped(row["phases_reviewed"], row["reviewed_complete"]),
                phases_reviewed=row["phases_reviewed"],
                phases_completed=row["reviewed_complete"],
                attempts_used=row["auditor_attempts"],
                tokens_used=row["auditor_tokens"],
            ),
        }
    )


def _broken_budget(row: Any) -> BudgetAnswer | None:
    match row["failure_code"]:
        case FailureCode.TOKEN_CAP:
            return budget("token_cap", row["token_cap"], row["tokens_used"])
        case FailureCode.COST_CAP:
            return budget("cost_cap_usd", row["cost_cap_usd"], row["cost_usd"])
        case FailureCode.DURATION_CAP:
            minutes = minutes_used(row["created_at"], row["ended_at"] or row["updated_at"])
            return budget("max_duration_minutes", row["max_duration_minutes"], round(minutes, 2))
        case FailureCode.MINOR_ISSUE_CAP:
            return budget(
                "max_minor_issues_total", row["max_minor_issues_total"], row["minor_issues_count"]
            )
    return None


# One run's record


def count_attempts(session: Session, run_pk: int) -> dict[Role, AttemptCountsAnswer]:
    """Count a run's submissions by role and outcome."""
    query = (
        select(
            Submission.role,
            Submission.outcome,
            func.count().label("submissions"),
            total(Submission.tokens_used).label("tokens"),
            func.coalesce(func.sum(Submission.cost_usd), ZERO_USD).label("cost"),
        )
        .where(Submission.run_pk == run_pk)
        .group_by(Submission.role, Submission.outcome)
        .order_by(Submission.outcome)
    )
    rows = session.execute(query).all()
    counts = {}
    for role in Role:
        mine = [row for row in rows if row.role == role]
        counts[role] = AttemptCountsAnswer(
            count=sum(row.submissions for row in mine),
            tokens_used=sum(row.tokens for row in mine),
            cost_usd=sum((row.cost for row in mine), ZERO_USD),
            outcomes={row.outcome: row.submissions for row in mine},
        )
    return counts


def count_ci_runs(session: Session, run_pk: int) -> CiCountsAnswer:
    """Count a run's CI runs by verdict."""
    row = session.execute(
        select(
            func.count().label("ci_runs_count"),
            *(func.count().filter(CiRun.verdict == verdict).label(verdict) for verdict in Verdict),
            func.count().filter(CiRun.ended_at.is_(None)).label("under_way"),
            func.count().filter(CiRun.is_flaky).label("flaky"),
        ).where(CiRun.run_pk == run_pk)
    ).one()
    return CiCountsAnswer.of(row)


def list_latest_moves(session: Session, run_pk: int, *, limit: int) -> list[MoveAnswer]:
    """Return the last events that changed a state, oldest first."""
    query = (
        select(EventRow)
        .where(EventRow.run_pk == run_pk, EventRow.to_state.is_not(None))
        .order_by(EventRow.sequence.desc())
        .limit(limit)
    )
    return [MoveAnswer.of(row) for row in session.scalars(query)][::-1]


def _over_all(counts: dict[str, Any]) -> list[ColumnElement[int]]:
    """Return each count's sum over all groups, also those beyond the LIMIT."""
    return [
        cast(func.sum(count).over(), BigInteger).label(f"all_{name}")
        for name, count in counts.items()
    ]
