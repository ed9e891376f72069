"""Submissions, their patches, the commits from them, and stored answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, Final, NamedTuple

from pydantic_core import from_json
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.outcomes import CommitKind, PatchOutcome, PatchStatus
from ..domain.retention import DetailsRemovedError
from ..domain.states import PhaseStatus
from ..models import Commit, Issue, Patch, Phase, Reply, Run, Submission
from ..models.work import OF_ALL_RUNS
from ..views.record import RecordedCommit
from .issues import ISSUES
from .rows import Part, Prepared, PreparedParts, PreparedSelect, Rows
from .session import RowSession

SUBMISSIONS: Final = Rows(Submission)
PATCHES: Final = Rows(Patch, "content")
COMMITS: Final = Rows(Commit, "difference")
REPLIES: Final = Rows(Reply)
_COMMITS: Final = Rows(Commit)  # without their bytes
_LATEST: Final = PreparedSelect(
    SUBMISSIONS, "WHERE phase_pk = %s AND role = %s ORDER BY attempt DESC LIMIT 1"
)
_OF_SCOPE: Final = PreparedSelect(REPLIES, "WHERE run_pk = %s AND scope = %s")
_KEEP_REPLY: Final = Prepared(
    "keep_reply",
    "INSERT INTO replies (run_pk, scope, fingerprint, error_kind, body, created_at)"
    " SELECT %s, scope, %s, %s, %s, %s FROM unnest(%s::text[]) scope"
    " ON CONFLICT (run_pk, scope) DO UPDATE SET fingerprint = excluded.fingerprint,"
    " error_kind = excluded.error_kind, body = excluded.body, created_at = excluded.created_at",
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
_LAST_POSITION: Final = Prepared(
    "last_commit", "SELECT coalesce(max(position), 0)::bigint FROM commits WHERE run_pk = %s"
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


def new_patch(
    position: int, content: bytes, status: PatchStatus, description: str | None = None
) -> Patch:
    """Return a patch that belongs to no submission yet."""
    return PATCHES.new(
        position=position,
        sha256=hashlib.sha256(content).hexdigest(),
        content=content,
        status=status,
        description=description,
        files_changed=[],
    )


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


def list_patches(session: RowSession, submission_pk: int) -> list[Patch]:
    """Return the patches of a submission in their order, with their bytes."""
    return session.rows(PATCHES, "WHERE submission_pk = %s ORDER BY position", (submission_pk,))


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchFacts:
    """A patch without its bytes."""

    id: int
    submission_pk: int
    sha256: str
    status: PatchOutcome
    description: str | None
    files_changed: list[str]
    size_bytes: int | None


def list_patch_facts(session: RowSession, phase_pk: int) -> dict[int, list[PatchFacts]]:
    """Return the patches of each submission to a phase, in their order."""
    facts: dict[int, list[PatchFacts]] = {}
    # The row of a held patch stays as it was when the patch came; what became of it is elsewhere.
    query = (
        "SELECT p.id, p.submission_pk, p.sha256, CASE WHEN p.status <> 'pending' THEN p.status"
        " WHEN EXISTS (SELECT FROM commits c WHERE c.run_pk = s.run_pk AND c.patch_pk = p.id)"
        " THEN 'applied'"
        " WHEN h.pending_submission_id = s.id THEN 'pending' ELSE 'discarded' END,"
        " p.description, p.files_changed, octet_length(p.content)"
        " FROM patches p JOIN submissions s ON s.id = p.submission_pk"
        " JOIN phases h ON h.id = s.phase_pk"
        " WHERE s.phase_pk = %s ORDER BY p.submission_pk, p.position"
    )
    names = [field.name for field in fields(PatchFacts)]
    for row in session.fetch(query, (phase_pk,)):
        fact = PatchFacts(**dict(zip(names, row, strict=True)))
        facts.setdefault(fact.submission_pk, []).append(fact)
    return facts


def get_patch(session: Session, run_pk: int, patch_pk: int) -> bytes:
    """Return the bytes of a patch that was submitted to a run. Raises NotFoundError."""
    query = (
        select(Patch.content, Run.run_id, Run.details_removed_at)
        .join(Submission, Submission.id == Patch.submission_pk)
        .join(Run, Run.id == Submission.run_pk)
        .where(Patch.id == patch_pk, Submission.run_pk == run_pk)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"the run has no patch {patch_pk}: see the attempts of its phases")
    if row.content is None:
        raise DetailsRemovedError.of(row.run_id, row.details_removed_at)
    return bytes(row.content)


def list_commits(session: RowSession, run_pk: int) -> list[Commit]:
    """Return every commit that the run's branch was at, oldest first."""
    return session.rows(_COMMITS, "WHERE run_pk = %s ORDER BY position", (run_pk,))


@dataclass(frozen=True, slots=True)
class AcceptedCommit:
    """A commit of a phase that is complete, and the Builders of that phase."""

    sha: str
    parent: str
    message: str
    kind: CommitKind
    phase_id: str
    task_category: str
    builders: list[str]
    builder_models: list[str]


def list_accepted_commits(session: RowSession, run_pk: int) -> list[AcceptedCommit]:
    """Return the commits that hold the patches of complete phases, oldest first.

    Of a patch that was applied again, after a phase before it was undone, the last one.
    """
    query = """SELECT c.sha, c.parent, c.message, c.kind, p.phase_id, p.task_category,
            p.builders, p.builder_models
        FROM commits c JOIN phases p ON p.id = c.phase_pk
        WHERE c.run_pk = %s AND c.kind = ANY(%s) AND p.state = %s
            AND c.position > coalesce((SELECT b.position FROM commits b
                WHERE b.run_pk = c.run_pk AND b.sha = p.before_commit), -1)
        ORDER BY c.position"""
    kinds = [CommitKind.PATCH, CommitKind.REPLAY]
    values = (run_pk, [str(kind) for kind in kinds], str(PhaseStatus.COMPLETE))
    return [
        AcceptedCommit(sha, parent, message, CommitKind(kind), *phase)
        for sha, parent, message, kind, *phase in session.fetch(query, values)
    ]


