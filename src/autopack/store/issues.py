"""Issues of phases, the run's index over them, and the project's backlog."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, select
from sqlalchemy.orm import Session

from ..domain.debt import Closing, LifeKind
from ..domain.errors import NotFoundError
from ..domain.events import IssueRecorded
from ..domain.issues import BacklogOrder, BacklogStatus
from ..domain.run_issues import RunIssue
from ..domain.terms import Severity
from ..models import BacklogEntry, Issue, Phase, Run, Sighting
from ..views.issues import PlaceAnswer
from .rows import Part, Prepared, PreparedParts, PreparedSelect, Rows, Values
from .session import RowSession

ISSUES: Final = Rows(Issue, kept=1_000)
BACKLOG: Final = Rows(BacklogEntry, kept=4_000)
_WHOLE_BACKLOG: Final = PreparedSelect(BACKLOG, "WHERE project_id = %s ORDER BY id")


_RUN_ISSUE: Final = (
    *("issue_key", "source", "category", "occurrence_count", "severity", "effective_severity"),
    *("is_expected", "is_open", "phase_id", "phase_index", "tier_id", "tier_index"),
)

# The entry of a key that is given. LATERAL and LIMIT, so that it is found by its index: a join may
# read all of a project's backlog, or all that needs cleanup.
_ENTRY: Final = (
    "SELECT * FROM backlog WHERE project_id = %s AND issue_key = given.issue_key LIMIT 1"
)
_OF_RUN: Final = PreparedParts(
    "select_run_issues",
    Part(
        (
            *("i.id::bigint", "i.issue_key::text", "i.source::text", "i.category::text"),
            *("i.occurrence_count::bigint", "i.severity::text", "i.effective_severity::text"),
            *("i.is_expected::boolean", "(i.status = 'open')::boolean", "p.phase_id::text"),
            *("p.phase_index::bigint", "p.tier_id::text", "p.tier_index::bigint"),
        ),
        "issues i JOIN phases p ON p.id = i.phase_pk WHERE i.run_pk = %s",
    ),
    Part(ISSUES.column_list, "issues WHERE phase_pk = %s AND issue_key = ANY(%s)"),
    Part(
        ("known.issue_key::text", "known.needs_cleanup_at::timestamptz"),
        f"unnest(%s::text[]) AS given (issue_key) CROSS JOIN LATERAL ({_ENTRY}) known"
        f" WHERE known.status = '{BacklogStatus.NEEDS_CLEANUP}'",
    ),
)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of keys before they are reported in a phase."""

    of_run: list[RunIssue]  # all issues of the run, in the order in which they were first seen
    rows: list[Issue]  # the entries of these keys in the phase
    aged: dict[str, datetime]  # since when a key needs cleanup; others are not in it


def list_run_issues(session: RowSession, run_pk: int) -> list[RunIssue]:
    """Return a run's issues in the order in which they were first seen."""
    return read_known(session, "", run_pk, None, ()).of_run


def read_known(
    session: RowSession, project_id: str, run_pk: int, phase_pk: int | None, keys: Sequence[str]
) -> Known:
    """Return what is known of keys of a phase, in one round trip.

    The caller holds the run's lock if it changes the rows. The backlog is not locked.
    """
    names = list(keys)
    found, rows, aged = session.fetch_parts(_OF_RUN, (run_pk, phase_pk, names, names, project_id))
    found.sort(key=itemgetter(0))
    return Known([_run_issue(row) for row in found], session.read(ISSUES, rows), dict(aged))


def _run_issue(row: Sequence[Any]) -> RunIssue:
    values = dict(zip(_RUN_ISSUE, row[1:], strict=True))
    for severity in ("severity", "effective_severity"):
        values[severity] = Severity(values[severity])
    return RunIssue(**values)


def add_issue(session: RowSession, issue: Issue) -> Issue:
    """Store a key's first entry in a phase."""
    return session.put(ISSUES, issue)


