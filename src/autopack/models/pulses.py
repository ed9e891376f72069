"""Signs of life of periodic work."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, not_negative


class Pulse(Base):
    """The time when periodic work was last completed, in any process."""

    __tablename__ = "pulses"

    name: Mapped[str] = mapped_column(primary_key=True)
    beaten_at: Mapped[datetime]


class RetentionProgress(Base):
    """How far the removal of details is: one row, from its first pass on.

    `removed` counts all runs; `due` and `failed` are those of the last pass.
    """

    __tablename__ = "retention"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    beaten_at: Mapped[datetime]
    removed: Mapped[int]
    due: Mapped[int]
    failed: Mapped[int]

    __table_args__ = (
        CheckConstraint("id = 1", name="is_alone"),
        *not_negative("removed", "due", "failed"),
    )
