"""Issue reports and how they count. (rules §7)"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Final, Protocol

from .states import PhaseStatus
from .terms import Complexity, Severity
from .values import Closed, IssueKey, Several, Text, Word

MAX_EVIDENCE_REFS = 100
WEAKENED_TEST: Final = "weakened_test__"


class IssueState(StrEnum):
    NO_ISSUES = "no_issues"
    HAS_MINOR_ISSUES = "has_minor_issues"
    HAS_MAJOR_ISSUES = "has_major_issues"


class IssueStatus(StrEnum):
    OPEN = "open"
    RESOLVED = "resolved"


class BacklogStatus(StrEnum):
    OPEN = "open"
    NEEDS_CLEANUP = "needs_cleanup"
    RESOLVED = "resolved"


class BacklogOrder(StrEnum):
    """How a backlog is sorted."""

    FIRST_SEEN = "first_seen"  # the oldest first
    PRESSING = "pressing"  # what needs cleanup, then major ones, then by age
    LAST_SEEN = "last_seen"  # the latest first
    OFTEN = "often"  # the most often seen first


class IssueReport(Closed):
    """One report of a problem by an agent, CI or a client."""

    issue_key: IssueKey
    severity: Severity | None = None
    source: Word
    category: Word
    task_category: Word | None = None
    complexity: Complexity | None = None
    expected_fail: bool = False
    evidence_refs: Several[Text] = ()
    description: Text | None = None


def base_severity(
    reported: Severity | None, category: str, major_categories: Collection[str]
) -> Severity:
    """Return the reported severity, else the category's default."""
    if reported is not None:
        return reported
    return Severity.MAJOR if category in major_categories else Severity.MINOR


class Expecting(Protocol):
    """A phase of a plan, with the issues that the plan lets pass there."""

    @property
    def state(self) -> PhaseStatus: ...
    @property
    def expected_issues(self) -> Sequence[str]: ...


def expected_in(phase: Expecting, phases: Iterable[Expecting]) -> tuple[str, ...]:
    """Return the keys that the plan lets pass in a phase: its own, and those of complete phases.

    A test that an earlier phase changed as planned is not this one's fault. (rules §6.1)
    """
    expecting = (each for each in phases if each is phase or each.state is PhaseStatus.COMPLETE)
    return tuple(key for each in expecting for key in each.expected_issues)


def is_expected_key(issue_key: str, expected: Collection[str]) -> bool:
    """Return whether a phase's `expected_issues` contain a key. (rules §7)

    A weakened test is named, or all of them are by `weakened_test__*`.
    """
    is_weakened = issue_key.startswith(WEAKENED_TEST)
    return issue_key in expected or (is_weakened and f"{WEAKENED_TEST}*" in expected)


def weakened_test_key(name: str) -> str:
    """Return the key of the issue of a weakened test. (rules §6.1)"""
    return f"{WEAKENED_TEST}{name}"[:200]


def counts_as(severity: Severity, status: BacklogStatus) -> Severity:
    """Return what a key of the backlog counts as in a new run. (rules §7)"""
    return Severity.MAJOR if status is BacklogStatus.NEEDS_CLEANUP else severity


def needs_cleanup(
    severity: Severity,
    *,
    age_in_runs: int,
    age_in_tiers: int,
    after_runs: int,
    after_tiers: int,
) -> bool:
    """Return whether a minor issue is so old that it must be cleaned up. (rules §7)"""
    return severity is Severity.MINOR and (age_in_runs >= after_runs or age_in_tiers >= after_tiers)


def severity_in_run(
    severity: Severity, *, aged_at: datetime | None, began_at: datetime
) -> Severity:
    """Return how grave an issue is in a run: one that had aged before is major. (rules §7)

    In the run that makes it age it stays minor: the plan of that run could not know it.
    """
    return Severity.MAJOR if aged_at is not None and aged_at <= began_at else severity


def issue_state(minors: int, majors: int) -> IssueState:
    """Return the issue state of a phase with these counts."""
    if majors:
        return IssueState.HAS_MAJOR_ISSUES
    return IssueState.HAS_MINOR_ISSUES if minors else IssueState.NO_ISSUES
