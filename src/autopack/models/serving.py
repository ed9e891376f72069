"""The clone of the repository that this database belongs to."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import ARRAY, CheckConstraint, Text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base


class ServedClone(Base):
    """The one clone whose branches and files follow this database."""

    __tablename__ = "served_clone"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    clone: Mapped[str]
    place: Mapped[str]
    # Root commits of the base branch; empty where a shallow clone does not have them.
    root_commits: Mapped[list[str]] = mapped_column(ARRAY(Text))
    since: Mapped[datetime]

    __table_args__ = (CheckConstraint("id = 1", name="is_alone"),)
