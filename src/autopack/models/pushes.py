"""What the remote is to be told."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id, not_negative


class Push(Base):
    """The wish that a run's branch and tags be on the remote as of a revision, and what came of it.

    It is pending as long as it has a time for the next try.
    """

    __tablename__ = "pushes"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), unique=True)
    wanted_revision: Mapped[int]
    next_try_at: Mapped[datetime | None]
    # Since the last success, the try under way included.
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
