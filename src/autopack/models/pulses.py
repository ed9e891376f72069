"""Signs of life of periodic work."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from .base import Base


class Pulse(Base):
    """The time when periodic work was last completed, in any process."""

    __tablename__ = "pulses"

    name: Mapped[str] = mapped_column(primary_key=True)
    beaten_at: Mapped[datetime]
