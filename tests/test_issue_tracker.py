"""Issues at three levels: phase, run, project; how they count, age and are resolved. (rules §7)"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autopack.config import Settings
from autopack.domain.issues import IssueReport, base_severity, issue_state, needs_cleanup
from autopack.domain.plan import (
    DEBT_TIER_ID,
    DebtPhase,
    InvalidPlanError,
    Plan,
    check_plan,
    wants_debt_cleanup,
    with_debt_cleanup,
)
from autopack.domain.ruleset import DEFAULT_ALIASES, DEFAULT_CATEGORIES, Ruleset
from autopack.domain.sightings import worse
from autopack.domain.strategy import compile_strategy
from autopack.domain.terms import RunScope, Severity

if TYPE_CHECKING:
    from starlette.testclient import TestClient

Json = dict[str, Any]
HIGH_RISK = (
    "cross_cutting_refactor",
    "index_registry_change",
    "schema_contract_change",
    "bulk_multi_file_operation",
    "security_auth_change",
)


@dataclass
class Tracker:
    """A caller who speaks of runs, phases and issues."""

    client: TestClient
    runs_dir: Path
    profile: str = "normal"
    expected: list[str] = field(default_factory=list)

    def start(self, run_id: str, tiers: Sequence[str] = ("T1", "T2")) -> None:
        """Start a run: in each tier two phases, `<tier>a` and `<tier>b`."""
        plan = {
            "run": {
                "run_id": run_id,
                "run_scope": "multi_tier",
                "safety_profile": self.profile,
            },
            "tiers": [
                {"tier_id": tier, "tier_index": index, "name": tier}
                for index, tier in enumerate(tiers)
            ],
            "phases": [
                {
                    "phase_id": f"{tier}{letter}",
                    "phase_index": index,
                    "tier_id": tier,
                    "name": f"{tier}{letter}",
                    "task_category": "docs",
                    "complexity": "low",
                    "expected_issues": self.expected,
                }
                for tier in tiers
                for index, letter in enumerate("ab")
            ],
        }
        response = self.client.post("/runs/start", json=plan)
        assert response.status_code == 201, response.text

    def report(self, run_id: str, phase_id: str, key: str = "slow", **fields: Any) -> Json:
        body = {"issue_key": key, "source": "test", "category": "test_failure", **fields}
        path = f"/runs/{run_id}/phases/{phase_id}/record_issue"
        response = self.client.post(path, json=body)
        assert response.status_code == 201, response.text
        answer: Json = response.json()
        return answer

    def entry(self, key: str = "slow") -> Json:
        """Return a key of the project's backlog; the file says the same."""
        entries = self.client.get("/project/issues/backlog").json()["issues_by_key"]
        file = json.loads((self.runs_dir / "project_issue_backlog.json").read_text())
        entry: Json = entries[key]
        assert {name: file["issues_by_key"][key][name] for name in AGES} == {
            name: entry[name] for name in AGES
        }
        return entry

    def index(self, run_id: str) -> Json:
        index: Json = self.client.get(f"/runs/{run_id}/issues/index").json()["issues_by_key"]
        file = json.loads((self.runs_dir / run_id / "run_issue_index.json").read_text())
        assert file["issues_by_key"] == index
        return index

    def phase_file(self, run_id: str, phase_id: str) -> Json:
        index = "ab".index(phase_id[-1])
        name = f"phase_{index}_{phase_id}_issues.json"
        document: Json = json.loads((self.runs_dir / run_id / "issues" / name).read_text())
        return document

    def counts(self, run_id: str) -> Json:
        """Return (minor, major) of the run, and of each tier and phase that has any."""
        run = self.client.get(f"/runs/{run_id}").json()
        found = {"run": _counts(run)}
        for tier in run["tiers"]:
            found[tier["tier_id"]] = _counts(tier)
            found |= {phase["phase_id"]: _counts(phase) for phase in tier["phases"]}
        return {name: counts for name, counts in found.items() if counts != (0, 0)}

    def operator(self, verb: str, key: str = "slow") -> Json:
        response = self.client.post(f"/project/issues/{key}/{verb}")
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer


AGES = ("age_in_runs", "age_in_tiers", "total_occurrences", "status", "base_severity")


