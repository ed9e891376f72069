"""The table of docs/evidence.md: how many cases of the corpus each kind of evidence sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from .corpus import Case
from .judging import refused_by, seen_by

COLUMNS: Final = ("gate prove", "command", "base_tests", "fails_before", "seeded_faults")


def table(results: Mapping[Case, Mapping[str, tuple[str, str]]]) -> Iterator[str]:
    """Yield the lines: each bad case with what saw it, and the number of honest ones refused."""
    yield f"| case | {' | '.join(COLUMNS)} |"
    yield f"|---|{'---|' * len(COLUMNS)}"
    for case, found in results.items():
        if not case.is_honest:
            seen = {name.partition(":")[0] for name in seen_by(found)}
            marks = ("seen" if name in seen else "" for name in COLUMNS)
            yield f"| {case.id.replace('|', chr(92) + '|')} | {' | '.join(marks)} |"
    bad = [case for case in results if not case.is_honest]
    seen_count = sum(bool(seen_by(results[case])) for case in bad)
    honest = [case for case in results if case.is_honest]
    refused = sum(bool(refused_by(results[case])) for case in honest)
    yield ""
    yield f"{seen_count} of {len(bad)} bad cases seen, {refused} of {len(honest)} honest refused."
