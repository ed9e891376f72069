"""Patches of submissions, with and without their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..domain.errors import NotFoundError
from ..domain.outcomes import PatchOutcome, PatchStatus
from ..domain.retention import DetailsRemovedError
from ..models import Commit, Patch, Run, Submission
from .rows import Rows
from .session import RowSession

PATCHES: Final = Rows(Patch, "content")


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
    # A pending patch's row stays as it was when the patch came; what became of it is elsewhere.
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
