"""Issue reports and how they count. (02 §3)"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from .ruleset import Ruleset
from .values import Closed, Complexity, IssueKey, Severity, Text, Word

MAX_EVIDENCE_REFS = 100


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


class IssueReport(Closed):
    """One sighting of a problem, by whoever saw it."""

    issue_key: IssueKey
    severity: Severity | None = None
    source: Word
    category: Word
    task_category: Word | None = None
    complexity: Complexity | None = None
    expected_fail: bool = False
    evidence_refs: Annotated[tuple[Text, ...], Field(max_length=MAX_EVIDENCE_REFS)] = ()
    description: Text | None = None


def base_severity(report: IssueReport, ruleset: Ruleset) -> Severity:
    """Return the reported severity, else the category's default."""
    return report.severity or ruleset.rule_for(report.category).default_severity


def issue_state(minors: int, majors: int) -> IssueState:
    """Name the state of a phase's counts."""
    if majors:
        return IssueState.HAS_MAJOR_ISSUES
    return IssueState.HAS_MINOR_ISSUES if minors else IssueState.NO_ISSUES
