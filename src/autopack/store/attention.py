"""What may need a person: one statement for each source, whatever the number of runs.

Each reads by an index that holds what is open alone: live runs, ends that are not closed, pushes
and issues that wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from ..domain.attention import (
    BUDGET_SHARE,
    KEY_WARNING,
    LISTED_DAYS,
    MOST_OF_A_KIND,
    NAMED_ISSUES,
    AgedIssues,
    ClosedAs,
    ExpiringKey,
    FailingPushes,
    LiveRun,
    OpenPhase,
    StoppedWebhook,
)
from ..domain.errors import NotFoundError
from ..domain.states import PhaseStatus
from ..models import Run
from .runs import RUNS
from .session import RowSession

# The predicates of the index `ix_runs_unclosed_ended_at`. A cancelled run needs no person.
_UNCLOSED: Final = (
    "WHERE ended_at > %s AND closed_at IS NULL AND failure_code IS DISTINCT FROM 'cancelled'"
)


def list_unclosed(session: RowSession, now: datetime) -> list[Run]:
    """Return runs that are over and not closed, the last ones first, one more than are shown."""
    condition = f"{_UNCLOSED} ORDER BY ended_at DESC, id DESC LIMIT %s"
    return session.rows(RUNS, condition, (now - timedelta(days=LISTED_DAYS), MOST_OF_A_KIND + 1))


def list_succeeded(session: RowSession, now: datetime, limit: int) -> list[Run]:
    """Return runs that succeeded and are not closed, the last ones first."""
    condition = f"{_UNCLOSED} AND failure_code IS NULL ORDER BY ended_at DESC, id DESC LIMIT %s"
    return session.rows(RUNS, condition, (now - timedelta(days=LISTED_DAYS), limit))


def close_run(
    session: RowSession, run_id: str, now: datetime, *, by: str, how: ClosedAs
) -> tuple[datetime, str, ClosedAs] | None:
    """Close a run that is over; return when, by whom and how it was closed first, else None.

    Raises NotFoundError. The caller commits.
    """
    found = session.fetch(
        "UPDATE runs SET closed_at = coalesce(closed_at, %s), closed_by = coalesce(closed_by, %s),"
        " closed_as = coalesce(closed_as, %s) WHERE lower(run_id) = %s AND run_id = %s"
        " AND ended_at IS NOT NULL RETURNING closed_at, closed_by, closed_as",
        (now, by, str(how), run_id.lower(), run_id),
    )
    if found:
        closed_at, closed_by, closed_as = found[0]
        return closed_at, closed_by, ClosedAs(closed_as)
    is_there = session.fetch(
        "SELECT 1 FROM runs WHERE lower(run_id) = %s AND run_id = %s", (run_id.lower(), run_id)
    )
    if not is_there:
        raise NotFoundError(f"there is no run '{run_id}'")
    return None


def close_continued(session: RowSession, run_id: str, now: datetime, *, by: str) -> None:
    """Close a failed run that a new one continues, together with the new one's start."""
    session.gather(
        "UPDATE runs SET closed_at = %s, closed_by = %s, closed_as = %s"
        " WHERE lower(run_id) = %s AND run_id = %s AND closed_at IS NULL",
        (now, by, str(ClosedAs.CONTINUED), run_id.lower(), run_id),
    )


# The time at which a live run passed a share of a budget, by the sums of its tokens or cost.
_SINCE: Final = """(SELECT min(at) FROM (SELECT at, sum((data->>'{0}')::numeric)
        OVER (ORDER BY sequence) AS used FROM events
        WHERE run_pk = r.id AND kind = 'TokensCounted') counted WHERE used >= %(share)s * {1})"""
_TOKENS_SINCE: Final = _SINCE.format("tokens", "r.token_cap")
_COST_SINCE: Final = _SINCE.format("cost_usd", "r.cost_cap_usd")
_LIVE: Final = f"""SELECT run_id, created_at, updated_at, max_duration_minutes, token_cap,
        tokens_used, CASE WHEN tokens_used >= %(share)s * token_cap THEN {_TOKENS_SINCE} END,
        cost_cap_usd, cost_usd,
        CASE WHEN cost_usd >= %(share)s * cost_cap_usd THEN {_COST_SINCE} END
    FROM runs r WHERE ended_at IS NULL AND (tokens_used >= %(share)s * token_cap
        OR cost_usd >= %(share)s * cost_cap_usd
        OR created_at + max_duration_minutes * %(share)s * interval '1 minute' <= %(now)s)
    ORDER BY id DESC LIMIT %(most)s"""  # noqa: S608 - literals
_LIVE_NAMES: Final = (
    *("run_id", "created_at", "updated_at", "max_duration_minutes", "token_cap", "tokens_used"),
    *("tokens_since", "cost_cap_usd", "cost_usd", "cost_since"),
)


def list_low_budgets(session: RowSession, now: datetime) -> list[LiveRun]:
    """Return live runs that have used most of a budget."""
    values = {"share": BUDGET_SHARE, "now": now, "most": MOST_OF_A_KIND}
    return [
        LiveRun(**dict(zip(_LIVE_NAMES, row, strict=True))) for row in session.fetch(_LIVE, values)
    ]


