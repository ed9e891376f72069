"""The append-only log of events."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id, Json


class EventRow(Base):
    __tablename__ = "events"

    id: Mapped[Id]
    run_pk: Mapped[int] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    sequence: Mapped[int]
    at: Mapped[datetime]
    actor: Mapped[str]
    kind: Mapped[str]
    phase_id: Mapped[str | None]
    tier_id: Mapped[str | None]
    from_state: Mapped[str | None]
    to_state: Mapped[str | None]
    reason: Mapped[str | None]
    data: Mapped[Json]
    previous_hash: Mapped[str]
    hash: Mapped[str]

    __table_args__ = (
        UniqueConstraint("run_pk", "sequence"),
        CheckConstraint("sequence > 0", name="sequence_positive"),
    )
