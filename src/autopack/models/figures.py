"""Figures of runs that are over, added up by day.

A run of 100,000 others costs a reader nothing: once its figures are added, `runs.is_counted` is
true, and readers take them from here. See docs/decisions/daily-figures.md.
"""

from __future__ import annotations

from datetime import date

from sqlalchemy import Date, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Cost


class Figure(Base):
    """What happened on one day (UTC), of one kind; an empty text is a value that is not known.

    `digest` is that of day, project, and all texts below it: names can be longer than the key of
    an index may be.
    """

    __tablename__ = "figures"

    digest: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(Date, index=True)
    project_id: Mapped[str]
    subject: Mapped[str]
    category: Mapped[str]
    agent: Mapped[str]
    model: Mapped[str]
    outcome: Mapped[str]
    name: Mapped[str]
    step: Mapped[int]

    number: Mapped[int]
    phases: Mapped[int]
    tickets: Mapped[int]
    repairs: Mapped[int]
    tokens: Mapped[int]
    tokens_measured: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    cost_usd: Mapped[Cost]
    unpriced: Mapped[int]
    last_run_id: Mapped[str]