# Events that let the next phase of a run wait: others, such as a reported issue, change nothing.
_MOVES: Final = [
    *("RunStarted", "PhaseQueued", "PhaseGated", "PhaseCompleted", "PhaseSkipped", "PhaseFailed"),
    *("ReviewRequested", "ReviewOpened", "LeaseLapsed", "AuditLapsed", "CapacityAwaited"),
    *("TierStateChanged",),
]
_PHASES: Final = """SELECT r.run_id, p.phase_id, p.state, p.lease_id IS NOT NULL,
        coalesce((SELECT at FROM events WHERE run_pk = r.id AND kind = ANY(%s)
            ORDER BY sequence DESC LIMIT 1), r.updated_at),
        p.unavailable_reason, p.retry_at,
        CASE WHEN c.verdict = 'did_not_run' THEN coalesce(c.ended_at, c.requested_at) END, c.reason,
        r.base_problem, r.created_at, d.deaf_at, d.deaf_gate
    FROM runs r CROSS JOIN LATERAL (
        SELECT * FROM phases WHERE run_pk = r.id AND state NOT IN ('COMPLETE', 'FAILED', 'SKIPPED')
        ORDER BY state = 'QUEUED', tier_index, phase_index LIMIT 1
    ) p LEFT JOIN LATERAL (
        SELECT verdict, ended_at, requested_at, reason FROM ci_runs
        WHERE phase_pk = p.id AND verdict IS NOT NULL ORDER BY id DESC LIMIT 1
    ) c ON true LEFT JOIN LATERAL (
        SELECT coalesce(ended_at, requested_at), entry->>'result', entry->>'reason'
        FROM ci_runs CROSS JOIN LATERAL jsonb_array_elements(evidence) AS entry
        WHERE run_pk = r.id AND entry->>'kind' = 'seeded_faults'
            AND entry->>'result' IN ('passed', 'warned', 'failed')
        ORDER BY id DESC LIMIT 1
    ) d (deaf_at, result, deaf_gate) ON d.result <> 'passed'
    WHERE r.ended_at IS NULL
        AND (p.lease_id IS NULL AND p.state IN ('QUEUED', 'GATE') OR c.verdict = 'did_not_run'
            OR r.base_problem IS NOT NULL OR d.deaf_gate IS NOT NULL)
    ORDER BY r.id DESC LIMIT %s"""


def list_open_phases(session: RowSession) -> list[OpenPhase]:
    """Return the next phases of live runs that no agent holds, or whose CI could not run."""
    return [
        OpenPhase(
            run_id=run_id,
            phase_id=phase_id,
            state=PhaseStatus(state),
            has_agent=has_agent,
            since=since,
            unavailable_reason=unavailable,
            retry_at=retry_at,
            ci_failed_at=ci_failed_at,
            ci_reason=ci_reason,
            base_problem=base_problem,
            run_created_at=run_created_at,
            deaf_at=deaf_at,
            deaf_gate=deaf_gate,
        )
        for (
            run_id,
            phase_id,
            state,
            has_agent,
            since,
            unavailable,
            retry_at,
            ci_failed_at,
            ci_reason,
            base_problem,
            run_created_at,
            deaf_at,
            deaf_gate,
        ) in session.fetch(_PHASES, (_MOVES, MOST_OF_A_KIND))
    ]


def find_failing_pushes(session: RowSession) -> FailingPushes | None:
    """Return how many pushes fail, and the one that waits longest; None if none does."""
    found = session.fetch(
        "SELECT count(*) OVER (), r.run_id, r.updated_at, p.last_error FROM pushes p"
        " JOIN runs r ON r.id = p.run_pk"
        " WHERE p.next_try_at IS NOT NULL AND p.last_error IS NOT NULL"
        " ORDER BY r.updated_at, r.id LIMIT 1"
    )
    if not found:
        return None
    count, run_id, since, error = found[0]
    return FailingPushes(count=count, run_id=run_id, since=since, error=error)


def find_aged_issues(session: RowSession, project_id: str) -> AgedIssues | None:
    """Return how many issues wait for a cleanup, and the oldest of them; None if none does."""
    found = session.fetch(
        "SELECT issue_key, needs_cleanup_at, (SELECT coalesce(sum(entries), 0)::int"
        " FROM backlog_counts WHERE project_id = %s AND status = 'needs_cleanup') FROM backlog"
        " WHERE project_id = %s AND status = 'needs_cleanup' AND needs_cleanup_at IS NOT NULL"
        " ORDER BY needs_cleanup_at, id LIMIT %s",
        (project_id, project_id, NAMED_ISSUES),
    )
    if not found:
        return None
    keys = [key for key, *_ in found]
    return AgedIssues(count=max(found[0][2], len(keys)), keys=keys, since=found[0][1])


def list_expiring_keys(session: RowSession, now: datetime) -> Sequence[ExpiringKey]:
    """Return keys that expire within a week; `domain/attention.py` decides which of them count."""
    return [
        ExpiringKey(name=name, roles=roles, created_at=created_at, expires_at=expires_at)
        for name, roles, created_at, expires_at in session.fetch(
            "SELECT name, roles, created_at, expires_at FROM api_keys WHERE revoked_at IS NULL"
            " AND expires_at > %s AND expires_at <= %s ORDER BY expires_at, id LIMIT %s",
            (now, now + KEY_WARNING, MOST_OF_A_KIND),
        )
    ]


def list_stopped_webhooks(session: RowSession) -> Sequence[StoppedWebhook]:
    """Return the webhooks that are off."""
    return [
        StoppedWebhook(name=name, off_at=off_at, reason=reason or "")
        for name, off_at, reason in session.fetch(
            "SELECT name, off_at, off_reason FROM webhooks WHERE off_at IS NOT NULL"
            " ORDER BY id LIMIT %s",
            (MOST_OF_A_KIND,),
        )
    ]
