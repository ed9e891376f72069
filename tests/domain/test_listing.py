"""Names in a sentence."""

from __future__ import annotations

import pytest

from autopack.domain.listing import listed

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("names", "count", "told"),
    [
        ("", None, ""),
        ("a", None, "a"),
        ("ab", None, "a, b"),
        ("abcd", None, "a, b and 2 more"),
        ("ab", 5, "a, b and 3 more"),
        ("a", 1, "a"),
    ],
)
def test_the_first_names_are_listed_and_the_others_counted(
    names: str, count: int | None, told: str
) -> None:
    assert listed([*names], 2, count=count) == told
