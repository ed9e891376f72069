"""Commits made again on another commit, each by a three-way merge. (rules §8.1)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..domain.changes import FileChange
from .apply import difference
from .objects import Loose
from .quarantine import Quarantine
from .threeway import tree_of, write_commit


@dataclass(frozen=True, slots=True)
class RebasedCommit:
    """A commit made again: its tree, and what it changes there.

    `is_merged` is false where it stands on the very tree that it stood on before.
    """

    tree: str
    changes: tuple[FileChange, ...]
    is_merged: bool


@dataclass(frozen=True, slots=True)
class RebaseConflict:
    """The commit at `position` does not merge; `paths` are in conflict, as printable text."""

    position: int
    paths: tuple[str, ...]


def rebase(
    quarantine: Quarantine, onto: str, commits: Sequence[tuple[str, str]]
) -> tuple[list[RebasedCommit], Loose] | RebaseConflict:
    """Make commits again on the commit `onto`, in order; each is given with its parent.

    Everything that is new stays in quarantine; the files of the objects are returned.
    """
    made: list[RebasedCommit] = []
    loose: Loose = {}
    ours = tree_of(quarantine, onto)
    for position, (parent, commit) in enumerate(commits):
        before, theirs = tree_of(quarantine, parent), tree_of(quarantine, commit)
        is_merged = before != ours
        tree = theirs
        if is_merged:
            merged = _merge(quarantine, before, ours, theirs)
            if isinstance(merged, tuple):
                return RebaseConflict(position, merged)
            tree = merged
        changes = difference(quarantine, ours, tree)
        result = quarantine.draft(ours)
        result.edit(changes)
        root, trees = result.write()
        loose |= trees
        loose |= quarantine.take({each.new_oid for each in changes if each.new_oid is not None})
        made.append(RebasedCommit(root, changes, is_merged))
        ours = root
    return made, loose


def _merge(quarantine: Quarantine, base: str, ours: str, theirs: str) -> str | tuple[str, ...]:
    """Return the tree of a merge, or the paths in conflict."""
    root = write_commit(quarantine, base)
    head, other = write_commit(quarantine, ours, root), write_commit(quarantine, theirs, root)
    options = ("--write-tree", "--name-only", "--no-messages", "-z")
    result = quarantine.git("merge-tree", *options, head, other, allowed=(0, 1))
    tree, *paths = result.stdout.rstrip(b"\0").split(b"\0")
    if result.status == 0:
        return tree.decode()
    return tuple(dict.fromkeys(path.decode(errors="backslashreplace") for path in paths))