def resolve(session: RowSession, run_pk: int, phase_pk: int, keys: Collection[str]) -> None:
    """Resolve keys in a phase."""
    statement = (
        "UPDATE issues SET status = 'resolved'"
        " WHERE run_pk = %s AND phase_pk = %s AND issue_key = ANY(%s)"
    )
    session.gather(statement, (run_pk, phase_pk, list(keys)))


def list_descriptions(session: Session, run_pk: int, keys: Collection[str]) -> dict[str, str]:
    """Return the latest description of each key that has one."""
    query = (
        select(Issue.issue_key, Issue.description)
        .where(Issue.run_pk == run_pk, Issue.issue_key.in_(keys), Issue.description.is_not(None))
        .order_by(Issue.last_seen_at, Issue.id)
    )
    return {key: description or "" for key, description in session.execute(query)}


# This locks the entry until the transaction ends, so sightings of one key by several runs follow
# each other and none is lost. `_COUNT_SIGHTINGS`, which sees what was committed while this one
# waited, adds the sightings, and counts runs and tiers of each key that has a new one.
_SIGHT: Final = Prepared(
    "sight",
    """
    INSERT INTO backlog AS known
        (project_id, issue_key, category, base_severity, status, age_in_runs, age_in_tiers,
         total_occurrences, first_seen_run, last_seen_run, last_seen_at, tiers)
    VALUES (%s, %s, %s, %s, 'open', 0, 0, 1, %s, %s, %s, '[]')
    ON CONFLICT (project_id, issue_key) DO UPDATE SET
        total_occurrences = known.total_occurrences + 1,
        last_seen_run = excluded.last_seen_run,
        last_seen_at = greatest(known.last_seen_at, excluded.last_seen_at),
        status = CASE known.status WHEN 'resolved' THEN 'open' ELSE known.status END,
        resolved_at = NULL,
        base_severity = CASE known.base_severity WHEN 'major' THEN 'major'
            ELSE excluded.base_severity END
""",
)
# LATERAL, so that the sightings of each key are found by their index, however many there are.
_COUNT_SIGHTINGS: Final = Prepared(
    "count_sightings",
    f"""
    WITH seen AS (
        SELECT DISTINCT known.id, given.tier_id
        FROM unnest(%s::text[], %s::text[]) AS given (issue_key, tier_id)
        CROSS JOIN LATERAL ({_ENTRY}) known
    ), new AS (
        INSERT INTO sightings (backlog_pk, run_pk, tier_id)
        SELECT id, %s, tier_id FROM seen
        ON CONFLICT DO NOTHING RETURNING backlog_pk, run_pk, tier_id
    ), ages AS (
        SELECT fresh.backlog_pk, counted.*
        FROM (SELECT DISTINCT backlog_pk FROM new) fresh CROSS JOIN LATERAL (
            SELECT count(DISTINCT run_pk) AS runs, array_agg(DISTINCT tier_id) AS tiers FROM (
                SELECT run_pk, tier_id COLLATE "C" AS tier_id FROM sightings
                WHERE backlog_pk = fresh.backlog_pk
                UNION ALL SELECT run_pk, tier_id FROM new WHERE backlog_pk = fresh.backlog_pk
            ) all_seen
        ) counted
    )
    UPDATE backlog SET age_in_runs = ages.runs, age_in_tiers = cardinality(ages.tiers),
        tiers = to_jsonb(ages.tiers)
    FROM ages WHERE ages.backlog_pk = backlog.id
""",  # noqa: S608 - `_ENTRY` is a literal
)
# Not before the last sighting: another run's report, which came first, would pass for a later one.
_CLOSE: Final = Prepared(
    "close_in_backlog",
    """
    WITH closed AS (
        UPDATE backlog SET status = 'resolved', resolved_at = greatest(%s, last_seen_at)
        WHERE project_id = %s AND issue_key = %s RETURNING id, resolved_at
    )
    INSERT INTO issue_events (backlog_pk, kind, at, run_id, phase_id, checks, reason)
    SELECT id, 'closed', resolved_at, %s, %s, %s::jsonb, %s FROM closed
""",
)
_GIVEN_ENTRIES: Final = PreparedSelect(
    BACKLOG,
    f"""WHERE id = ANY(ARRAY(SELECT known.id FROM unnest(%s::text[]) AS given (issue_key)
        CROSS JOIN LATERAL ({_ENTRY}) known))""",  # noqa: S608 - `_ENTRY` is a literal
)
# A hand that reopens an issue has the last word, until the next report. What closed an open issue
# came before the report, whatever their times are: the report may have waited for it.
_TO_WEIGH: Final = """WHERE id IN (SELECT backlog_pk FROM sightings WHERE run_pk = %s)
    AND status = 'open' AND last_seen_run = %s AND NOT EXISTS (
        SELECT FROM issue_events e WHERE e.backlog_pk = backlog.id
            AND e.kind = 'reopened' AND e.at > last_seen_at)"""


