"""What a plan may cost under a ruleset: the table of rules §9, written out again."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from autopack.domain.issues import IssueReport, base_severity
from autopack.domain.plan import Plan
from autopack.domain.ruleset import Ruleset
from autopack.domain.strategy import PhaseStrategy, Strategy, compile_strategy

pytestmark = pytest.mark.unit

# task category, complexity, CI, builder tries, auditor tries, token cap, auto_apply, audit profile
TABLE = """
cross_cutting_refactor    high   strict 2 2 1000000 no  refactor_review
index_registry_change     high   strict 2 2 800000  no  index_review
schema_contract_change    high   strict 2 3 1000000 no  schema_review
bulk_multi_file_operation high   strict 1 2 1500000 no  bulk_review
security_auth_change      high   strict 2 3 800000  no  security_review
feature_scaffolding       medium normal 3 2 500000  yes -
docs                      low    normal 2 1 200000  yes -
tests                     low    normal 3 1 300000  yes -
debt_cleanup              medium normal 2 1 400000  no  debt_cleanup_review
something_else            medium normal 3 2 500000  yes -
""".strip().splitlines()
ROWS = [row.split() for row in TABLE]
HIGH_RISK = {row[0] for row in ROWS[:5]}
ALIASES = {
    "schema_change": "schema_contract_change",
    "security_auth": "security_auth_change",
    "index_registry_maintenance": "index_registry_change",
    "bulk_operation": "bulk_multi_file_operation",
}


def ruleset(**fields: object) -> Ruleset:
    return Ruleset.model_validate({"project_id": "Shop", **fields})


def compiled(*phases: dict[str, object], rules: Ruleset | None = None, **run: object) -> Strategy:
    plan = Plan.model_validate(
        {
            "run": {"run_id": "run-1", **run},
            "tiers": [
                {"tier_id": "T1", "tier_index": 0, "name": "First"},
                {"tier_id": "T2", "tier_index": 1, "name": "Empty"},
            ],
            "phases": [
                {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T1", "name": "x", **phase}
                for n, phase in enumerate(phases, 1)
            ],
        }
    )
    return compile_strategy(rules or ruleset(), plan)


def one(rules: Ruleset | None = None, **phase: object) -> PhaseStrategy:
    return compiled(phase, rules=rules).phases["P1"]


def figures(phase: PhaseStrategy) -> list[str]:
    return [
        phase.complexity,
        phase.ci_profile,
        str(phase.max_builder_attempts),
        str(phase.max_auditor_attempts),
        str(phase.incident_token_cap),
        "yes" if phase.auto_apply else "no",
        phase.auditor_profile or "-",
    ]


class TestPhases:
    @pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
    def test_a_task_category_has_the_caps_of_the_table(self, row: list[str]) -> None:
        phase = one(task_category=row[0])
        assert figures(phase) == row[1:]
        assert phase.default_severity == ("major" if row[0] in HIGH_RISK else "minor")
        assert phase.task_category == row[0]

    def test_a_phase_without_a_category_is_anything_else(self) -> None:
        assert figures(one()) == ROWS[-1][1:]

    @pytest.mark.parametrize(("alias", "category"), ALIASES.items())
    def test_an_alias_is_its_category(self, alias: str, category: str) -> None:
        assert one(task_category=alias) == one(task_category=category)

    @pytest.mark.parametrize("category", ["docs", "something_else"])
    def test_high_complexity_of_a_phase_makes_it_strict(self, category: str) -> None:
        assert one(task_category=category, complexity="high").ci_profile == "strict"
        assert one(task_category=category, complexity="medium").ci_profile == "normal"

    def test_low_complexity_makes_no_high_risk_phase_less_strict(self) -> None:
        phase = one(task_category="security_auth_change", complexity="low")
        assert (phase.complexity, phase.ci_profile) == ("low", "strict")

    def test_tweak_light_caps_tries_and_files(self) -> None:
        phase = one(builder_mode="tweak_light")
        assert (phase.max_builder_attempts, phase.max_patch_files) == (2, 2)
        fewer = one(builder_mode="tweak_light", task_category="bulk_operation")
        assert fewer.max_builder_attempts == 1  # a cap never adds tries

    @pytest.mark.parametrize(
        "mode", ["scaffolding_heavy", "refactor_heavy", "schema_heavy", "compose", "my_own", None]
    )
    def test_any_other_builder_mode_is_a_label(self, mode: str | None) -> None:
        phase = one(builder_mode=mode)
        assert phase.builder_mode == mode
        assert figures(phase) == ROWS[-1][1:]
        assert phase.max_patch_files is None

    def test_the_ruleset_may_change_all_of_it(self) -> None:
        rules = ruleset(
            categories={"default": {}, "docs": {"max_builder_attempts": 9, "auto_apply": False}},
            aliases={"prose": "docs"},
            builder_modes={"tweak_light": {"max_patch_files": 7}},
            paths={"opened": {"docs": [".github/workflows/**"]}},
        )
        phase = one(rules, task_category="prose", builder_mode="tweak_light")
        assert phase.max_builder_attempts == 9
        assert phase.auto_apply is False
        assert phase.max_patch_files == 7
        assert phase.opened_paths == (".github/workflows/**",)


class TestRunAndTiers:
    def test_budgets_grow_with_the_plan(self) -> None:
        strategy = compiled({"task_category": "docs"}, {"task_category": "tests"}, {})
        assert strategy.token_cap == 5_000_000
        assert strategy.max_phases == 25
        assert strategy.max_duration_minutes == 120
        assert strategy.max_minor_issues_total == 9
        assert (strategy.attempt_minutes, strategy.audit_minutes) == (60, 60)
        assert strategy.phases["P1"].ci_timeout_seconds == 30 * 60
        tier = strategy.tiers["T1"]
        assert tier.token_cap == 3 * (200_000 + 300_000 + 500_000)
        assert tier.ci_run_cap == 6
        assert tier.minors_tolerated == 6
        assert tier.majors_tolerated == 0

    @pytest.mark.parametrize(
        ("profile", "seconds"),
        [
            ({}, 1_800),
            ({"evidence": ("baseline",)}, 1_800 + 3_600),
            ({"evidence": ("baseline", "base_tests", "fails_before")}, 1_800 + 3_600),
            ({"evidence": ("base_tests",), "retries": 10}, 1_800 + 3_600),  # within that time
            ({"evidence": ("base_tests",), "evidence_budget": 0.5}, 1_800 + 900),
            ({"evidence": ("base_tests",), "timeout_seconds": 10}, 10 + 60),
            ({"evidence": ("seeded_faults",), "timeout_seconds": 86_400}, 3 * 86_400),
        ],
    )
    def test_a_ci_run_has_the_time_of_its_command_and_of_all_its_evidence(
        self, profile: dict[str, Any], seconds: int
    ) -> None:
        command = {"command": "make", "junit": "out.xml", **profile}
        profiles = {"normal": command, "strict": command}
        rules = Ruleset.model_validate(
            {"project_id": "Shop", "ci": {"mode": "local", "profiles": profiles}}
        )
        assert one(rules).ci_timeout_seconds == seconds

    def test_a_tier_without_phases_has_nothing_to_spend(self) -> None:
        tier = compiled({}).tiers["T2"]
        assert (tier.token_cap, tier.ci_run_cap, tier.minors_tolerated) == (0, 0, 0)

    def test_a_plan_may_set_its_own_caps(self) -> None:
        strategy = compiled({}, token_cap=7, max_phases=3, max_duration_minutes=5)
        assert strategy.token_cap == 7
        assert strategy.max_phases == 3
        assert strategy.max_duration_minutes == 5

    def test_safety_critical_makes_every_phase_strict_and_halves_what_tiers_tolerate(self) -> None:
        strategy = compiled({"task_category": "docs"}, {}, safety_profile="safety_critical")
        assert {phase.ci_profile for phase in strategy.phases.values()} == {"strict"}
        assert strategy.tiers["T1"].minors_tolerated == 2
        assert strategy.tiers["T1"].majors_tolerated == 0
        assert strategy.safety.minor_cap_ends_run
        assert strategy.safety.any_failure_stops
        assert strategy.safety.high_risk_needs_review

    @pytest.mark.parametrize(
        ("profile", "runs", "tiers"), [("normal", 3, 2), ("safety_critical", 2, 2)]
    )
    def test_issues_age_as_the_safety_profile_says(
        self, profile: str, runs: int, tiers: int
    ) -> None:
        safety = compiled({}, safety_profile=profile).safety
        assert (safety.cleanup_after_runs, safety.cleanup_after_tiers) == (runs, tiers)

    def test_the_rulesets_defaults_count_where_the_plan_is_silent(self) -> None:
        rules = ruleset(default_safety_profile="safety_critical", default_run_scope="multi_tier")
        strategy = compiled({}, rules=rules)
        assert (strategy.safety_profile, strategy.run_scope) == ("safety_critical", "multi_tier")
        strategy = compiled({}, rules=rules, safety_profile="normal", run_scope="incremental")
        assert (strategy.safety_profile, strategy.run_scope) == ("normal", "incremental")

    def test_the_highest_caps_that_a_ruleset_allows_can_be_compiled(self) -> None:
        most = 2**53 - 1
        rules = ruleset(
            categories={"default": {"incident_token_cap": most}},
            aliases={},
            tier={"token_cap_factor": most, "ci_runs_per_phase": most, "majors_tolerated": most},
            run={"token_cap": most, "minor_issues_per_phase": most},
            safety_profiles={
                name: {"minors_tolerated_per_phase": most} for name in ("normal", "safety_critical")
            },
        )
        strategy = compiled({}, {}, rules=rules)
        assert strategy.tiers["T1"].token_cap == most
        assert strategy.max_minor_issues_total == most

    @pytest.mark.parametrize(
        ("count", "named"), [(5, "P1, P2, P3, P4, P5"), (6, "P1, P2, P3, P4, P5, …")]
    )
    def test_the_first_five_phases_of_a_warning_are_named(self, count: int, named: str) -> None:
        phase: dict[str, object] = {"task_category": "doc", "complexity": "high"}
        strategy = compiled(*[phase] * count)
        assert len(strategy.warnings) == 2, "the category, and strict phases without CI"
        assert all(f"({named})" in each for each in strategy.warnings)

    def test_an_unknown_category_is_warned_of_with_the_nearest_known_one(self) -> None:
        strategy = compiled({"task_category": "test"}, {"task_category": "doc"}, {})
        assert [each for each in strategy.warnings if "task_category" in each] == [
            "The ruleset has no task_category 'test' (P1), so the rule of 'default' applies; the"
            " nearest that it has is 'tests'.",
            "The ruleset has no task_category 'doc' (P2), so the rule of 'default' applies; the"
            " nearest that it has is 'docs'.",
        ]

    def test_strict_phases_without_ci_are_warned_of_at_the_start(self) -> None:
        strategy = compiled({"task_category": "docs"}, {"complexity": "high"})
        (warning,) = strategy.warnings
        assert "P2" in warning
        assert "P1" not in warning
        assert compiled({"task_category": "docs"}).warnings == ()
        assert (
            compiled({"complexity": "high"}, rules=ruleset(ci={"mode": "external"})).warnings == ()
        )

    def test_a_strategy_survives_being_written_and_read(self) -> None:
        strategy = compiled({"task_category": "docs"}, {"complexity": "high"})
        assert Strategy.model_validate_json(strategy.model_dump_json()) == strategy


@pytest.mark.parametrize("category", sorted(HIGH_RISK | set(ALIASES)))
def test_an_unlabelled_issue_of_a_high_risk_category_is_major(category: str) -> None:
    majors = compiled({}).major_categories
    report = IssueReport(issue_key="k", source="ci", category=category)
    assert base_severity(report.severity, report.category, majors) == "major"
    labelled = report.model_copy(update={"severity": "minor"})
    assert base_severity(labelled.severity, labelled.category, majors) == "minor"


@pytest.mark.parametrize("category", ["docs", "tests", "debt_cleanup", "anything"])
def test_an_unlabelled_issue_of_another_category_is_minor(category: str) -> None:
    report = IssueReport(issue_key="k", source="ci", category=category)
    assert base_severity(report.severity, report.category, compiled({}).major_categories) == "minor"


class TestRuleset:
    def test_the_defaults_survive_being_written_and_read(self) -> None:
        rules = ruleset()
        assert Ruleset.model_validate_json(rules.model_dump_json()) == rules

    def test_the_top_level_has_the_names_that_others_build_on(self) -> None:
        assert set(json.loads(ruleset().model_dump_json())) == {
            *("version", "project_id", "default_safety_profile", "default_run_scope"),
            *("categories", "aliases", "builder_modes", "safety_profiles", "run", "tier"),
            *(
                "attempt_minutes",
                "audit_minutes",
                "auto_debt_cleanup",
                "parallel",
                "paths",
                "review",
                "ci",
            ),
            *("prices", "unavailable_messages"),
        }

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            (lambda d: d.update(surprise=1), "surprise"),
            (lambda d: d.update(version=0), "version"),
            (lambda d: d.update(project_id="a..b"), "project_id"),
            (lambda d: d["run"].update(token_cap=0), "run.token_cap"),
            (lambda d: d["run"].update(token_cap="many"), "run.token_cap"),
            (lambda d: d["run"].update(token_cap=True), "run.token_cap"),
            (lambda d: d["tier"].update(ci_runs_per_phase=1.5), "tier.ci_runs_per_phase"),
            (
                lambda d: d["categories"]["docs"].update(max_builder_attempts=0),
                "categories.docs.max_builder_attempts",
            ),
            (lambda d: d["categories"]["docs"].update(typo=1), "categories.docs.typo"),
            (lambda d: d["categories"].pop("default"), "categories"),
            (lambda d: d["aliases"].update(prose="novel"), "aliases.prose"),
            (lambda d: d["safety_profiles"].pop("normal"), "safety_profiles"),
            (lambda d: d["ci"].update(mode="cloud"), "ci.mode"),
            (lambda d: d["ci"].update(mode="local"), "ci"),
            (lambda d: d["paths"].update(protected=["a\0"]), "paths.protected.0"),
            (lambda d: d.update(attempt_minutes=0), "attempt_minutes"),
        ],
    )
    def test_an_invalid_ruleset_is_refused_naming_the_field(
        self, change: Callable[[dict[str, Any]], object], named: str
    ) -> None:
        document = json.loads(ruleset().model_dump_json())
        change(document)
        with pytest.raises(ValidationError) as refusal:
            Ruleset.model_validate_json(json.dumps(document))
        (error,) = refusal.value.errors()
        place = ".".join(map(str, error["loc"]))
        assert place.startswith(named) or named in error["msg"]
