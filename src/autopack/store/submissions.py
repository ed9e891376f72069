"""Submissions, their patches, the commits that came of them, and the answers given."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, undefer

from ..domain.outcomes import CommitKind, PatchStatus
from ..models import Commit, Patch, Phase, Reply, Submission
from ..views.record import RecordedCommit


def add_submission(
    session: Session, submission: Submission, patches: Sequence[Patch] = ()
) -> Submission:
    """Store a submission with its patches; both have their ids afterwards."""
    session.add(submission)
    session.flush()
    for patch in patches:
        patch.submission_pk = submission.id
    session.add_all(patches)
    session.flush()
    return submission


def new_patch(
    position: int, content: bytes, status: PatchStatus, description: str | None = None
) -> Patch:
    """Make a patch that belongs to no submission yet."""
    return Patch(
        position=position,
        sha256=hashlib.sha256(content).hexdigest(),
        content=content,
        status=status,
        description=description,
        files_changed=[],
    )


def get_submission(session: Session, submission_pk: int) -> Submission:
    """Return a submission that is known to be there."""
    return session.get_one(Submission, submission_pk)


def find_latest(session: Session, phase_pk: int, role: str) -> Submission | None:
    """Return the last submission of a role to a phase."""
    query = (
        select(Submission)
        .where(Submission.phase_pk == phase_pk, Submission.role == role)
        .order_by(Submission.attempt.desc())
        .limit(1)
    )
    return session.scalars(query).one_or_none()


def list_submissions(session: Session, phase_pks: Iterable[int]) -> list[Submission]:
    """Return the submissions of phases, oldest first."""
    return list(
        session.scalars(
            select(Submission).where(Submission.phase_pk.in_(phase_pks)).order_by(Submission.id)
        )
    )


def list_patches(session: Session, submission_pk: int) -> list[Patch]:
    """Return the patches of a submission in their order, with their bytes."""
    query = (
        select(Patch)
        .where(Patch.submission_pk == submission_pk)
        .order_by(Patch.position)
        .options(undefer(Patch.content))
    )
    return list(session.scalars(query))


def list_patch_files(session: Session, submission_pks: Iterable[int]) -> dict[int, list[str]]:
    """Return which files each submission's patches change."""
    files: dict[int, list[str]] = {}
    query = (
        select(Patch.submission_pk, Patch.files_changed)
        .where(Patch.submission_pk.in_(submission_pks))
        .order_by(Patch.submission_pk, Patch.position)
    )
    for submission_pk, changed in session.execute(query):
        files.setdefault(submission_pk, []).extend(changed)
    return files


def next_attempt(session: Session, phase_pk: int, role: str) -> int:
    """Return the number of the next submission of a role to a phase."""
    query = select(func.coalesce(func.max(Submission.attempt), 0) + 1).where(
        Submission.phase_pk == phase_pk, Submission.role == role
    )
    return session.scalars(query).one()


def list_commits(session: Session, run_pk: int) -> list[Commit]:
    """Return every value the run's branch had, oldest first."""
    return list(
        session.scalars(select(Commit).where(Commit.run_pk == run_pk).order_by(Commit.position))
    )


def find_change(session: Session, commit: Commit) -> bytes | None:
    """Return the patch from a commit's parent to it, None where there was none."""
    query = (
        select(func.coalesce(Commit.difference, Patch.content))
        .join(Patch, Patch.id == Commit.patch_pk, isouter=True)
        .where(Commit.id == commit.id)
    )
    change: bytes | None = session.scalars(query).one()
    return None if change is None else bytes(change)  # a memoryview, from some drivers


def list_recorded_commits(session: Session, run_pk: int) -> list[RecordedCommit]:
    """Return every value the run's branch had, oldest first, up to its last commit of work."""
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
        commits.pop()  # a record cannot name itself
    return commits


def list_accepted_patches(session: Session, run_pk: int, max_bytes: int) -> dict[str, bytes]:
    """Return the patches on the branch by their SHA-256, the first ones that fit into so much."""
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
    return {sha256: bytes(content) for sha256, content in session.execute(query)}


def list_patch_commits(session: Session, phase_pks: Sequence[int]) -> dict[int, list[str]]:
    """Return which commits each submission's patches became."""
    commits: dict[int, list[str]] = {}
    query = (
        select(Patch.submission_pk, Commit.sha)
        .join(Patch, Patch.id == Commit.patch_pk)
        .where(
            Commit.run_pk.in_(select(Phase.run_pk).where(Phase.id.in_(phase_pks))),  # is indexed
            Commit.phase_pk.in_(phase_pks),
        )
        .order_by(Commit.position)
    )
    for submission_pk, sha in session.execute(query):
        commits.setdefault(submission_pk, []).append(sha)
    return commits


def next_position(session: Session, run_pk: int) -> int:
    """Return the place of the next commit on the run's branch."""
    query = select(func.coalesce(func.max(Commit.position), 0) + 1).where(Commit.run_pk == run_pk)
    return session.scalars(query).one()


def discard_pending(session: Session, submission_pk: int) -> None:
    """Say that patches which were held will not be applied any more."""
    session.execute(
        update(Patch)
        .where(Patch.submission_pk == submission_pk, Patch.status == PatchStatus.PENDING)
        .values(status=PatchStatus.DISCARDED)
    )


def find_reply(session: Session, run_pk: int, scope: str) -> Reply | None:
    """Return the answer that was given in a scope."""
    query = select(Reply).where(Reply.run_pk == run_pk, Reply.scope == scope)
    return session.scalars(query).one_or_none()


def keep_reply(
    session: Session,
    run_pk: int,
    scopes: Iterable[str],
    *,
    fingerprint: str,
    error_kind: str | None,
    body: Mapping[str, Any],
    now: datetime,
) -> None:
    """Keep an answer; a later one of the same scope takes its place."""
    rows = [
        {
            "run_pk": run_pk,
            "scope": scope,
            "fingerprint": fingerprint,
            "error_kind": error_kind,
            "body": dict(body),
            "created_at": now,
        }
        for scope in scopes
    ]
    statement = insert(Reply).values(rows)
    session.execute(
        statement.on_conflict_do_update(
            index_elements=["run_pk", "scope"],
            set_={
                name: statement.excluded[name]
                for name in ("fingerprint", "error_kind", "body", "created_at")
            },
        )
    )
