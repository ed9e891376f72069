"""What "open", "resolved" and "major" mean inside a run. (docs/rules.md, "Issues and aging")"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autopack.domain.issues import IssueStatus
from autopack.domain.run_issues import RunIssue, index_of, issue_figures, open_issues
from autopack.domain.sightings import (
    Counts,
    count,
    count_open,
    resolved_by_auditor,
    resolved_by_green,
    sight,
)
from autopack.domain.terms import Severity

pytestmark = pytest.mark.unit

MINOR, MAJOR = Severity.MINOR, Severity.MAJOR


def seen(phase_id: str = "P1", key: str = "slow", severity: Severity = MINOR, **how: Any) -> Any:
    numbers = {"category": "docs", "occurrence_count": 1}
    place = {"tier_id": f"T{phase_id[1]}", "tier_index": 0, "phase_index": int(phase_id[1:])}
    return RunIssue(
        phase_id=phase_id,
        issue_key=key,
        severity=how.pop("base", severity),
        effective_severity=severity,
        **{"source": "test", **numbers, **place, **how},
    )


@pytest.mark.parametrize(
    ("sightings", "counts"),
    [
        ([], (0, 0)),
        ([seen("P1"), seen("P2")], (1, 0)),
        ([seen("P1"), seen("P2", severity=MAJOR)], (0, 1)),
        ([seen("P1"), seen("P2", severity=MAJOR, is_open=False)], (1, 0)),
        ([seen("P1"), seen("P2", severity=MAJOR, is_expected=True)], (1, 0)),
        ([seen("P1", is_open=False), seen("P2", is_open=False)], (0, 0)),
        ([seen("P1", is_expected=True)], (0, 0)),
        ([seen("P1"), seen("P1", "odd", MAJOR)], (1, 1)),
    ],
)
def test_a_key_counts_once_by_its_gravest_open_sighting(
    sightings: list[RunIssue], counts: tuple[int, int]
) -> None:
    assert count(sightings) == Counts(*counts)


def test_each_level_counts_what_is_open_within_it() -> None:
    found = [seen("P11"), seen("P12", severity=MAJOR), seen("P21", severity=MAJOR, is_open=False)]
    counts = count_open(found, {"P11": "T1", "P12": "T1", "P21": "T2"})
    assert counts.run == Counts(0, 1)
    assert counts.tiers == {"T1": Counts(0, 1), "T2": Counts()}
    assert counts.phases == {"P11": Counts(1), "P12": Counts(0, 1), "P21": Counts()}


@pytest.mark.parametrize(
    ("sightings", "severity", "status"),
    [
        ([seen("P1"), seen("P2", severity=MAJOR)], "major", "open"),
        ([seen("P1"), seen("P2", severity=MAJOR, is_open=False)], "minor", "open"),
        ([seen("P1"), seen("P2", severity=MAJOR, is_expected=True)], "minor", "open"),
        (
            [seen("P1", is_open=False), seen("P2", is_open=False, severity=MAJOR)],
            "major",
            "resolved",
        ),
        ([seen("P1", severity=MAJOR, is_expected=True)], "major", "open"),
    ],
)
def test_index_and_figures_say_what_the_counts_say(
    sightings: list[RunIssue], severity: str, status: str
) -> None:
    entry = index_of(sightings)["slow"]
    assert (entry.effective_severity, entry.severity, entry.status) == (severity, severity, status)
    counts = count(sightings)
    totals, by_category = issue_figures(sightings, limit=5)
    assert (totals.open_minor, totals.open_major) == (counts.minors, counts.majors)
    assert by_category == {"docs": totals}
    assert totals.resolved == (entry.status is IssueStatus.RESOLVED)
    shown = open_issues(sightings, limit=5)
    assert len(shown) == counts.minors + counts.majors
    assert all(each.effective_severity == severity for each in shown)


def test_a_review_resolves_a_key_in_every_phase_and_a_green_verdict_what_ci_raised_in_its_own() -> (
    None
):
    found = [
        seen("P1", source="ci"),
        seen("P2", source="ci"),
        seen("P2", "odd"),
        seen("P3", source="ci", is_open=False),
    ]
    assert resolved_by_auditor(found, ["slow", "never seen"]) == found[:2]
    assert resolved_by_green(found, "P2") == found[1:2]
    assert resolved_by_green(found, "P3") == []


def test_what_another_source_saw_as_well_is_not_for_ci_to_resolve() -> None:
    raised = seen(source="ci")
    seen_by_both = sight(raised, seen(source="test"))
    assert resolved_by_green([raised], "P1")
    assert not resolved_by_green([seen_by_both], "P1")
    assert not resolved_by_green([sight(seen(source="test"), raised)], "P1")
    again = sight(replace(seen_by_both, is_open=False), raised)
    assert resolved_by_green([again], "P1"), "who raises it anew is whose it is"


def test_a_report_opens_a_key_again_as_grave_as_it_was() -> None:
    closed = seen(severity=MAJOR, is_open=False)
    assert sight(closed, seen()) == replace(closed, is_open=True, occurrence_count=2)
    assert not sight(seen(is_expected=True), seen()).is_expected
    assert sight(None, closed) == closed
