"""Runs whose details may go, and what goes. (rules §10)"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from .session import RowSession

# Settled since that time: closed, or cancelled by an operator, who needs it no more. An imported
# run is closed by its import, whatever happened to it elsewhere long before.
_SETTLED: Final = """r.ended_at < %(before)s AND (r.closed_at < %(before)s
    OR r.failure_code = 'cancelled' AND r.imported_at IS NULL)"""
# Its figures are added up, branch and files show its last state, and nothing that has its details
# builds on it.
_AT_REST: Final = """r.is_counted AND r.mirrored_revision = r.revision
    AND NOT EXISTS (SELECT FROM pushes p WHERE p.run_pk = r.id AND p.next_try_at IS NOT NULL)
    AND NOT EXISTS (SELECT FROM runs c
        WHERE c.continues = r.run_id AND c.details_removed_at IS NULL)
    AND NOT EXISTS (SELECT FROM runs c
        WHERE c.rebases = r.run_id AND c.details_removed_at IS NULL)"""
_RECORDED: Final = "r.head_commit <> r.work_commit"
_NEXT: Final = f"""SELECT r.id, r.run_id, r.ended_at FROM runs r
    WHERE r.ended_at IS NOT NULL AND r.details_removed_at IS NULL
        AND (r.ended_at, r.id) > (%(ended_at)s, %(id)s)
        AND {_SETTLED} AND {_RECORDED} AND {_AT_REST}
    ORDER BY r.ended_at, r.id LIMIT %(limit)s"""  # noqa: S608 - literals
# Its parts are literals of this module.
_OLD: Final = f"""SELECT count(*) FILTER (WHERE {_SETTLED} AND {_RECORDED} AND {_AT_REST}),
        count(*) FILTER (WHERE ({_SETTLED}) IS NOT TRUE),
        count(*) FILTER (WHERE {_SETTLED} AND NOT ({_RECORDED})),
        count(*) FILTER (WHERE {_SETTLED} AND {_RECORDED} AND NOT ({_AT_REST}))
    FROM runs r WHERE r.ended_at < %(before)s AND r.details_removed_at IS NULL"""  # noqa: S608
_BYTES: Final = """SELECT
    (SELECT coalesce(sum(octet_length(p.content)), 0) FROM patches p
        JOIN submissions s ON s.id = p.submission_pk WHERE s.run_pk = ANY(%(runs)s))
    + (SELECT coalesce(sum(octet_length(difference)), 0) FROM commits
        WHERE run_pk = ANY(%(runs)s))
    + (SELECT coalesce(sum(pg_column_size(body) + coalesce(pg_column_size(ticket), 0)), 0)
        FROM submissions WHERE run_pk = ANY(%(runs)s))
    + (SELECT coalesce(sum(octet_length(l.compressed)), 0) FROM ci_logs l
        JOIN ci_runs c ON c.id = l.ci_run_pk WHERE c.run_pk = ANY(%(runs)s))
    + (SELECT coalesce(sum(pg_column_size(e.*)), 0) FROM events e
        WHERE run_pk = ANY(%(runs)s) AND sequence > 1)
    + (SELECT coalesce(sum(pg_column_size(p.*)), 0) FROM replies p WHERE run_pk = ANY(%(runs)s))"""
# The first event stays, and the last one of the record with all after it, which only the database
# has: so the chain of what stays can be joined to the record.
_REMOVALS: Final = (
    """UPDATE patches SET content = NULL FROM submissions s
        WHERE s.id = submission_pk AND s.run_pk = %(run)s""",
    "UPDATE commits SET difference = NULL WHERE run_pk = %(run)s AND difference IS NOT NULL",
    "UPDATE submissions SET body = '{}', ticket = NULL WHERE run_pk = %(run)s",
    "DELETE FROM ci_logs USING ci_runs c WHERE c.id = ci_run_pk AND c.run_pk = %(run)s",
    "UPDATE ci_runs SET log_tail = NULL WHERE run_pk = %(run)s AND log_tail IS NOT NULL",
    "DELETE FROM replies WHERE run_pk = %(run)s",
    """DELETE FROM events
        WHERE run_pk = %(run)s AND sequence > 1 AND sequence < %(recorded)s""",
    # A node without a mark has not looked at the run yet: its last event is still there, and a node
    # that is new or was away long looks at every run.
    """UPDATE node_runs SET revision = 0, event_sequence = NULL, lacks = 'its details were removed'
        WHERE run_pk = %(run)s""",
    """INSERT INTO retention (id, beaten_at, removed, due, failed) VALUES (1, now(), 1, 0, 0)
        ON CONFLICT (id) DO UPDATE SET removed = retention.removed + 1""",
    # A run of a node that was removed is no one's, and would lag for ever.
    """UPDATE runs SET details_removed_at = %(now)s,
        mirrored_revision = CASE WHEN mirrored_by IS NULL THEN revision ELSE 0 END
        WHERE id = %(run)s""",
)
_NOTE: Final = """INSERT INTO retention (id, beaten_at, removed, due, failed)
    VALUES (1, now(), 0, %(due)s, %(failed)s)
    ON CONFLICT (id) DO UPDATE
    SET beaten_at = now(), due = excluded.due, failed = excluded.failed"""


@dataclass(frozen=True, slots=True)
class OldRun:
    """A run whose details may go; the runs are read in the order of their ends."""

    id: int
    run_id: str
    ended_at: datetime


@dataclass(frozen=True, slots=True)
class OldRuns:
    """How many old runs have their details: those that are due, the others by the reason."""

    due: int
    not_settled: int
    without_record: int
    in_use: int


def list_settled(
    session: RowSession, before: datetime, after: OldRun | None, limit: int
) -> list[OldRun]:
    """Return runs that were settled before a time, oldest first, after a place."""
    values = {
        "before": before,
        "ended_at": after.ended_at if after else datetime.min.replace(tzinfo=before.tzinfo),
        "id": after.id if after else 0,
        "limit": limit,
    }
    return [OldRun(*row) for row in session.fetch(_NEXT, values)]


def may_be_removed(session: RowSession, old: OldRun, before: datetime) -> bool:
    """Say whether a run that this transaction has locked may still lose its details."""
    found = list_settled(session, before, OldRun(old.id - 1, old.run_id, old.ended_at), 1)
    return [run.id for run in found] == [old.id]


def count_old(session: RowSession, before: datetime) -> OldRuns:
    """Return how many runs that ended before a time have their details."""
    (row,) = session.fetch(_OLD, {"before": before})
    return OldRuns(*row)


def count_bytes(session: RowSession, run_pks: list[int]) -> int:
    """Return how many bytes the removal of these runs' details would free, before compression."""
    ((size,),) = session.fetch(_BYTES, {"runs": run_pks})
    return int(size)


def remove_details(session: RowSession, run_pk: int, *, recorded: int, now: datetime) -> None:
    """Remove the details of a run; `recorded` is the last event that its record has."""
    for statement in _REMOVALS:
        session.gather(statement, {"run": run_pk, "recorded": recorded, "now": now})


def note_progress(session: RowSession, *, due: int, failed: int) -> None:
    """Note that the periodic pass is at work, what it has left to do, and what it could not do."""
    session.gather(_NOTE, {"due": due, "failed": failed})
