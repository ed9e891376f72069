"""The further projects of a service; the default one is that of its settings."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Index, text
from sqlalchemy.orm import Mapped, mapped_column

from .base import Base, Id


class Project(Base):
    """A project, whose runs, backlog, ruleset and keys are in a database of its own.

    Only the table of the default project's database has rows.
    """

    __tablename__ = "projects"

    id: Mapped[Id]
    name: Mapped[str]
    repository: Mapped[str]
    git_dir: Mapped[str]  # of the main work tree, without links: one repository is in one project
    base_branch: Mapped[str | None]
    git_remote: Mapped[str | None]
    database: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    created_by: Mapped[str]
    changed_at: Mapped[datetime]
    closed_at: Mapped[datetime | None]

    __table_args__ = (
        # Names become folders, which some file systems compare without case.
        Index("uq_projects_name_lower", text("lower(name)"), unique=True),
        Index(
            "uq_projects_open_git_dir",
            "git_dir",
            unique=True,
            postgresql_where=text("closed_at IS NULL"),
        ),
    )