def count_in_backlog(
    session: RowSession,
    run: Run,
    reports: Sequence[tuple[str, IssueRecorded]],
    closings: Mapping[str, tuple[str, Closing]],
    now: datetime,
) -> None:
    """Count reports of a run, each with its tier, and close keys, each by its phase and the proof.

    Goes with the next statement that is sent, which should be the commit: from then on the entries
    are locked, in the order of their keys, so that two runs never wait for each other crosswise.
    """
    project_id, run_id = run.project_id, run.run_id
    steps: list[tuple[str, Prepared, Values]] = []
    for _, each in reports:
        known = (project_id, each.issue_key, each.category, each.severity)
        steps.append((each.issue_key, _SIGHT, (*known, run_id, run_id, now)))
    for key, (phase_id, closing) in closings.items():
        proof = (run_id, phase_id, json.dumps(closing.checks), closing.reason)
        steps.append((key, _CLOSE, (now, project_id, key, *proof)))
    for _, statement, values in sorted(steps, key=itemgetter(0)):
        session.gather(statement, values)
    if reports:
        keys, tiers = [each.issue_key for _, each in reports], [tier_id for tier_id, _ in reports]
        session.gather(_COUNT_SIGHTINGS, (keys, tiers, project_id, run.id))


def list_entries(
    session: RowSession, project_id: str, keys: Collection[str]
) -> dict[str, BacklogEntry]:
    """Return the entries of these keys that are in the backlog."""
    found = session.rows_by(_GIVEN_ENTRIES, (list(keys), project_id))
    return {entry.issue_key: entry for entry in found}


def list_to_weigh(session: RowSession, run: Run) -> dict[str, BacklogEntry]:
    """Return the open entries that this run has reported last, and no hand has reopened since.

    A service that was killed after such a report may not have decided whether they have aged.
    """
    found = session.rows(BACKLOG, _TO_WEIGH, (run.id, run.run_id))
    return {entry.issue_key: entry for entry in found}


def lock_entries(session: RowSession, entries: Iterable[BacklogEntry]) -> list[BacklogEntry]:
    """Lock entries, in the order of their keys, and read them as they are now.

    Edits of them are written with the commit.
    """
    condition = 'WHERE id = ANY(%s) ORDER BY issue_key COLLATE "C" FOR NO KEY UPDATE'
    return session.rows(BACKLOG, condition, ([entry.id for entry in entries],))


def get_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry:
    """Return a key of the project's backlog. Raises NotFoundError."""
    return _backlog_entry(session, project_id, issue_key, select(BacklogEntry))


def lock_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry:
    """Return a key of the project's backlog, FOR UPDATE. Raises NotFoundError."""
    return _backlog_entry(session, project_id, issue_key, select(BacklogEntry).with_for_update())


