"""What agents do: leases, submissions and their patches, audits, CI runs, commits, replies."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Final

from sqlalchemy import ARRAY, ForeignKey, Index, LargeBinary, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from ..domain.outcomes import CommitKind, Outcome, PatchStatus
from ..domain.terms import CiProfile, Role, Sandbox, Verdict
from .base import Base, Id, Json, not_negative, one_of

# What scopes of replies begin with that count over all runs; an index is over these alone.
OF_ALL_RUNS: Final = "any:"


class Lease(Base):
    """An agent's claim on a phase; one at a time, each with a higher fence."""

    __tablename__ = "leases"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    phase_pk: Mapped[int] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"))
    role: Mapped[Role]
    agent: Mapped[str]
    actor: Mapped[str | None]  # unknown of older leases
    account: Mapped[str | None]
    model: Mapped[str | None]
    fence: Mapped[int]
    token_sha256: Mapped[str] = mapped_column(unique=True)
    # Of the tokens that later answers of the same claim gave, the newest last.
    further_sha256: Mapped[list[str]] = mapped_column(
        ARRAY(Text), default=list, server_default=text("'{}'")
    )
    seconds: Mapped[int]
    expires_at: Mapped[datetime]
    heartbeat_at: Mapped[datetime | None]  # None: no heartbeat yet
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "uq_leases_open_phase_pk",
            "phase_pk",
            unique=True,
            postgresql_where=text("ended_at IS NULL"),
        ),
        Index("ix_leases_open_expires_at", "expires_at", postgresql_where=text("ended_at IS NULL")),
        one_of("role", Role),
        *not_negative("seconds"),
    )


class Submission(Base):
    """One result of a Builder or an Auditor: the attempt as it arrived, and its outcome."""

    __tablename__ = "submissions"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    phase_pk: Mapped[int] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"))
    role: Mapped[Role]
    attempt: Mapped[int]
    agent: Mapped[str | None]
    actor: Mapped[str | None]  # unknown of older submissions
    model: Mapped[str | None]
    status: Mapped[str]
    body: Mapped[Json]
    tokens_used: Mapped[int] = mapped_column(default=0)
    input_tokens: Mapped[int | None]
    output_tokens: Mapped[int | None]
    cached_tokens: Mapped[int | None]
    reasoning_tokens: Mapped[int | None]  # a part of `output_tokens`
    # Whether a gateway counted the tokens. Results of before the mark have none.
    is_measured: Mapped[bool] = mapped_column(default=False, server_default=text("false"))
    # None: not known. `price` is the ruleset's price that it was computed from; None: the agent
    # gave it.
    cost_usd: Mapped[Decimal | None]
    price: Mapped[Json] = mapped_column(nullable=True)
    retry_at: Mapped[datetime | None]
    account: Mapped[str | None]
    outcome: Mapped[Outcome]
    reason: Mapped[str | None]
    ticket: Mapped[Json] = mapped_column(nullable=True)
    base_commit: Mapped[str]
    created_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("phase_pk", "role", "attempt"),
        one_of("role", Role),
        one_of("outcome", Outcome),
        *not_negative("tokens_used"),
    )


class Patch(Base):
    """The bytes of a patch, from which the branch can be rebuilt."""

    __tablename__ = "patches"

    id: Mapped[Id]
    submission_pk: Mapped[int] = mapped_column(ForeignKey("submissions.id", ondelete="CASCADE"))
    position: Mapped[int]
    sha256: Mapped[str] = mapped_column(index=True)
    # Null in a run whose details were removed; a change needs the details, so it never meets that.
    content: Mapped[bytes] = mapped_column(LargeBinary, deferred=True, nullable=True)
    description: Mapped[str | None]
    status: Mapped[PatchStatus]
    files_changed: Mapped[Json] = mapped_column(default=list)

    __table_args__ = (
        UniqueConstraint("submission_pk", "position"),
        one_of("status", PatchStatus),
    )


class Commit(Base):
    """Every commit that the run's branch was ever at, in order."""

    __tablename__ = "commits"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    position: Mapped[int]
    kind: Mapped[CommitKind]
    sha: Mapped[str]
    tree: Mapped[str]
    parent: Mapped[str]
    message: Mapped[str]
    committed_at: Mapped[datetime]
    phase_pk: Mapped[int | None] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"))
    patch_pk: Mapped[int | None] = mapped_column(ForeignKey("patches.id"))
    is_merged: Mapped[bool] = mapped_column(default=False)
    signature: Mapped[str | None]
    # The patch from the parent, if the submitted bytes do not produce it, as after a merge.
    difference: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)

    __table_args__ = (
        UniqueConstraint("run_pk", "position"),
        UniqueConstraint("run_pk", "sha"),
        one_of("kind", CommitKind),
    )


class ReviewRequest(Base):
    """A review that was requested; the API calls it an audit, as its table does."""

    __tablename__ = "audits"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    phase_pk: Mapped[int] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"), index=True)
    review_focus: Mapped[str | None]
    auditor_profile: Mapped[str | None]
    is_advisory: Mapped[bool]
    requested_at: Mapped[datetime]
    answered_at: Mapped[datetime | None]
    submission_pk: Mapped[int | None] = mapped_column(ForeignKey("submissions.id"))


class CiRun(Base):
    """One run of CI on one commit."""

    __tablename__ = "ci_runs"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), index=True)
    phase_pk: Mapped[int] = mapped_column(ForeignKey("phases.id", ondelete="CASCADE"), index=True)
    commit_sha: Mapped[str]
    profile: Mapped[CiProfile]
    attempt: Mapped[int]
    verdict: Mapped[Verdict | None]
    is_flaky: Mapped[bool] = mapped_column(default=False)
    tests: Mapped[Json] = mapped_column(nullable=True)
    failing_checks: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    evidence: Mapped[Json] = mapped_column(default=list, server_default=text("'[]'"))
    sandbox: Mapped[Sandbox | None]
    log_tail: Mapped[str | None]
    url: Mapped[str | None]
    reason: Mapped[str | None]
    requested_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    __table_args__ = (
        UniqueConstraint("phase_pk", "commit_sha", "attempt"),
        one_of("profile", CiProfile),
        one_of("verdict", Verdict),
        one_of("sandbox", Sandbox),
    )


class CiLog(Base):
    """The output of a CI run, in the database so that any process on any machine can show it."""

    __tablename__ = "ci_logs"

    ci_run_pk: Mapped[int] = mapped_column(
        ForeignKey("ci_runs.id", ondelete="CASCADE"), primary_key=True
    )
    compressed: Mapped[bytes] = mapped_column(LargeBinary)


class Measurement(Base):
    """The outcome of CI's command on one tree, so that the same question is asked once.

    `key` is a hash of all that the outcome depends on (services/measuring.py).
    """

    __tablename__ = "measurements"

    key: Mapped[str] = mapped_column(primary_key=True)
    compressed: Mapped[bytes] = mapped_column(LargeBinary)
    measured_at: Mapped[datetime] = mapped_column(index=True)


class Reply(Base):
    """The first answer to a request, which is returned again for the same request."""

    __tablename__ = "replies"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    scope: Mapped[str]
    fingerprint: Mapped[str]
    error_kind: Mapped[str | None]
    body: Mapped[Json]
    created_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("run_pk", "scope"),
        Index(
            "ix_replies_of_all_runs",
            "scope",
            postgresql_where=text(f"starts_with(scope, '{OF_ALL_RUNS}')"),
        ),
    )
