"""When a cleanup phase has paid its debt: a check failed before and passes now. (rules §7.1)

Standard library alone, as the other rules about verdicts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .evidence import Evidence
from .terms import EvidenceKind, EvidenceResult

MAX_MENDED: Final = 20


class LifeKind(StrEnum):
    """What happened to an issue of the backlog, besides its sightings."""

    AGED = "aged"  # it needs cleanup from then on
    CLOSED = "closed"  # a cleanup phase closed it, by `checks`
    NOT_CLOSED = "not_closed"  # a cleanup phase was green, and no check proves the cleanup
    RESOLVED = "resolved"  # by an operator
    REOPENED = "reopened"  # by an operator, or by another sighting


@dataclass(frozen=True, slots=True)
class Closing:
    """What proves a cleanup: the checks, and how they are known to have failed before."""

    checks: tuple[str, ...]
    reason: str


def mended_checks(red_before: Iterable[str], passed: Collection[str]) -> tuple[str, ...]:
    """Return the checks that were red where an issue was seen, and that pass now, by name."""
    return tuple(check for check in dict.fromkeys(red_before) if check in passed)[:MAX_MENDED]


def closing_of(evidence: Sequence[Evidence], mended: Sequence[str]) -> Closing | None:
    """Return what proves the cleanup in a green verdict; None: nothing does.

    A check that CI accepts although it is red on the base proves nothing.
    """
    for each in evidence:
        if (
            each.kind is EvidenceKind.FAILS_BEFORE
            and each.result is EvidenceResult.PASSED
            and each.checks
        ):
            return Closing(each.checks, "it fails on the code before the phase, and passes now")
    known = {
        check for each in evidence if each.kind is EvidenceKind.BASELINE for check in each.checks
    }
    checks = tuple(check for check in mended if check not in known)
    if not checks:
        return None
    return Closing(checks, "it was red where the issue was seen, and passes now")
