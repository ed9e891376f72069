"""The operator's rulesets over time."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id, Json


class RulesetVersion(Base):
    """A ruleset as it was when a run first started under it."""

    __tablename__ = "ruleset_versions"

    id: Mapped[Id]
    project_id: Mapped[str]
    version: Mapped[int]
    sha256: Mapped[str]
    document: Mapped[Json] = mapped_column(deferred=True)
    created_at: Mapped[datetime]

    __table_args__ = (UniqueConstraint("project_id", "version"),)
