"""Results of roles as they arrived. (rules §5)"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Final, NamedTuple

from pydantic_core import from_json

from ..models import Issue, Patch, Submission
from .issues import ISSUES
from .patches import PATCHES
from .rows import Part, Prepared, PreparedParts, PreparedSelect, Rows
from .session import RowSession

SUBMISSIONS: Final = Rows(Submission)
_LATEST: Final = PreparedSelect(
    SUBMISSIONS, "WHERE phase_pk = %s AND role = %s ORDER BY attempt DESC LIMIT 1"
)
# The number of the next attempt, and the ids of the submission and its patches.
_NEXT_SUBMISSION: Final = Prepared(
    "next_submission",
    "SELECT coalesce(max(attempt), 0)::bigint + 1,"
    " nextval(pg_get_serial_sequence('submissions', 'id')),"
    " ARRAY(SELECT nextval(pg_get_serial_sequence('patches', 'id'))"
    " FROM generate_series(1, %s))"
    " FROM submissions WHERE phase_pk = %s AND role = %s",
)
_FILES: Final = (
    "ARRAY(SELECT p.files_changed::text FROM patches p"
    " WHERE p.submission_pk = submissions.id ORDER BY p.position)::text[]"
)
_SHAS: Final = (
    "ARRAY(SELECT c.sha FROM patches p JOIN commits c ON c.patch_pk = p.id"
    " AND c.run_pk = submissions.run_pk AND c.phase_pk = submissions.phase_pk"
    " WHERE p.submission_pk = submissions.id ORDER BY c.position)::text[]"
)
_ATTEMPTS_AND_ISSUES: Final = PreparedParts(
    "select_attempts_and_issues",
    Part((*SUBMISSIONS.column_list, _FILES, _SHAS), "submissions WHERE phase_pk = ANY(%s)"),
    Part(ISSUES.column_list, "issues WHERE phase_pk = ANY(%s)"),
)


def add_submission(
    session: RowSession, submission: Submission, patches: Sequence[Patch] = ()
) -> Submission:
    """Store a submission with its patches, as they are when the change is committed.

    All of them have their ids at once, and the submission the number of its attempt.
    """
    ((submission.attempt, submission.id, patch_ids),) = session.fetch_by(
        _NEXT_SUBMISSION, (len(patches), submission.phase_pk, submission.role)
    )
    session.put(SUBMISSIONS, submission)
    for patch, key in zip(patches, patch_ids, strict=True):
        patch.id, patch.submission_pk = key, submission.id
        session.put(PATCHES, patch)
    return submission


def get_submission(session: RowSession, submission_pk: int) -> Submission:
    """Return a submission that must exist."""
    found = session.row(SUBMISSIONS, "WHERE id = %s", (submission_pk,))
    assert found is not None  # noqa: S101 - for the type checker: a phase names it
    return found


def find_latest(session: RowSession, phase_pk: int, role: str) -> Submission | None:
    """Return the last submission of a role to a phase."""
    found = session.rows_by(_LATEST, (phase_pk, role))
    return found[0] if found else None


class Attempt(NamedTuple):
    """A submission, with the files that its patches change, and the commits of these patches."""

    submission: Submission
    files_changed: list[str]
    commits: list[str]


def list_attempts_and_issues(
    session: RowSession, phase_pks: Sequence[int]
) -> tuple[list[Attempt], list[Issue]]:
    """Return the submissions to phases, oldest first, and their issues, as they were first seen."""
    made, seen = session.fetch_parts(_ATTEMPTS_AND_ISSUES, [list(phase_pks)] * 2)
    attempts = [
        Attempt(SUBMISSIONS.read(values), [*chain.from_iterable(map(from_json, files))], shas)
        for *values, files, shas in sorted(made, key=itemgetter(0))
    ]
    return attempts, sorted(session.read(ISSUES, seen), key=attrgetter("id"))