def find_backlog_entry(session: Session, project_id: str, issue_key: str) -> BacklogEntry | None:
    """Return a key of the project's backlog, if it is there."""
    return session.scalars(
        select(BacklogEntry).where(
            BacklogEntry.project_id == project_id, BacklogEntry.issue_key == issue_key
        )
    ).one_or_none()


def _backlog_entry(
    session: Session, project_id: str, issue_key: str, query: Select[BacklogEntry]
) -> BacklogEntry:
    entry = session.scalars(
        query.where(BacklogEntry.project_id == project_id, BacklogEntry.issue_key == issue_key)
    ).one_or_none()
    if entry is None:
        raise NotFoundError(f"the backlog of '{project_id}' has no issue {issue_key!r}")
    return entry


def list_places(session: Session, entry: BacklogEntry, limit: int) -> list[PlaceAnswer]:
    """Return the phases that saw a key of the backlog, those first that saw it last."""
    query = (
        select(
            *(Run.run_id, Run.state.label("run_state")),
            *(Phase.tier_id, Phase.phase_id, Phase.state.label("phase_state")),
            *(Issue.status, Issue.severity, Issue.effective_severity, Issue.source),
            *(Issue.occurrence_count, Issue.first_seen_at, Issue.last_seen_at),
        )
        .join(Phase, Phase.id == Issue.phase_pk)
        .join(Run, Run.id == Issue.run_pk)
        .where(*_of_entry(entry))
        .order_by(*_LAST_SEEN_FIRST)
        .limit(limit)
    )
    return [PlaceAnswer(**row._mapping) for row in session.execute(query)]


_LAST_SEEN_FIRST = (Issue.last_seen_at.desc(), Issue.id.desc())


def _of_entry(entry: BacklogEntry) -> list[ColumnElement[bool]]:
    """Say which issues a backlog's entry counts: by its sightings, as issues are indexed by run."""
    runs = select(Sighting.run_pk).where(Sighting.backlog_pk == entry.id)
    return [
        Issue.run_pk.in_(runs),
        Issue.issue_key == entry.issue_key,
        Issue.is_expected.is_(False),
    ]


def note(
    session: RowSession,
    project_id: str,
    issue_key: str,
    kind: LifeKind,
    at: datetime,
    *,
    run_id: str | None = None,
    phase_id: str | None = None,
    actor: str | None = None,
    reason: str | None = None,
) -> None:
    """Keep what happened to an issue of the backlog; a key that is not there has no life.

    That it was closed is kept where it is (`count_in_backlog`), with the checks that prove it.
    """
    session.gather(
        "INSERT INTO issue_events"
        " (backlog_pk, kind, at, run_id, phase_id, actor, checks, reason)"
        " SELECT id, %s, %s, %s, %s, %s, '[]', %s FROM backlog"
        " WHERE project_id = %s AND issue_key = %s",
        (str(kind), at, run_id, phase_id, actor, reason, project_id, issue_key),
    )


# The checks that CI named red in phases whose reports of an issue name them, the latest first. A
# report names a check by its evidence, or by its key: `test_failure__<check>`. A flaky check passes
# again without a change, so it proves nothing; a cleanup phase could make its check red.
_RED: Final = """SELECT checks.name, max(c.id) AS latest FROM issues i
    JOIN phases p ON p.id = i.phase_pk AND p.issue_key IS NULL
    JOIN ci_runs c ON c.phase_pk = p.id AND c.verdict = 'red'
    CROSS JOIN LATERAL jsonb_array_elements_text(c.failing_checks) AS checks (name)
    WHERE i.run_pk IN (SELECT s.run_pk FROM sightings s WHERE s.backlog_pk = b.id)
        AND i.issue_key = b.issue_key AND NOT i.is_expected AND i.category <> 'ci_flaky'
        AND (i.evidence_refs ? checks.name OR right(i.issue_key, length(checks.name) + 2)
            = '__' || checks.name)
    GROUP BY checks.name ORDER BY latest DESC, checks.name LIMIT 100"""
