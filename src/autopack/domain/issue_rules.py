"""How reports of issues are recorded and resolved. (rules §7)"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from .consequences import check_minor_issues
from .decision import Decision
from .errors import InvalidError
from .events import IssueRecorded, IssueResolved
from .sightings import Cause, Sighting, resolved_by_auditor, resolved_by_green
from .terms import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class IssueSeen:
    """A report of an issue with its severity: by itself, and in this run.

    A minor issue that had aged when the run started counts as major in that run.
    """

    issue_key: str
    category: str
    reported_severity: Severity | None
    severity: Severity
    effective_severity: Severity
    source: str
    is_expected: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuesSeen:
    """Reports of issues of a phase that arrive without a result."""

    phase_id: str
    issues: tuple[IssueSeen, ...]


def accept_issues(decision: Decision, seen: IssuesSeen) -> None:
    """Record reports that arrive without a result. Raises RunOverError, NotFoundError."""
    decision.require_live()
    see_issues(decision, seen.phase_id, seen.issues)


def see_issues(decision: Decision, phase_id: str, issues: Iterable[IssueSeen]) -> None:
    """Record reports; under some safety profiles too many minor issues end the run. (rules §3)"""
    is_any = False
    for seen in issues:
        is_any = True
        decision.record(
            IssueRecorded(
                phase_id=phase_id,
                issue_key=seen.issue_key,
                category=seen.category,
                reported_severity=seen.reported_severity,
                severity=seen.severity,
                effective_severity=seen.effective_severity,
                source=seen.source,
                is_expected=seen.is_expected,
            )
        )
    if is_any:
        check_minor_issues(decision)


def resolve_for_auditor(decision: Decision, phase_id: str, keys: Collection[str]) -> None:
    """Resolve the keys that a review names. Raises InvalidError for a key that is not the run's."""
    known = tuple(decision.state.issues.values())
    unknown = sorted(set(keys) - {issue.issue_key for issue in known})
    if unknown:
        raise InvalidError(
            f"resolved_issues: run '{decision.state.run_id}' has no issue {unknown[0]!r}"
        )
    reason = f"the Auditor of phase '{phase_id}' says so"
    _resolve(decision, resolved_by_auditor(known, keys), Cause.AUDITOR, reason)


def resolve_for_ci(decision: Decision, phase_id: str) -> None:
    """Resolve only the issues that CI itself reported in a phase for which it is now green."""
    found = resolved_by_green(decision.state.issues.values(), phase_id)
    _resolve(decision, found, Cause.GREEN_VERDICT, "CI reported it, and is green now")


def _resolve(decision: Decision, found: Iterable[Sighting], cause: Cause, reason: str) -> None:
    for each in found:
        decision.record(
            IssueResolved(
                phase_id=each.phase_id, issue_key=each.issue_key, cause=cause, reason=reason
            )
        )
