"""What a branch has gained since each of some commits, counted from one walk."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

# A branch that has gained more than this since the oldest commit is not counted.
MAX_GAINED: Final = 20_000


class GainedCommits:
    """The commits of a branch that are not in the history of the commit `since`."""

    def __init__(self, since: str, parents: Mapping[str, Collection[str]]) -> None:
        self._since = since
        self._parents = parents
        self._counts: dict[str, int | None] = {since: len(parents)}

    def has(self, commit: str) -> bool:
        """Return whether this is one of them."""
        return commit in self._parents

    def count_since(self, commit: str) -> int | None:
        """Return how many commits of the branch are not in the history of another commit.

        None for a commit that does not come after `since`: one walk does not tell.
        """
        if commit not in self._counts:
            self._counts[commit] = self._count(commit)
        return self._counts[commit]

    def _count(self, commit: str) -> int | None:
        known: set[str] = set()
        waiting = [commit]
        is_later = False
        while waiting:
            each = waiting.pop()
            is_later = is_later or each == self._since
            if each in self._parents and each not in known:
                known.add(each)
                waiting.extend(self._parents[each])
        return len(self._parents) - len(known) if is_later else None
