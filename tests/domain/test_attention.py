"""From when on something needs a person: disks, keys, budgets, phases without an agent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from autopack.domain.attention import (
    RULES,
    AgedIssues,
    AttentionKind,
    Disk,
    ExpiringKey,
    FailingPushes,
    LiveRun,
    OpenPhase,
    Situation,
    needs,
)
from autopack.domain.states import PhaseStatus

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GB = 10**9


@pytest.mark.parametrize(
    ("free", "total", "inodes", "is_low"),
    [
        (GB - 1, 8 * GB, 50, True),
        (GB, 8 * GB, 50, False),
        (19 * GB, 400 * GB, 50, True),
        (20 * GB, 8_000 * GB, 50, False),
        (30 * GB, 500 * GB, 1, True),
        (30 * GB, 500 * GB, 2, False),
    ],
)
def test_a_disk_is_low_by_its_bytes_its_share_or_its_inodes(
    free: int, total: int, inodes: int, is_low: bool
) -> None:
    disk = Disk(
        name="home",
        folder="/x y",
        free_bytes=free,
        total_bytes=total,
        free_inodes=inodes,
        total_inodes=100,
    )
    found = needs(Situation(disks=[disk]), NOW)
    assert [need.id for need in found] == (["disk_low:home"] if is_low else [])
    assert all(need.action.command == "df -h '/x y'" for need in found)


def test_a_file_system_without_inodes_is_not_low() -> None:
    disk = Disk(
        name="home",
        folder="/x",
        free_bytes=50 * GB,
        total_bytes=100 * GB,
        free_inodes=0,
        total_inodes=0,
    )
    assert needs(Situation(disks=[disk]), NOW) == []


@pytest.mark.parametrize(
    ("lifetime", "left", "is_told"),
    [
        (timedelta(days=90), timedelta(days=7), True),
        (timedelta(days=90), timedelta(days=7, seconds=1), False),
        (timedelta(hours=12), timedelta(hours=3), True),
        (timedelta(hours=12), timedelta(hours=3, seconds=1), False),
        (timedelta(days=90), timedelta(0), False),
    ],
)
def test_a_key_is_told_a_week_before_its_end_or_a_quarter_of_its_lifetime(
    lifetime: timedelta, left: timedelta, is_told: bool
) -> None:
    end = NOW + left
    key = ExpiringKey(name="k", roles=["ci"], created_at=end - lifetime, expires_at=end)
    assert [need.id for need in needs(Situation(keys=[key]), NOW)] == (
        ["key_expiring:k"] if is_told else []
    )
    assert needs(Situation(keys=[key]), NOW, is_operator=False) == []


@pytest.mark.parametrize(
    ("used", "is_told"),
    [
        ({}, False),
        ({"tokens_used": 799}, False),
        ({"tokens_used": 800}, True),
        ({"cost_usd": Decimal("3.999999")}, False),
        ({"cost_usd": Decimal(4)}, True),
        ({"created_at": NOW - timedelta(minutes=79, seconds=59)}, False),
        ({"created_at": NOW - timedelta(minutes=80)}, True),
        ({"cost_cap_usd": None, "cost_usd": Decimal(4)}, False),
    ],
)
def test_a_budget_is_low_once_four_fifths_of_it_are_used(
    used: dict[str, Any], is_told: bool
) -> None:
    fields: dict[str, Any] = {
        "created_at": NOW,
        "updated_at": NOW,
        "max_duration_minutes": 100,
        "token_cap": 1_000,
        "tokens_used": 0,
        "tokens_since": None,
        "cost_cap_usd": Decimal(5),
        "cost_usd": Decimal(0),
        "cost_since": None,
    }
    found = needs(Situation(live=[LiveRun(run_id="run-1", **(fields | used))]), NOW)
    assert [need.id for need in found] == (["budget_low:run-1"] if is_told else [])


@pytest.mark.parametrize(
    ("phase", "is_told"),
    [
        ({}, True),
        ({"state": PhaseStatus.GATE}, True),
        ({"since": NOW - timedelta(minutes=9, seconds=59)}, False),
        ({"has_agent": True}, False),
        ({"state": PhaseStatus.EXECUTING}, False),
        ({"state": PhaseStatus.CI_RUNNING}, False),
    ],
)
def test_a_phase_needs_a_person_once_no_agent_has_claimed_it_for_ten_minutes(
    phase: dict[str, Any], is_told: bool
) -> None:
    fields: dict[str, Any] = {
        "state": PhaseStatus.QUEUED,
        "has_agent": False,
        "since": NOW - timedelta(minutes=10),
        "unavailable_reason": None,
        "retry_at": None,
        "ci_failed_at": None,
        "ci_reason": None,
    }
    waiting = OpenPhase(run_id="run-1", phase_id="P1", **(fields | phase))
    found = needs(Situation(phases=[waiting]), NOW)
    assert [need.id for need in found] == (["phase_unclaimed:run-1:P1"] if is_told else [])


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (1, "1 issue is old enough for a cleanup: a"),
        (3, "3 issues are old enough for a cleanup: a, b, c"),
        (4, "4 issues are old enough for a cleanup: a, b, c and 1 more"),
    ],
)
def test_the_three_oldest_of_many_aged_issues_are_named(count: int, said: str) -> None:
    aged = AgedIssues(count=count, keys=[*"abc"][:count], since=NOW)
    (need,) = needs(Situation(issues=aged), NOW)
    assert need.text == said


def test_every_kind_has_a_rule_and_foreign_text_is_one_short_line() -> None:
    assert set(RULES) == set(AttentionKind)
    error = "no\nsuch \x1b[31m" + "x" * 5_000
    pushes = FailingPushes(count=1, run_id="run-1", since=NOW, error=error)
    (need,) = needs(Situation(pushes=pushes), NOW)
    assert need.text.startswith("1 run waits to be pushed: no such \\x1b[31mxxx")
    assert len(need.text) < 350