# A phase that had seen the issue before counts by its last sighting.
_SEEN_AGAIN: Final = """SELECT p.phase_id, r.run_id, CASE WHEN i.first_seen_at > e.at
            THEN i.first_seen_at ELSE i.last_seen_at END AS at
    FROM issues i JOIN phases p ON p.id = i.phase_pk JOIN runs r ON r.id = i.run_pk
    WHERE e.kind IN ('closed', 'resolved') AND i.last_seen_at > e.at AND NOT i.is_expected
        AND i.run_pk IN (SELECT s.run_pk FROM sightings s WHERE s.backlog_pk = b.id)
        AND i.issue_key = b.issue_key ORDER BY at, i.id LIMIT 1"""
_LIFE: Final = f"""SELECT e.id, e.kind, e.at, e.run_id, e.phase_id, e.actor, e.checks, e.reason,
        again.at AS again_at, again.run_id AS again_run_id, again.phase_id AS again_phase_id
    FROM issue_events e LEFT JOIN LATERAL ({_SEEN_AGAIN}) again ON true
    WHERE e.backlog_pk = b.id ORDER BY e.id DESC LIMIT %s"""  # noqa: S608 - literals
_CLEANUPS: Final = """SELECT p.id, r.run_id, r.state AS run_state, p.phase_id,
        p.state AS phase_state, p.verdict, p.started_at, p.ended_at
    FROM phases p JOIN runs r ON r.id = p.run_pk AND r.project_id = b.project_id
    WHERE p.issue_key = b.issue_key ORDER BY p.id DESC LIMIT %s"""


@dataclass(frozen=True, slots=True)
class History:
    """What is known of an issue beside its reports; events and cleanups are the newest first.

    An event that closed it may have the sighting after it, as `again_at` and so on.
    """

    red_checks: list[str]
    cleanups: list[dict[str, Any]]
    events: list[dict[str, Any]]


def get_history(
    session: RowSession, project_id: str, issue_key: str, *, cleanups: int = 0, events: int = 0
) -> History:
    """Return the red checks of an issue, and so many of its cleanup phases and events."""
    query = f"""SELECT
            (SELECT jsonb_agg(x.name ORDER BY x.latest DESC, x.name) FROM ({_RED}) x),
            (SELECT jsonb_agg(to_jsonb(x) - 'id' ORDER BY x.id DESC) FROM ({_CLEANUPS}) x),
            (SELECT jsonb_agg(to_jsonb(x) - 'id' ORDER BY x.id DESC) FROM ({_LIFE}) x)
        FROM backlog b WHERE b.project_id = %s AND b.issue_key = %s"""  # noqa: S608 - literals
    for red, phases, happened in session.fetch(query, (cleanups, events, project_id, issue_key)):
        return History(red or [], phases or [], happened or [])
    return History([], [], [])


def list_red_checks(session: RowSession, project_id: str, issue_key: str) -> list[str]:
    """Return the checks that CI named red in phases whose reports of an issue name them."""
    return get_history(session, project_id, issue_key).red_checks


def list_red_checks_for(session: RowSession, ci_run_id: int) -> list[str]:
    """Return those checks of the issue that the phase of a CI run cleans up; else none."""
    query = """SELECT r.project_id, p.issue_key FROM ci_runs c JOIN phases p ON p.id = c.phase_pk
        JOIN runs r ON r.id = p.run_pk WHERE c.id = %s AND p.issue_key IS NOT NULL"""
    for project_id, issue_key in session.fetch(query, (ci_run_id,)):
        return list_red_checks(session, project_id, issue_key)
    return []


def list_needing_cleanup(
    session: Session, project_id: str, *, limit: int, category: str | None = None
) -> list[BacklogEntry]:
    """Return aged issues, of one category or all, those first that have waited longest."""
    wanted = [
        BacklogEntry.project_id == project_id,
        BacklogEntry.status == BacklogStatus.NEEDS_CLEANUP,
    ]
    if category is not None:
        wanted.append(BacklogEntry.category == category)
    query = (
        select(BacklogEntry)
        .where(*wanted)
        .order_by(BacklogEntry.needs_cleanup_at, BacklogEntry.id)
        .limit(limit)
    )
    return list(session.scalars(query))


