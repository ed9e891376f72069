"""Names in a sentence.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Sequence


def listed(names: Sequence[str], most: int, *, count: int | None = None) -> str:
    """Return the first names, and how many there are beside them: `a, b and 3 more`.

    `count` is how many there are, if not all of them are in `names`.
    """
    first = names[:most]
    left = (len(names) if count is None else count) - len(first)
    return ", ".join(first) + (f" and {left} more" if left > 0 else "")
