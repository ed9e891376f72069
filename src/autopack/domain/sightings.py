"""An issue inside one run: reported in a phase, reported again, resolved, counted.

The only definition of "open", "resolved" and "major" (rules §7): counts, index, reports, files and
backtest use it.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TypeVar

from .terms import Severity

CI_SOURCE = "ci"


class Cause(StrEnum):
    """What resolved an issue inside a run."""

    AUDITOR = "auditor"
    GREEN_VERDICT = "green_verdict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One key in one phase. `effective_severity` is major for a minor issue that has aged."""

    phase_id: str
    issue_key: str
    source: str
    severity: Severity
    effective_severity: Severity
    is_expected: bool = False
    is_open: bool = True
    occurrence_count: int = 1

    @property
    def is_counted(self) -> bool:
        """An expected issue is stored, but neither counted nor aged."""
        return self.is_open and not self.is_expected


Seen = TypeVar("Seen", bound=Sighting)


@dataclass(frozen=True, slots=True)
class Counts:
    """Open issues by distinct keys."""

    minors: int = 0
    majors: int = 0


@dataclass(frozen=True, slots=True)
class OpenIssueCounts:
    """Open issues of the run, of tiers and of phases; a name that is missing has none."""

    run: Counts
    tiers: Mapping[str, Counts]
    phases: Mapping[str, Counts]


def worse(one: Severity, other: Severity) -> Severity:
    """Return the more severe of two severities."""
    return Severity.MAJOR if Severity.MAJOR in (one, other) else Severity.MINOR


def sight(known: Sighting | None, seen: Sighting) -> Sighting:
    """Return a key's entry in a phase after one more report; a resolved entry opens again.

    An issue that another source has reported too is not CI's alone any more, and no green verdict
    resolves it.
    """
    if known is None:
        return seen
    is_whose = not known.is_open or known.source == CI_SOURCE
    return replace(
        known,
        source=seen.source if is_whose else known.source,
        severity=worse(known.severity, seen.severity),
        effective_severity=worse(known.effective_severity, seen.effective_severity),
        is_expected=known.is_expected and seen.is_expected,
        is_open=True,
        occurrence_count=known.occurrence_count + seen.occurrence_count,
    )


def resolved_by_auditor(sightings: Iterable[Seen], keys: Collection[str]) -> list[Seen]:
    """Return the entries that a review's `resolved_issues` resolve, in every phase of the run."""
    return [each for each in sightings if each.is_open and each.issue_key in keys]


def resolved_by_green(sightings: Iterable[Seen], phase_id: str) -> list[Seen]:
    """Return the entries that a green verdict resolves: those of CI in the same phase."""
    return [
        each
        for each in sightings
        if each.is_open and each.phase_id == phase_id and each.source == CI_SOURCE
    ]


def telling(sightings: Sequence[Seen]) -> Sequence[Seen]:
    """Return the entries of a key that decide its severity: the open ones, where there are any."""
    return (
        [each for each in sightings if each.is_counted]
        or [each for each in sightings if each.is_open]
        or sightings
    )


def gravest(severities: Iterable[Severity]) -> Severity:
    """Return the highest of several severities."""
    return Severity.MAJOR if Severity.MAJOR in severities else Severity.MINOR


def by_key(sightings: Iterable[Seen]) -> dict[str, list[Seen]]:
    """Group entries by key, in the order in which the keys were first reported."""
    found: dict[str, list[Seen]] = {}
    for each in sightings:
        found.setdefault(each.issue_key, []).append(each)
    return found


def count(sightings: Iterable[Sighting]) -> Counts:
    """Count the open keys, each with the severity of its most severe open entry."""
    counted = by_key(each for each in sightings if each.is_counted).values()
    found = [gravest([each.effective_severity for each in entries]) for entries in counted]
    return Counts(found.count(Severity.MINOR), found.count(Severity.MAJOR))


def count_open(sightings: Sequence[Sighting], tier_of: Mapping[str, str]) -> OpenIssueCounts:
    """Count the open keys of a run, its tiers and its phases; `tier_of` contains every phase."""
    by_tier: dict[str, list[Sighting]] = {}
    by_phase: dict[str, list[Sighting]] = {}
    for each in sightings:
        by_tier.setdefault(tier_of[each.phase_id], []).append(each)
        by_phase.setdefault(each.phase_id, []).append(each)
    return OpenIssueCounts(
        count(sightings),
        {tier_id: count(entries) for tier_id, entries in by_tier.items()},
        {phase_id: count(entries) for phase_id, entries in by_phase.items()},
    )