@dataclass(frozen=True, slots=True)
class PatchOnBranch:
    """A patch of a phase that is on the branch now, and its commit's message."""

    message: str
    patch_pk: int
    submission_pk: int
    sha256: str
    content: bytes


def list_patches_after(
    session: RowSession, run_pk: int, phase_pk: int, commit: str
) -> list[PatchOnBranch]:
    """Return a phase's patches whose commits come after a commit of the branch, oldest first."""
    query = """SELECT c.message, p.id, p.submission_pk, p.sha256, p.content
        FROM commits c JOIN patches p ON p.id = c.patch_pk
        WHERE c.run_pk = %s AND c.phase_pk = %s
            AND c.position > coalesce((SELECT b.position FROM commits b
                WHERE b.run_pk = c.run_pk AND b.sha = %s), -1)
        ORDER BY c.position"""
    rows = session.fetch(query, (run_pk, phase_pk, commit))
    return [
        PatchOnBranch(message, patch_pk, submission_pk, sha256, bytes(content))
        for message, patch_pk, submission_pk, sha256, content in rows
    ]


def list_commits_since(session: RowSession, run: Run, commit: str) -> list[Commit] | None:
    """Return the commits of the run's branch after one of them, oldest first; None if it is not."""
    condition = """WHERE run_pk = %s AND position >= (SELECT position FROM commits
        WHERE run_pk = %s AND sha = %s UNION ALL SELECT 0 WHERE %s ORDER BY position DESC LIMIT 1)
        ORDER BY position"""
    is_base = commit == run.base_commit
    found = session.rows(_COMMITS, condition, (run.id, run.id, commit, is_base))
    if found and found[0].sha == commit:
        return found[1:]
    return found if is_base else None


def list_changes(session: RowSession, commit_pks: Sequence[int]) -> dict[int, bytes]:
    """Return the stored patches from commits' parents to them; some commits have none."""
    query = """SELECT c.id, coalesce(c.difference, p.content) FROM commits c
        LEFT JOIN patches p ON p.id = c.patch_pk
        WHERE c.id = ANY(%s) AND (c.difference IS NOT NULL OR p.content IS NOT NULL)"""
    return {pk: bytes(change) for pk, change in session.fetch(query, (list(commit_pks),))}


def list_recorded_commits(session: Session, run_pk: int) -> list[RecordedCommit]:
    """Return the commits that the run's branch was at, oldest first, up to the last of work."""
    query = (
        select(
            *(Commit.sha, Commit.tree, Commit.parent, Commit.kind, Commit.is_merged),
            *(Phase.phase_id, Patch.sha256.label("patch_sha256")),
        )
        .join(Phase, Phase.id == Commit.phase_pk, isouter=True)
        .join(Patch, Patch.id == Commit.patch_pk, isouter=True)
        .where(Commit.run_pk == run_pk)
        .order_by(Commit.position)
    )
    commits = [RecordedCommit.of(row) for row in session.execute(query)]
    while commits and commits[-1].kind is CommitKind.RECORD:
        commits.pop()  # a record cannot contain its own id
    return commits


def list_accepted_patches(session: Session, run_pk: int, max_bytes: int) -> dict[str, bytes]:
    """Return the patches on the branch by SHA-256: the first ones up to a total size."""
    so_far = func.sum(func.octet_length(Patch.content)).over(order_by=Commit.position)
    sizes = (
        select(Patch.id, so_far.label("so_far"))
        .join(Commit, Commit.patch_pk == Patch.id)
        .where(Commit.run_pk == run_pk)
        .subquery()
    )
    query = (
        select(Patch.sha256, Patch.content)
        .join(sizes, sizes.c.id == Patch.id)
        .where(sizes.c.so_far <= max_bytes)
    )
    return {sha256: bytes(content) for sha256, content in session.execute(query) if content}


def add_commits(session: RowSession, run_pk: int, commits: Sequence[Commit]) -> None:
    """Append commits to a run's branch."""
    ((last,),) = session.fetch_by(_LAST_POSITION, (run_pk,))
    for position, commit in enumerate(commits, last + 1):
        commit.position = position
        session.put(COMMITS, commit)


def find_reply(session: RowSession, run_pk: int, scope: str) -> Reply | None:
    """Return the stored answer of a scope."""
    found = session.rows_by(_OF_SCOPE, (run_pk, scope))
    return found[0] if found else None


def find_run_of(session: RowSession, scope: str) -> str | None:
    """Return the run whose stored answer has a scope that counts over all runs."""
    query = """SELECT r.run_id FROM replies p JOIN runs r ON r.id = p.run_pk
        WHERE p.scope = %s AND starts_with(p.scope, %s)"""
    found = session.fetch(query, (scope, OF_ALL_RUNS))
    return str(found[0][0]) if found else None


def keep_reply(
    session: RowSession,
    run_pk: int,
    scopes: Sequence[str],
    *,
    fingerprint: str,
    error_kind: str | None,
    body: Mapping[str, Any],
    now: datetime,
) -> None:
    """Store an answer; a later one of the same scope replaces it."""
    values = (run_pk, fingerprint, error_kind, REPLIES.encode("body", dict(body)), now)
    session.gather(_KEEP_REPLY, (*values, list(scopes)))
