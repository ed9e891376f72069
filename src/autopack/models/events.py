"""The append-only log of events."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import CheckConstraint, ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from ..domain.event_text import EventOutcome, Told, tell
from ..domain.events import EventRecord
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

    @property
    def told(self) -> Told:
        return tell(
            EventRecord(
                kind=self.kind,
                actor=self.actor,
                at=self.at,
                phase_id=self.phase_id,
                tier_id=self.tier_id,
                from_state=self.from_state,
                to_state=self.to_state,
                reason=self.reason,
                data=self.data,
            )
        )

    @property
    def sentence(self) -> str:
        return self.told[0]

    @property
    def outcome(self) -> EventOutcome:
        return self.told[1]

    __table_args__ = (
        UniqueConstraint("run_pk", "sequence"),
        CheckConstraint("sequence > 0", name="sequence_positive"),
    )
