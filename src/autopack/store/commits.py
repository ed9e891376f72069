"""The commits of runs' branches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from ..domain.outcomes import CommitKind
from ..domain.states import PhaseStatus
from ..models import Commit, Patch, Phase, Run
from ..views.record import RecordedCommit
from .rows import Prepared, Rows
from .session import RowSession

COMMITS: Final = Rows(Commit, "difference")
_COMMITS: Final = Rows(Commit)  # without their bytes
_LAST_POSITION: Final = Prepared(
    "last_commit", "SELECT coalesce(max(position), 0)::bigint FROM commits WHERE run_pk = %s"
)


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


def add_commits(session: RowSession, run_pk: int, commits: Sequence[Commit]) -> None:
    """Append commits to a run's branch."""
    ((last,),) = session.fetch_by(_LAST_POSITION, (run_pk,))
    for position, commit in enumerate(commits, last + 1):
        commit.position = position
        session.put(COMMITS, commit)
