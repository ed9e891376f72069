"""Plans that make no sense, and what is said of them. (rules §1, §3)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from autopack.domain.errors import ErrorKind
from autopack.domain.plan import InvalidPlanError, Plan, PlanRun, check_plan
from autopack.domain.ruleset import Ruleset

pytestmark = pytest.mark.unit

RULESET = Ruleset(project_id="Shop")
Document = dict[str, Any]


def document(phases: int = 2) -> Document:
    return {
        "run": {"run_id": "run-1"},
        "tiers": [
            {"tier_id": "T1", "tier_index": 0, "name": "First"},
            {"tier_id": "T2", "tier_index": 1, "name": "Second"},
        ],
        "phases": [
            {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T1", "name": f"Phase {n}"}
            for n in range(1, phases + 1)
        ],
    }


def problems(given: Document, ruleset: Ruleset = RULESET) -> list[tuple[str, str]]:
    plan = Plan.model_validate(given)
    with pytest.raises(InvalidPlanError) as refusal:
        check_plan(plan, ruleset)
    assert refusal.value.kind is ErrorKind.INVALID
    assert refusal.value.code == "invalid_plan"
    errors: Any = refusal.value.extra["errors"]
    found = [(error["loc"], error["message"]) for error in errors]
    place, message = found[0]
    assert refusal.value.detail.startswith(f"{place}: {message}")
    return found


def test_a_valid_plan_is_accepted() -> None:
    check_plan(Plan.model_validate(document()), RULESET)


def test_the_same_phase_index_in_two_tiers_is_no_duplicate() -> None:
    given = document()
    given["phases"][1] |= {"tier_id": "T2", "phase_index": 1}
    check_plan(Plan.model_validate(given), RULESET)


BAD: list[tuple[str, Callable[[Document], object], str, str]] = [
    ("no phase", lambda d: d.update(phases=[]), "phases", "at least one phase"),
    ("no tier", lambda d: d.update(tiers=[]), "tiers", "at least one tier"),
    (
        "an unknown tier",
        lambda d: d["phases"][1].update(tier_id="T9"),
        "phases[1].tier_id",
        "'T9' is not a tier of the plan (it has: T1, T2)",
    ),
    (
        "a tier in another case",
        lambda d: d["phases"][0].update(tier_id="t1"),
        "phases[0].tier_id",
        "'t1' is not a tier",
    ),
    (
        "a phase twice",
        lambda d: d["phases"][1].update(phase_id="P1"),
        "phases[1].phase_id",
        "'P1' is used twice",
    ),
    (
        "a phase twice but for case",
        lambda d: d["phases"][1].update(phase_id="p1"),
        "phases[1].phase_id",
        "'p1' is used twice",
    ),
    (
        "a phase index twice in one tier",
        lambda d: d["phases"][1].update(phase_index=1),
        "phases[1].phase_index",
        "1 is used twice",
    ),
    (
        "a tier twice but for case",
        lambda d: d["tiers"][1].update(tier_id="t1"),
        "tiers[1].tier_id",
        "'t1' is used twice",
    ),
    (
        "a tier index twice",
        lambda d: d["tiers"][1].update(tier_index=0),
        "tiers[1].tier_index",
        "0 is used twice",
    ),
    (
        "two tiers in a run of one",
        lambda d: d["run"].update(run_scope="single_tier"),
        "tiers",
        "exactly one tier, not 2",
    ),
    (
        "more phases than the plan itself allows",
        lambda d: d["run"].update(max_phases=1),
        "phases",
        "2 phases are over max_phases 1: split the plan into 2 runs",
    ),
    (
        "the name that debt cleanup has",
        lambda d: d["tiers"][1].update(tier_id="debt"),
        "tiers[1].tier_id",
        "'debt' is reserved",
    ),
]


@pytest.mark.parametrize(
    ("spoil", "place", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD]
)
def test_a_bad_plan_is_refused_naming_the_field(
    spoil: Callable[[Document], object], place: str, message: str
) -> None:
    given = document()
    spoil(given)
    found = problems(given)
    assert place in [place for place, _ in found]
    assert message in " ".join(text for at, text in found if at == place)


@pytest.mark.parametrize(("phases", "runs"), [(26, 2), (27, 2)])
def test_a_plan_over_the_rulesets_max_phases_says_how_many_runs_it_splits_into(
    phases: int, runs: int
) -> None:
    ((place, message),) = problems(document(phases))
    assert place == "phases"
    assert message == f"{phases} phases are over max_phases 25: split the plan into {runs} runs"


def test_a_plan_with_exactly_max_phases_is_accepted() -> None:
    check_plan(Plan.model_validate(document(25)), RULESET)


def test_every_problem_is_named_at_once() -> None:
    given = document()
    given["phases"][0]["tier_id"] = "T8"
    given["phases"][1] |= {"tier_id": "T9", "phase_id": "P1"}
    assert {place for place, _ in problems(given)} == {
        "phases[0].tier_id",
        "phases[1].tier_id",
        "phases[1].phase_id",
    }


def test_the_rulesets_scope_counts_where_the_plan_names_none() -> None:
    ruleset = Ruleset.model_validate({"project_id": "Shop", "default_run_scope": "single_tier"})
    ((place, _),) = problems(document(), ruleset)
    assert place == "tiers"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("run", "run_id"), "../etc"),
        (("run", "run_scope"), "everything"),
        (("run", "safety_profile"), "reckless"),
        (("run", "token_cap"), 0),
        (("run", "token_cap"), True),
        (("run", "token_cap"), 2**53),
        (("run", "max_phases"), -1),
        (("run", "max_duration_minutes"), 10_081),
        (("run", "surprise"), 1),
        (("tiers", 0, "name"), ""),
        (("tiers", 0, "tier_index"), -1),
        (("tiers", 0, "tier_index"), "0"),
        (("phases", 0, "phase_index"), 1.5),
        (("phases", 0, "complexity"), "huge"),
        (("phases", 0, "description"), "x" * 20_001),
        (("phases", 0, "description"), "a\0b"),
        (("phases", 0, "task_category"), "x\n"),
        (("phases", 0, "allowed_paths"), ["ok/**", "a\nb"]),
        (("phases", 0, "expected_issues"), ["k" * 201]),
    ],
)
def test_a_value_outside_its_limits_is_refused_naming_the_field(
    path: tuple[str | int, ...], value: object
) -> None:
    given = document()
    target: Any = given
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    with pytest.raises(ValidationError) as refusal:
        Plan.model_validate(given)
    (error,) = refusal.value.errors()
    assert error["loc"][: len(path)] == path


def test_a_plan_without_a_cap_of_money_has_the_document_that_it_always_had() -> None:
    """Its hash tells a plan that was sent before, also to an earlier release."""
    run = {"run_id": "run-1", "token_cap": 5}
    plain = PlanRun.model_validate(run).model_dump(mode="json")
    assert set(plain) == {
        *("run_id", "safety_profile", "run_scope"),
        *("token_cap", "max_phases", "max_duration_minutes"),
    }
    capped = PlanRun.model_validate({**run, "cost_cap_usd": "2.5"}).model_dump(mode="json")
    assert capped == {**plain, "cost_cap_usd": "2.500000"}
