"""Globs: what they mean, and that each sign of a path is read once."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopack.domain.paths import Globs, matches

pytestmark = pytest.mark.unit

SIGNS = st.sampled_from(["a", "b", "*", "?", "**", "/", "/"])
PATTERNS = st.lists(SIGNS, min_size=1, max_size=9).map("".join)
PATHS = st.lists(st.sampled_from(["a", "b", "ab", "ba", "aab"]), min_size=1, max_size=5)


def is_meant(names: list[str], pattern: list[str]) -> bool:
    """Match by the rule's words, whatever it costs."""
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(is_meant(names[skipped:], pattern[1:]) for skipped in range(len(names) + 1))
    piece = re.escape(pattern[0]).replace(r"\*", ".*").replace(r"\?", ".")
    return bool(names and re.fullmatch(piece, names[0])) and is_meant(names[1:], pattern[1:])


@given(PATHS, st.lists(PATTERNS, min_size=1, max_size=4))
def test_a_path_is_matched_by_one_of_many_patterns_as_by_each(
    names: list[str], patterns: list[str]
) -> None:
    expected = [is_meant(names, pattern.split("/")) for pattern in patterns]
    assert [matches("/".join(names), pattern) for pattern in patterns] == expected
    assert Globs(patterns).match(tuple(names)) is any(expected)


class CountedName(str):
    __slots__ = ("reads",)

    def __iter__(self) -> Iterator[str]:
        for sign in str(self)[:]:
            self.reads = getattr(self, "reads", 0) + 1
            yield sign


@pytest.mark.parametrize(
    "pattern", ["*a*a*a*b", "**/*a?*a?*b/**/*a*b", "*" * 500 + "b", "?*" * 400]
)
def test_each_sign_of_a_path_is_read_once_whatever_the_pattern(pattern: str) -> None:
    names = tuple(CountedName("a" * 250) for _ in range(4))
    Globs([pattern] * 10).match(names)
    assert sum(getattr(name, "reads", 0) for name in names) <= 1_000