# What each order sorts by, the largest first; rows that are equal come by their ids.
_ORDERS: Final = {
    BacklogOrder.PRESSING: (
        "(status <> 'resolved')::int, (status = 'needs_cleanup')::int,"
        " (base_severity = 'major')::int, age_in_runs, age_in_tiers, id"
    ),
    BacklogOrder.LAST_SEEN: "last_seen_at, id",
    BacklogOrder.OFTEN: "total_occurrences, id",
}


def list_whole_backlog(session: RowSession, project_id: str) -> list[BacklogEntry]:
    """Return all of the backlog's entries, in the order in which they were first seen."""
    return session.rows_by(_WHOLE_BACKLOG, (project_id,))


def list_backlog(
    session: RowSession,
    project_id: str,
    *,
    limit: int | None = None,
    after: int = 0,
    status: BacklogStatus | None = None,
    category: str | None = None,
    severity: Severity | None = None,
    containing: str | None = None,
    order: BacklogOrder = BacklogOrder.FIRST_SEEN,
) -> list[BacklogEntry]:
    """Return the backlog's entries after the one with an id, in an order.

    An entry that changes between two pages may be in both or in none, as its place changes.
    """
    like = None if containing is None else f"%{_escaped(containing)}%"
    wanted: dict[str, object] = {
        "project_id = %s": project_id,
        "status = %s": status,
        "category = %s": category,
        "base_severity = %s": severity,
        "issue_key ILIKE %s": like,
    }
    sorting = "ORDER BY id"
    if order is BacklogOrder.FIRST_SEEN:
        wanted["id > %s"] = after
    else:
        by = _ORDERS[order]
        if after:
            position = f"({by}) < (SELECT {by} FROM backlog WHERE id = %s)"  # noqa: S608 - literals
            wanted[position] = after
        sorting = f"ORDER BY ({by}) DESC"
    given = {condition: value for condition, value in wanted.items() if value is not None}
    condition = f"WHERE {' AND '.join(given)} {sorting} LIMIT %s"
    return session.rows(BACKLOG, condition, [*given.values(), limit])


def _escaped(text: str) -> str:
    """Return a text in which LIKE finds no wildcard."""
    return re.sub(r"([\\%_])", r"\\\1", text)


# Of each key the issues of the last runs that saw it: issues are indexed by run.
_LATEST_WORDS: Final = """SELECT b.id, said.description, shown.evidence_refs FROM backlog b
    LEFT JOIN LATERAL (SELECT i.description FROM sightings s
        JOIN issues i ON i.run_pk = s.run_pk AND i.issue_key = b.issue_key AND NOT i.is_expected
        WHERE s.backlog_pk = b.id AND i.description IS NOT NULL
        ORDER BY i.last_seen_at DESC, i.id DESC LIMIT 1) said ON true
    LEFT JOIN LATERAL (SELECT i.evidence_refs FROM sightings s
        JOIN issues i ON i.run_pk = s.run_pk AND i.issue_key = b.issue_key AND NOT i.is_expected
        WHERE s.backlog_pk = b.id AND jsonb_array_length(i.evidence_refs) > 0
        ORDER BY i.last_seen_at DESC, i.id DESC LIMIT 1) shown ON true
    WHERE b.id = ANY(%s)"""


def list_latest_words(
    session: RowSession, entry_ids: Sequence[int]
) -> dict[int, tuple[str | None, list[str]]]:
    """Return the latest description and evidence of some keys of the backlog, by the entry's id."""
    found = session.fetch(_LATEST_WORDS, (list(entry_ids),))
    return {entry_id: (said, shown or []) for entry_id, said, shown in found}
