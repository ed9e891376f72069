"""Answers about projects."""

from __future__ import annotations

from typing import ClassVar, Literal

from . import Shape, WireTime


class ProjectAnswer(Shape):
    """`problem` says why an open project cannot be served by the service that answers.

    The default project is that of the service's settings: it has no times, and is never closed.
    """

    name: str
    is_default: bool
    state: Literal["open", "closed"]
    problem: str | None
    repository: str
    base_branch: str | None
    git_remote: str | None
    created_at: WireTime | None
    created_by: str | None
    closed_at: WireTime | None


class ProjectsAnswer(Shape):
    csv_rows: ClassVar[str] = "projects"

    projects: list[ProjectAnswer]