def _counts(document: Json) -> tuple[int, int]:
    return document["minor_issues_count"], document["major_issues_count"]


@pytest.fixture
def tracker(client: TestClient, settings: Settings) -> Tracker:
    return Tracker(client, settings.autonomous_runs_dir)


@pytest.mark.integration
class TestThreeLevels:
    def test_a_report_is_seen_in_its_phase_its_run_and_the_project(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        answer = tracker.report("run-1", "T1a", evidence_refs=["tests/test_a.py::test_b"])
        issues = tracker.phase_file("run-1", "T1a")["issues"]
        assert [(issue["issue_key"], issue["occurrence_count"]) for issue in issues] == [
            ("slow", 1)
        ]
        assert answer["phase_file"].endswith("run-1/issues/phase_0_T1a_issues.json")
        assert answer["run_index_entry"] == tracker.index("run-1")["slow"]
        assert answer["project_backlog_entry"].items() <= tracker.entry().items()
        assert tracker.entry()["first_seen_run"] == tracker.entry()["last_seen_run"] == "run-1"

    def test_reports_count_and_keys_are_counted_once_at_every_level(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        for phase_id in ("T1a", "T1a", "T1b", "T2a"):
            tracker.report("run-1", phase_id)
        tracker.report("run-1", "T1b", "wrong", severity="major")
        assert tracker.counts("run-1") == {
            "run": (1, 1),
            "T1": (1, 1),
            "T1a": (1, 0),
            "T1b": (1, 1),
            "T2": (1, 0),
            "T2a": (1, 0),
        }
        assert tracker.index("run-1")["slow"]["occurrence_count"] == 4
        assert tracker.entry()["total_occurrences"] == 4
        phase = tracker.phase_file("run-1", "T1a")
        assert (phase["minor_issue_count"], phase["major_issue_count"]) == (1, 0)
        assert phase["issue_state"] == "has_minor_issues"
        assert tracker.phase_file("run-1", "T1b")["issue_state"] == "has_major_issues"
        assert tracker.phase_file("run-1", "T2b")["issue_state"] == "no_issues"

    def test_a_key_that_is_major_in_one_phase_is_one_major_issue_of_the_run(
        self, tracker: Tracker
    ) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T2a", severity="major")
        counts = tracker.counts("run-1")
        assert (counts["run"], counts["T1"], counts["T2"]) == ((0, 1), (1, 0), (0, 1))

    def test_the_runs_index_shows_where_a_key_was_reported(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        for phase_id in ("T2b", "T1b", "T1b"):
            tracker.report("run-1", phase_id)
        entry = tracker.index("run-1")["slow"]
        assert (entry["tiers"], entry["phases"]) == (["T1", "T2"], ["T1b", "T2b"])
        assert (entry["first_phase_index"], entry["last_phase_index"]) == (1, 1)
        assert entry["status"] == "open"

    def test_evidence_is_merged_without_duplicates(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a", evidence_refs=["b", "a", "b"])
        tracker.report("run-1", "T1a", evidence_refs=["a", "c"])
        tracker.report("run-1", "T1a")
        (issue,) = tracker.phase_file("run-1", "T1a")["issues"]
        assert issue["evidence_refs"] == ["b", "a", "c"]

    def test_what_a_report_leaves_out_is_its_phases(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T1a", "odd", task_category="tests", complexity="high")
        one, other = tracker.phase_file("run-1", "T1a")["issues"]
        assert (one["task_category"], one["complexity"]) == ("docs", "low")
        assert (other["task_category"], other["complexity"]) == ("tests", "high")

    def test_thirty_reports_at_once_count_thirty(self, tracker: Tracker) -> None:
        for run_id in ("run-1", "run-2", "run-3"):
            tracker.start(run_id)
        with ThreadPoolExecutor(30) as pool:
            places = [(f"run-{number % 3 + 1}", f"T{number % 2 + 1}a") for number in range(30)]
            list(pool.map(lambda place: tracker.report(*place), places))
        entry = tracker.entry()
        assert entry["total_occurrences"] == 30
        assert (entry["age_in_runs"], entry["age_in_tiers"]) == (3, 2)
        for run_id in ("run-1", "run-2", "run-3"):
            assert tracker.index(run_id)["slow"]["occurrence_count"] == 10
            assert tracker.counts(run_id)["run"] == (1, 0)


@pytest.mark.integration
class TestAging:
    def test_a_second_report_in_the_same_run_and_tier_changes_no_age(
        self, tracker: Tracker
    ) -> None:
        tracker.start("run-1")
        for phase_id in ("T1a", "T1a", "T1b"):
            tracker.report("run-1", phase_id)
        entry = tracker.entry()
        assert (entry["age_in_runs"], entry["age_in_tiers"]) == (1, 1)
        assert entry["total_occurrences"] == 3

    def test_ages_are_of_distinct_runs_and_distinct_tier_ids(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.start("run-2")
        for run_id, phase_id in (("run-1", "T1a"), ("run-2", "T1a"), ("run-1", "T1b")):
            tracker.report(run_id, phase_id)
        entry = tracker.entry()
        assert (entry["age_in_runs"], entry["age_in_tiers"]) == (2, 1)
        assert entry["status"] == "open"
        tracker.report("run-2", "T2a")
        entry = tracker.entry()
        assert (entry["age_in_runs"], entry["age_in_tiers"]) == (2, 2)
        assert entry["tiers"] == ["T1", "T2"]
        assert (entry["first_seen_run"], entry["last_seen_run"]) == ("run-1", "run-2")

    @pytest.mark.parametrize(
        ("profile", "sightings", "status"),
        [
            ("normal", [("run-1", "T1a"), ("run-2", "T1a")], "open"),
            ("normal", [("run-1", "T1a"), ("run-2", "T1a"), ("run-3", "T1a")], "needs_cleanup"),
            ("normal", [("run-1", "T1a"), ("run-1", "T2a")], "needs_cleanup"),
            ("safety_critical", [("run-1", "T1a"), ("run-1", "T1b")], "open"),
            ("safety_critical", [("run-1", "T1a"), ("run-2", "T1a")], "needs_cleanup"),
            ("safety_critical", [("run-1", "T1a"), ("run-1", "T2a")], "needs_cleanup"),
        ],
    )
    def test_a_minor_issue_needs_cleanup_at_a_threshold_of_the_runs_profile(
        self, tracker: Tracker, profile: str, sightings: list[tuple[str, str]], status: str
    ) -> None:
        tracker.profile = profile
        for run_id in ("run-1", "run-2", "run-3"):
            tracker.start(run_id)
        for run_id, phase_id in sightings:
            tracker.report(run_id, phase_id)
        assert tracker.entry()["status"] == status

    def test_a_major_issue_needs_no_aging(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        for phase_id in ("T1a", "T2a"):
            tracker.report("run-1", phase_id, severity="major")
        assert tracker.entry()["status"] == "open"

    def test_an_aged_issue_counts_as_major_only_in_runs_that_start_later(
        self, tracker: Tracker
    ) -> None:
        tracker.start("run-1")
        tracker.start("run-2")  # before the issue is old
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T2a")
        tracker.start("run-3")
        for run_id in ("run-1", "run-2", "run-3"):
            tracker.report(run_id, "T1b")
        assert tracker.counts("run-1")["run"] == (1, 0)
        assert tracker.counts("run-2")["run"] == (1, 0)
        assert tracker.counts("run-3")["run"] == (0, 1)
        entry = tracker.index("run-3")["slow"]
        assert (entry["severity"], entry["effective_severity"]) == ("minor", "major")
        assert tracker.entry()["base_severity"] == "minor"


@pytest.mark.integration
class TestResolving:
    def test_an_operator_resolves_and_opens_again(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        assert tracker.operator("resolve")["status"] == "resolved"
        assert tracker.operator("resolve")["status"] == "resolved"
        assert tracker.entry()["status"] == "resolved"
        assert tracker.operator("reopen")["status"] == "open"
        assert tracker.entry()["age_in_runs"] == 1

    def test_a_new_sighting_opens_a_resolved_issue_again(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.operator("resolve")
        tracker.report("run-1", "T1a")
        entry = tracker.entry()
        assert (entry["status"], entry["total_occurrences"]) == ("open", 2)

    def test_an_aged_issue_that_is_seen_again_after_its_resolution_needs_cleanup_again(
        self, tracker: Tracker
    ) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T2a")
        tracker.operator("resolve")
        tracker.start("run-2")
        tracker.report("run-2", "T1a")
        assert tracker.entry()["status"] == "needs_cleanup"
        assert tracker.counts("run-2")["run"] == (1, 0)  # when it started, the issue was resolved

    def test_opening_an_issue_that_is_open_changes_nothing(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T2a")
        assert tracker.operator("reopen")["status"] == "needs_cleanup"

    def test_an_issue_that_was_never_reported_is_not_found(self, tracker: Tracker) -> None:
        for verb in ("resolve", "reopen"):
            assert tracker.client.post(f"/project/issues/never/{verb}").status_code == 404

    def test_an_auditor_resolves_an_issue_only_in_its_run(self, tracker: Tracker) -> None:
        tracker.start("run-1")
        tracker.report("run-1", "T1a")
        tracker.report("run-1", "T1b")
        for state in ("EXECUTING", "GATE"):
            path = "/runs/run-1/phases/T1a/update_status"
            assert tracker.client.post(path, json={"state": state}).status_code == 200
        response = tracker.client.post(
            "/runs/run-1/phases/T1a/auditor_result",
            json={"recommendation": "revise", "resolved_issues": ["slow"]},
        )
        assert response.status_code == 200, response.text
        assert tracker.counts("run-1") == {}
        assert tracker.index("run-1")["slow"]["status"] == "resolved"
        assert tracker.entry()["status"] == "open"
        tracker.report("run-1", "T1b")
        assert tracker.counts("run-1")["run"] == (1, 0)


@pytest.mark.integration
class TestExpectedFailures:
    def test_an_expected_issue_of_the_plan_is_kept_but_neither_counted_nor_aged(
        self, tracker: Tracker
    ) -> None:
        tracker.expected = ["slow"]
        tracker.start("run-1")
        answer = tracker.report("run-1", "T1a", severity="major", expected_fail=True)
        assert answer["project_backlog_entry"] is None
        assert tracker.counts("run-1") == {}
        (issue,) = tracker.phase_file("run-1", "T1a")["issues"]
        assert issue["occurrence_count"] == 1
        assert tracker.client.get("/project/issues/backlog").json()["issues_by_key"] == {}

    def test_a_key_that_the_plan_does_not_list_is_never_expected(self, tracker: Tracker) -> None:
        tracker.expected = ["another"]
        tracker.start("run-1")
        tracker.report("run-1", "T1a", expected_fail=True)
        assert tracker.counts("run-1")["run"] == (1, 0)
        assert tracker.entry()["age_in_runs"] == 1

    def test_a_listed_key_counts_when_its_report_does_not_call_it_expected(
        self, tracker: Tracker
    ) -> None:
        tracker.expected = ["slow"]
        tracker.start("run-1")
        tracker.report("run-1", "T1a", expected_fail=True)
        tracker.report("run-1", "T1a")
        assert tracker.counts("run-1")["run"] == (1, 0)
        assert tracker.entry()["total_occurrences"] == 1


@pytest.mark.unit
class TestSeverity:
    @pytest.mark.parametrize("category", [*HIGH_RISK, *DEFAULT_ALIASES])
    def test_high_risk_categories_and_their_aliases_are_major_by_default(
        self, category: str
    ) -> None:
        assert _severity_of(category) is Severity.MAJOR
        assert _severity_of(category, Severity.MINOR) is Severity.MINOR

    @pytest.mark.parametrize(
        "category", [*sorted(DEFAULT_CATEGORIES.keys() - set(HIGH_RISK)), "test_failure"]
    )
    def test_all_other_categories_are_minor_by_default(self, category: str) -> None:
        assert _severity_of(category) is Severity.MINOR
        assert _severity_of(category, Severity.MAJOR) is Severity.MAJOR

    def test_the_graver_of_two_severities_stays(self) -> None:
        assert worse(Severity.MINOR, Severity.MAJOR) is Severity.MAJOR
        assert worse(Severity.MINOR, Severity.MINOR) is Severity.MINOR

    @pytest.mark.parametrize(
        ("severity", "in_runs", "in_tiers", "is_old"),
        [
            ("minor", 2, 1, False),
            ("minor", 3, 1, True),
            ("minor", 1, 2, True),
            ("major", 9, 9, False),
        ],
    )
    def test_cleanup_is_needed_from_either_threshold_on(
        self, severity: str, in_runs: int, in_tiers: int, is_old: bool
    ) -> None:
        found = needs_cleanup(
            Severity(severity),
            age_in_runs=in_runs,
            age_in_tiers=in_tiers,
            after_runs=3,
            after_tiers=2,
        )
        assert found is is_old

    @pytest.mark.parametrize(
        ("minors", "majors", "state"),
        [(0, 0, "no_issues"), (1, 0, "has_minor_issues"), (1, 1, "has_major_issues")],
    )
    def test_a_phases_state_is_that_of_its_gravest_issue(
        self, minors: int, majors: int, state: str
    ) -> None:
        assert issue_state(minors, majors) == state


def _severity_of(category: str, given: Severity | None = None) -> Severity:
    majors = compile_strategy(Ruleset(project_id="Autopack"), _plan()).major_categories
    report = IssueReport(issue_key="x", source="test", category=category, severity=given)
    return base_severity(report.severity, report.category, majors)


def _plan(scope: RunScope | None = None, tiers: int = 1) -> Plan:
    return Plan.model_validate(
        {
            "run": {"run_id": "run-1", "run_scope": scope},
            "tiers": [
                {"tier_id": f"T{index}", "tier_index": index * 5, "name": "x"}
                for index in range(tiers)
            ],
            "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T0", "name": "x"}],
        }
    )


def _ruleset(*, auto: bool = True, mode: str = "external") -> Ruleset:
    return Ruleset.model_validate(
        {"project_id": "Autopack", "auto_debt_cleanup": auto, "ci": {"mode": mode}}
    )


@pytest.mark.unit
class TestDebtCleanup:
    @pytest.mark.parametrize(
        ("auto", "mode", "scope", "wanted"),
        [
            (True, "external", RunScope.INCREMENTAL, True),
            (True, "external", RunScope.MULTI_TIER, True),
            (True, "external", None, True),
            (True, "external", RunScope.SINGLE_TIER, False),
            (True, "none", RunScope.INCREMENTAL, False),
            (False, "external", RunScope.INCREMENTAL, False),
        ],
    )
    def test_debt_is_cleaned_up_where_the_ruleset_wants_it_and_ci_can_judge_it(
        self, auto: bool, mode: str, scope: RunScope | None, wanted: bool
    ) -> None:
        assert wants_debt_cleanup(_plan(scope), _ruleset(auto=auto, mode=mode)) is wanted

    def test_by_default_nothing_is_cleaned_up(self) -> None:
        assert not wants_debt_cleanup(_plan(), Ruleset(project_id="Autopack"))

    def test_each_aged_issue_gets_a_phase_in_a_last_tier(self) -> None:
        plan = with_debt_cleanup(_plan(tiers=2), [("slow", "test_failure"), ("odd", "docs")])
        tier, (first, second) = plan.tiers[-1], plan.phases[-2:]
        assert (tier.tier_id, tier.tier_index) == (DEBT_TIER_ID, 6)
        assert isinstance(first, DebtPhase)
        assert isinstance(second, DebtPhase)
        assert (first.issue_key, second.issue_key) == ("slow", "odd")
        assert (first.phase_index, second.phase_index) == (0, 1)
        assert {first.tier_id, second.tier_id} == {DEBT_TIER_ID}
        strategy = compile_strategy(_ruleset(), plan).phases[first.phase_id]
        assert strategy.task_category == "debt_cleanup"
        assert not strategy.auto_apply

    def test_without_aged_issues_the_plan_stays_as_it_is(self) -> None:
        assert with_debt_cleanup(_plan(), []) == _plan()

    def test_the_names_of_debt_cleanup_are_reserved(self) -> None:
        plan = with_debt_cleanup(_plan(), [("slow", "test_failure")])
        posted = Plan.model_validate(
            {
                **plan.model_dump(mode="json"),
                "phases": [
                    {k: v for k, v in phase.model_dump(mode="json").items() if k != "issue_key"}
                    for phase in plan.phases
                ],
            }
        )
        with pytest.raises(InvalidPlanError, match="reserved for debt cleanup"):
            check_plan(posted, _ruleset())
        check_plan(posted, _ruleset(), is_recorded=True)
