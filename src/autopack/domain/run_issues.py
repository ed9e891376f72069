"""The issues of one run, over all its phases: index, figures, and what is open. (rules §7)"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .issues import IssueStatus
from .sightings import Sighting, by_key, count, gravest, telling
from .terms import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class RunIssue(Sighting):
    """One key in one phase, with its place in the run."""

    category: str
    occurrence_count: int
    tier_id: str
    tier_index: int
    phase_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One key over all phases of a run."""

    category: str
    severity: Severity
    effective_severity: Severity
    status: IssueStatus
    first_phase_index: int
    last_phase_index: int
    occurrence_count: int
    tiers: tuple[str, ...]
    phases: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenIssue:
    """A key that is open in a run, merged over all its phases."""

    issue_key: str
    category: str
    severity: Severity
    effective_severity: Severity
    occurrence_count: int
    phases: tuple[str, ...]
    description: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueCounts:
    """Counts of distinct keys; `open_minor` and `open_major` leave out expected failures."""

    reported: int
    occurrences: int
    open_minor: int
    open_major: int
    resolved: int
    expected: int


def index_of(issues: Iterable[RunIssue]) -> dict[str, IndexEntry]:
    """Return a run's keys in the order in which they were first seen, each over all its phases.

    `issues` are in the order in which they were first seen. A key has the severity of its most
    severe open entry; a resolved key keeps the severity that it had.
    """
    return {key: _entry(entries) for key, entries in by_key(issues).items()}


def _entry(entries: Sequence[RunIssue]) -> IndexEntry:
    in_order = sorted(entries, key=lambda each: (each.tier_index, each.phase_index))
    told = telling(entries)
    return IndexEntry(
        category=entries[0].category,
        severity=gravest([each.severity for each in told]),
        effective_severity=gravest([each.effective_severity for each in told]),
        status=_status(entries),
        first_phase_index=min(each.phase_index for each in entries),
        last_phase_index=max(each.phase_index for each in entries),
        occurrence_count=sum(each.occurrence_count for each in entries),
        tiers=tuple(dict.fromkeys(each.tier_id for each in in_order)),
        phases=tuple(dict.fromkeys(each.phase_id for each in in_order)),
    )


def _status(entries: Iterable[Sighting]) -> IssueStatus:
    return IssueStatus.OPEN if any(each.is_open for each in entries) else IssueStatus.RESOLVED


def open_issues(issues: Iterable[RunIssue], *, limit: int) -> list[OpenIssue]:
    """Return the open keys that count, the most severe first, without their descriptions."""
    index = by_key(issues)
    counted = {
        key: _entry(entries)
        for key, entries in index.items()
        if any(each.is_counted for each in entries)
    }
    gravest_first = sorted(
        counted, key=lambda key: counted[key].effective_severity != Severity.MAJOR
    )
    return [
        OpenIssue(
            issue_key=key,
            category=entry.category,
            severity=entry.severity,
            effective_severity=entry.effective_severity,
            occurrence_count=entry.occurrence_count,
            phases=entry.phases,
            description=None,
        )
        for key, entry in ((key, counted[key]) for key in gravest_first[:limit])
    ]


def issue_figures(
    issues: Iterable[RunIssue], *, limit: int
) -> tuple[IssueCounts, dict[str, IssueCounts]]:
    """Count a run's distinct keys: in total, and for the `limit` categories with the most keys."""
    keys = by_key(issues)
    category = {key: entries[0].category for key, entries in keys.items()}
    sizes = Counter(category.values())
    most = sorted(sizes, key=lambda name: (-sizes[name], name))[:limit]
    return _figures(list(keys.values())), {
        name: _figures([entries for key, entries in keys.items() if category[key] == name])
        for name in most
    }


def _figures(keys: Sequence[Sequence[RunIssue]]) -> IssueCounts:
    counts = count(each for entries in keys for each in entries)
    return IssueCounts(
        reported=len(keys),
        occurrences=sum(each.occurrence_count for entries in keys for each in entries),
        open_minor=counts.minors,
        open_major=counts.majors,
        resolved=sum(_status(entries) is IssueStatus.RESOLVED for entries in keys),
        expected=sum(all(each.is_expected for each in entries) for entries in keys),
    )
