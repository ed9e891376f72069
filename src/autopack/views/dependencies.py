"""Answers about the dependencies that phases add and change."""

from __future__ import annotations

from . import Shape


class DependencyAnswer(Shape):
    """A dependency that is new (`before` is null) or changed, in one manifest.

    `problem` stands in place of a name: the manifest cannot be read, or has more changes than are
    listed.
    """

    manifest: str
    name: str | None = None
    before: str | None = None
    after: str | None = None
    problem: str | None = None
