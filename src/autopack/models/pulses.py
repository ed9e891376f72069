"""Signs of life of what nobody calls."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy.orm import Mapped, mapped_column

from .base import Base


class Pulse(Base):
    """When periodic work last came to its end, whichever process did it."""

    __tablename__ = "pulses"

    name: Mapped[str] = mapped_column(primary_key=True)
    beaten_at: Mapped[datetime]
