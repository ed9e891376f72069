"""Pushes of runs' branches to the remote."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id, not_negative


class Push(Base):
    """A request to push a run's branch and tags as of a revision, and its result.

    It is pending while it has a time for the next try.
    """

    __tablename__ = "pushes"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), unique=True)
    wanted_revision: Mapped[int]
    next_try_at: Mapped[datetime | None]
    # Tries since the last success, including the running one.
    attempts: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str | None]
    pushed_commit: Mapped[str | None]
    pushed_to: Mapped[str | None]
    pushed_at: Mapped[datetime | None]

    __table_args__ = (
        Index(
            "ix_pushes_pending_next_try_at",
            "next_try_at",
            postgresql_where=text("next_try_at IS NOT NULL"),
        ),
        *not_negative("attempts"),
    )
