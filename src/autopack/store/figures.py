"""Figures by day: added up once for each run that is over, and read together with other runs.

One query says what each figure is (`_FACTS`). The periodic upkeep adds its rows, for runs that are
over for a while, to the table `figures`; a reader adds its rows for all other runs. So the answer
is right at every moment, and its cost depends on the days and on the runs under way, not on how
many runs there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import text
from sqlalchemy.orm import Session

from ..domain.figures import STEP, Grouping, Subject
from .session import RowSession

# CI and pushes of a run can go on for a moment after its end.
COUNTED_AFTER: Final = timedelta(minutes=10)
BATCH: Final = 200

_KEYS: Final = {
    Grouping.MODEL: "model",
    Grouping.AGENT: "agent",
    Grouping.CATEGORY: "category",
    Grouping.PROJECT: "project_id",
    Grouping.DAY: "day::text",
}
_TEXTS: Final = "project_id, subject, category, agent, model, outcome, name"
_SUMS: Final = (
    "number",
    "phases",
    "tickets",
    "repairs",
    "tokens",
    "tokens_measured",
    "cost_usd",
    "unpriced",
)

# The columns of a figure that most kinds leave at these values.
_NONE: Final = {
    "category": "''",
    "agent": "''",
    "model": "''",
    "outcome": "''",
    "name": "''",
    "step": "0",
    "number": "1",
    "phases": "0",
    "tickets": "0",
    "repairs": "0",
    "tokens": "0",
    "tokens_measured": "0",
    "cost_usd": "0",
    "unpriced": "0",
}


def _fact(subject: str, at: str, source: str, **columns: str) -> str:
    """Return the query of one kind of figure: a row for each event or row that is counted."""
    values = ", ".join(f"{value} AS {name}" for name, value in (_NONE | columns).items())
    return (
        f"SELECT ({at} AT TIME ZONE 'UTC')::date AS day, r.project_id, {subject} AS subject,"
        f" {values}, r.run_id FROM chosen r {source}"
    )


def _step(start: str, end: str) -> str:
    """Return the step of a time; less than a tenth of a second is the lowest."""
    seconds = f"greatest(extract(epoch FROM {end} - {start}), 0.1)"
    return f"round(ln({seconds}) / ln({STEP}))::bigint"


def _wait(role: str, *since: str, of_phase: bool) -> str:
    """Return how long a phase waited for an agent: since the latest event of these kinds."""
    kinds = ", ".join(f"'{kind}'" for kind in since)
    phase = "AND b.phase_id = e.phase_id" if of_phase else ""
    return _fact(
        f"'{Subject.WAIT}'",
        "e.at",
        f"""JOIN events e ON e.run_pk = r.id AND e.kind = 'LeaseGranted'
            AND e.data ->> 'role' = '{role}'
        CROSS JOIN LATERAL (SELECT b.at FROM events b WHERE b.run_pk = r.id
            AND b.sequence < e.sequence AND b.kind IN ({kinds}) {phase}
            ORDER BY b.sequence DESC LIMIT 1) since""",
        name=f"'{role}'",
        step=_step("since.at", "e.at"),
    )


# Events that report the tokens and the cost of an agent.
_REPORTS: Final = (
    "'BuilderResultReceived', 'AuditorResultReceived', 'AgentUnavailable', 'LeaseLapsed',"
    " 'AuditLapsed'"
)
_OF_PHASE: Final = "JOIN phases p ON p.id = s.phase_pk"
_FACTS: Final = " UNION ALL ".join(
    (
        _fact(
            f"'{Subject.RUN}'",
            "r.ended_at",
            "WHERE r.ended_at IS NOT NULL",
            outcome="""CASE WHEN r.state = 'DONE_SUCCESS' THEN 'succeeded'
                WHEN r.failure_code = 'cancelled' THEN 'cancelled' ELSE 'failed' END""",
        ),
        _fact(
            f"'{Subject.PHASE}'",
            "p.ended_at",
            "JOIN phases p ON p.run_pk = r.id AND p.ended_at IS NOT NULL",
            category="p.task_category",
            outcome="p.state",
            step="p.builder_attempts_used",
        ),
        # A phase is counted at its last attempt, so that tries by phase are right for each group.
        _fact(
            "s.role",
            "s.created_at",
            # A review of a final phase is advisory: its run does not count its tokens either.
            f"JOIN submissions s ON s.run_pk = r.id AND s.outcome <> 'advisory' {_OF_PHASE}",
            category="p.task_category",
            agent="coalesce(s.agent, '')",
            model="coalesce(s.model, '')",
            outcome="s.outcome",
            phases="""(row_number() OVER (PARTITION BY s.phase_pk, s.role
                ORDER BY s.attempt DESC) = 1)::int""",
            tickets="coalesce(jsonb_typeof(s.ticket) = 'object', false)::int",
            # A commit whose change differs from the bytes of its patch.
            repairs="""(EXISTS (SELECT FROM commits c JOIN patches a ON a.id = c.patch_pk
                WHERE c.run_pk = r.id AND a.submission_pk = s.id
                AND c.difference IS NOT NULL AND NOT c.is_merged))::int""",
            tokens="s.tokens_used",
            tokens_measured="CASE WHEN s.is_measured THEN s.tokens_used ELSE 0 END",
            cost_usd="coalesce(s.cost_usd, 0)",
            unpriced="(s.cost_usd IS NULL AND s.tokens_used > 0)::int",
        ),
        # What an agent reported of an attempt that lasted too long.
        _fact(
            "CASE e.kind WHEN 'LeaseLapsed' THEN 'builder' ELSE 'auditor' END",
            "e.at",
            """JOIN events e ON e.run_pk = r.id AND e.kind IN ('LeaseLapsed', 'AuditLapsed')
            JOIN phases p ON p.run_pk = r.id AND p.phase_id = e.phase_id
            LEFT JOIN leases l ON l.id = (e.data ->> 'lease_id')::bigint""",
            category="p.task_category",
            agent="coalesce(l.agent, '')",
            outcome="'lapsed'",
            tokens="coalesce((e.data ->> 'tokens_reported')::bigint, 0)",
            cost_usd="coalesce((e.data ->> 'cost_reported_usd')::numeric, 0)",
        ),
        # Tokens that an operator counted (`update_status`). Those of a result or of a lapse are
        # counted above. Their `TokensCounted` follows the result or lapse; only events of issues
        # may be between.
        _fact(
            f"'{Subject.HAND}'",
            "e.at",
            f"""JOIN events e ON e.run_pk = r.id AND e.kind = 'TokensCounted'
            JOIN phases p ON p.run_pk = r.id AND p.phase_id = e.phase_id
            JOIN LATERAL (SELECT b.kind FROM events b WHERE b.run_pk = r.id
                AND b.sequence < e.sequence AND b.kind NOT IN ('IssueRecorded', 'IssueResolved')
                ORDER BY b.sequence DESC LIMIT 1) cause ON cause.kind NOT IN ({_REPORTS})""",
            category="p.task_category",
            tokens="(e.data ->> 'tokens')::bigint",
            cost_usd="coalesce((e.data ->> 'cost_usd')::numeric, 0)",
        ),
        _fact(
            f"'{Subject.CI}'",
            "c.ended_at",
            "JOIN ci_runs c ON c.run_pk = r.id AND c.ended_at IS NOT NULL",
            outcome="coalesce(c.verdict, '')",
            name="c.profile",
            step=_step("coalesce(c.started_at, c.requested_at)", "c.ended_at"),
        ),
        _fact(
            f"'{Subject.FLAKY_CHECK}'",
            "c.ended_at",
            """JOIN ci_runs c ON c.run_pk = r.id AND c.is_flaky AND c.ended_at IS NOT NULL
            JOIN LATERAL (SELECT DISTINCT left(k.name, 300) AS name FROM ci_runs b
                CROSS JOIN LATERAL jsonb_array_elements_text(b.failing_checks) AS k(name)
                WHERE b.phase_pk = c.phase_pk AND b.commit_sha = c.commit_sha
                AND b.attempt <= c.attempt) checks ON true""",
            name="checks.name",
        ),
        _fact(
            f"'{Subject.WAIT}'",
            "c.started_at",
            "JOIN ci_runs c ON c.run_pk = r.id AND c.started_at IS NOT NULL",
            name="'ci'",
            step=_step("c.requested_at", "c.started_at"),
        ),
        # A phase can be taken as soon as the one before it has ended.
        _wait(
            "builder",
            "RunStarted",
            "PhaseQueued",
            "PhaseCompleted",
            "PhaseFailed",
            "PhaseSkipped",
            of_phase=False,
        ),
        _wait("auditor", "ReviewOpened", "AuditLapsed", of_phase=True),
    )
)
_CHOSEN: Final = "SELECT id, run_id, project_id, state, failure_code, ended_at FROM runs WHERE "
_ADDED: Final = (
    f"SELECT day, {_TEXTS}, step, {', '.join(f'sum({name}) AS {name}' for name in _SUMS)},"
    " (array_agg(run_id))[1] AS last_run_id FROM facts"
    f" GROUP BY day, {_TEXTS}, step"
)
# Another statement chooses and marks the runs before, so that this one sees all their rows.
_MARK: Final = """UPDATE runs SET is_counted = true WHERE id IN (
        SELECT id FROM runs WHERE NOT is_counted AND ended_at < %s
        ORDER BY id LIMIT %s FOR UPDATE SKIP LOCKED) RETURNING id"""
_ADD: Final = text(
    f"""WITH chosen AS ({_CHOSEN} id = ANY(:runs)), facts AS ({_FACTS}), added AS ({_ADDED})
    INSERT INTO figures AS f
        (digest, day, {_TEXTS}, step, {", ".join(_SUMS)}, last_run_id)
    SELECT md5(jsonb_build_array(day, {_TEXTS}, step)::text),
        day, {_TEXTS}, step, {", ".join(_SUMS)}, last_run_id FROM added
    ORDER BY 1 -- so that two of these cannot each hold a row that the other needs
    ON CONFLICT (digest) DO UPDATE SET last_run_id = EXCLUDED.last_run_id,
        {", ".join(f"{name} = f.{name} + EXCLUDED.{name}" for name in _SUMS)}"""
)
_ALL: Final = f"""
    WITH chosen AS ({_CHOSEN} NOT is_counted), facts AS ({_FACTS}),
    found AS (
        SELECT day, {_TEXTS}, step, {", ".join(_SUMS)}, last_run_id
        FROM figures WHERE day BETWEEN :start AND :end
        UNION ALL SELECT * FROM ({_ADDED}) added WHERE day BETWEEN :start AND :end)"""
_PAID: Final = ", ".join(f"'{each}'" for each in (Subject.BUILDER, Subject.AUDITOR, Subject.HAND))
_BUILT: Final = f"subject = '{Subject.BUILDER}'"


def _costs(by: Grouping) -> str:
    """Return the query of costs by one key: its groups, and their sum in a row without a key."""
    order = "name" if by is Grouping.DAY else "cost_usd DESC, tokens DESC, name"
    return f"""{_ALL}
        SELECT {_KEYS[by]} AS name, sum(cost_usd) AS cost_usd, sum(tokens)::bigint AS tokens,
            sum(tokens_measured)::bigint AS tokens_measured,
            sum(unpriced)::bigint AS unpriced_results,
            coalesce(sum(phases) FILTER (WHERE {_BUILT}), 0)::bigint AS phases,
            coalesce(sum(number) FILTER (WHERE {_BUILT} AND outcome <> 'unavailable'), 0)::bigint
                AS tries,
            sum(tickets)::bigint AS tickets, sum(repairs)::bigint AS repairs
        FROM found WHERE subject IN ({_PAID})
        GROUP BY GROUPING SETS ((1), ())
        ORDER BY grouping({_KEYS[by]}) DESC, {order} LIMIT :limit"""


_COSTS: Final = {by: text(_costs(by)) for by in Grouping}
# Of the time before, only runs are counted; of each day only what is shown by day.
_COUNTS: Final = text(f"""{_ALL}
    SELECT grouping(day) = 0 AS is_day, day, is_within, subject, outcome, name, step,
        sum(number)::bigint AS number, sum(tickets)::bigint AS tickets,
        sum(repairs)::bigint AS repairs, sum(tokens)::bigint AS tokens, sum(cost_usd) AS cost_usd
    FROM (SELECT *, day >= :within AS is_within FROM found) found
    WHERE subject = 'run' OR is_within AND subject <> '{Subject.FLAKY_CHECK}'
    GROUP BY GROUPING SETS (
        (is_within, subject, outcome, name, step), (is_within, day, subject, outcome, name, step))
    HAVING grouping(day) = 1 OR is_within AND subject IN ('run', 'ci', {_PAID})""")
_FLAKY: Final = text(f"""{_ALL}
    SELECT name, sum(number)::bigint AS number, (array_agg(last_run_id ORDER BY day DESC))[1]
        AS last_run_id FROM found WHERE subject = '{Subject.FLAKY_CHECK}'
    GROUP BY name ORDER BY 2 DESC, 1 LIMIT :limit""")


@dataclass(frozen=True, slots=True)
class Count:
    """A figure of the period (no day), of one of its days, or of the time before (not within)."""

    day: date | None
    is_within: bool
    subject: Subject
    outcome: str
    name: str
    step: int
    number: int
    tickets: int
    repairs: int
    tokens: int
    cost_usd: Decimal


_COUNTED: Final = (
    "is_within",
    "outcome",
    "name",
    "step",
    "number",
    "tickets",
    "repairs",
    "tokens",
    "cost_usd",
)


def count_ended(session: RowSession, now: datetime) -> int:
    """Add up the figures of some runs that are over; return how many runs. The caller commits."""
    marked = [run_pk for (run_pk,) in session.fetch(_MARK, (now - COUNTED_AFTER, BATCH))]
    if marked:
        session.execute(_ADD, {"runs": marked})
    return len(marked)


def read_costs(
    session: Session, by: Grouping, start: date, end: date, *, limit: int
) -> list[dict[str, Any]]:
    """Return the sums of a period, first of all, then by `name`; the highest costs first."""
    values = {"start": start, "end": end, "limit": limit + 1}
    return [dict(row) for row in session.connection().execute(_COSTS[by], values).mappings()]


def read_counts(session: Session, before: date, start: date, end: date) -> list[Count]:
    """Return the counts of a period and of its days, and those of runs from `before` on."""
    values = {"start": before, "within": start, "end": end}
    rows = session.connection().execute(_COUNTS, values).mappings()
    return [
        Count(
            day=row["day"] if row["is_day"] else None,
            subject=Subject(row["subject"]),
            **{name: row[name] for name in _COUNTED},
        )
        for row in rows
    ]


def read_flaky_checks(
    session: Session, start: date, end: date, *, limit: int
) -> Sequence[tuple[str, int, str]]:
    """Return the checks that were red and then green on one commit, how often, and a last run."""
    values = {"start": start, "end": end, "limit": limit}
    return [(*row,) for row in session.connection().execute(_FLAKY, values)]
