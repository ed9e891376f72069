"""Phases side by side: what may start now, and what is taken off the branch. (rules §2.7)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from autopack.domain.judging import reason_of
from autopack.domain.order import (
    ci_turn,
    is_alone,
    may_start,
    to_undo,
    unjudged_before,
    waits_of,
)
from autopack.domain.paths import may_overlap
from autopack.domain.plan import InvalidPlanError, Plan, check_plan
from autopack.domain.ruleset import Ruleset
from autopack.domain.run import CompletedBy
from autopack.domain.states import PhaseStatus
from autopack.domain.terms import RunScope, Verdict

if TYPE_CHECKING:
    from tests.domain.conftest import Start

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 26, tzinfo=UTC)


@dataclass(frozen=True)
class P:
    """A phase as its order sees it: `T0` of `a` is in tier 0."""

    phase_id: str
    depends_on: Sequence[str] | None = ()
    paths: str | None = None
    state: PhaseStatus = PhaseStatus.QUEUED
    tier_index: int = 0
    phase_index: int = 0
    allow_empty: bool = False
    approvals_needed: int = 1
    started_at: datetime | None = None
    before_commit: str | None = None
    branch_place: int = 0
    completed_by: CompletedBy | None = None
    verdict: Verdict | None = None

    @property
    def allowed_paths(self) -> Sequence[str] | None:
        return None if self.paths is None else self.paths.split()


@dataclass(frozen=True)
class R:
    phases: Sequence[P]
    is_parallel: bool = True
    run_scope: RunScope = RunScope.MULTI_TIER


def numbered(*phases: P) -> list[P]:
    return [P(**{**vars(phase), "phase_index": at}) for at, phase in enumerate(phases)]


def run(*phases: P, is_parallel: bool = True, scope: RunScope = RunScope.MULTI_TIER) -> R:
    return R(numbered(*phases), is_parallel, scope)


def ready(given: R) -> str:
    return " ".join(phase.phase_id for phase in may_start(given))


def executing(name: str, paths: str | None = None, **more: object) -> P:
    state = more.pop("state", PhaseStatus.EXECUTING)
    return P(name, paths=paths, state=state, started_at=NOW, **more)  # type: ignore[arg-type]


def done(name: str) -> P:
    return P(name, state=PhaseStatus.COMPLETE, started_at=NOW)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        # Without depends_on: one after the other, as ever.
        (run(P("a", None), P("b", None)), "a"),
        (run(done("a"), P("b", None), P("c", None)), "b"),
        (run(executing("a", "x/**"), P("b", None, "y/**")), ""),
        # What the plan names, and nothing else.
        (run(P("a"), P("b", ["a"]), P("c")), "a c"),
        (run(executing("a", "x/**"), P("b", ["a"], "x/**"), P("c", [], "y/**")), "c"),
        (run(done("a"), P("b", ["a"]), P("c", ["a"])), "b c"),
        # A phase without depends_on waits for all before it, also for those side by side.
        (run(executing("a", "x/**"), done("b"), P("c", None, "z/**")), ""),
        # Paths that may overlap, or none.
        (run(executing("a", "x/**"), P("b", [], "x/y.py")), ""),
        (run(executing("a"), P("b", [], "x/y.py")), ""),
        (run(executing("a", "x/**"), P("b")), ""),
        # Between two tries a phase keeps its paths.
        (run(executing("a", "x/**", state=PhaseStatus.QUEUED), P("b", [], "x/**")), "a"),
        # Phases that are never beside another one.
        (run(executing("a", "x/**"), P("b", [], "y/**", allow_empty=True)), ""),
        (run(executing("a", "x/**", approvals_needed=2), P("b", [], "y/**")), ""),
        # Unfinished work on the branch is not built on; what waits for CI is.
        (
            run(executing("a", "x/**", state=PhaseStatus.GATE, before_commit="0"), P("b", [], "y")),
            "",
        ),
        (
            run(
                executing("a", "x/**", state=PhaseStatus.CI_RUNNING, before_commit="0"),
                P("b", [], "y/**"),
            ),
            "b",
        ),
        # Switched off by the ruleset: in the plan's order.
        (run(P("a"), P("b"), is_parallel=False), "a"),
        (run(executing("a", "x/**"), P("b", [], "y/**"), is_parallel=False), ""),
    ],
)
def test_what_may_start_now(given: R, wanted: str) -> None:
    assert ready(given) == wanted


def test_tiers_are_strictly_in_order_unless_the_scope_is_multi_tier() -> None:
    phases = [P("a", [], "x/**"), P("b", [], "y/**", tier_index=1)]
    assert ready(R(phases)) == "a b"
    assert ready(R(phases, run_scope=RunScope.INCREMENTAL)) == "a"


def test_waits_name_what_is_waited_for_and_why() -> None:
    given = run(executing("a", "x/**"), P("b", ["a"], "y"), P("c", [], "x/z"), P("d", None))
    named = {
        name: [(wait.phase_id, str(wait.cause)) for wait in waits]
        for name, waits in waits_of(given).items()
    }
    assert named == {"b": [("a", "order")], "c": [("a", "paths")], "d": [("a", "order")]}


def test_a_wide_and_deep_graph_is_read_in_linear_time() -> None:
    wide = [P(f"w{n}", [f"w{n - 1}"] if n else []) for n in range(3_000)]
    assert ready(run(*wide)) == "w0"
    every = [P(f"e{n}", [f"w{m}" for m in range(0, 3_000, 30)]) for n in range(100)]
    assert ready(run(*wide, *every)) == "w0"


@pytest.mark.parametrize(
    ("one", "other", "overlap"),
    [
        ("src/a/**", "src/b/**", False),
        ("src/a/**", "SRC/A/x.py", True),
        ("src/**", "src/a/b/c.py", True),
        ("**/x.py", "docs/y.md", True),  # in doubt
        ("a*.py", "b*.py", False),
        ("*a.py", "*b.py", False),
        ("a*.py", "ab*", True),
        ("a?c", "abd", False),
        ("a", "a/b", True),  # a file cannot be a folder too
        ("a/b", "a/c", False),
        ("docs/*.md", "docs/*.txt", False),
        ("caf\u00e9", "cafe\u0301", True),
    ],
)
def test_globs_that_may_overlap(one: str, other: str, overlap: bool) -> None:
    assert may_overlap((one,), (other,)) is overlap
    assert may_overlap((other,), (one,)) is overlap
    assert not may_overlap((), (one,))


def test_a_phase_is_alone_while_no_other_may_be_beside_it() -> None:
    queue = PhaseStatus.QUEUED
    red = executing("a", "x/**", state=queue, before_commit="0")
    assert is_alone(run(red, P("b", ["a"])), "a")
    assert is_alone(run(red, P("b", [], "x/**")), "a")
    assert not is_alone(run(red, P("b", [], "y/**")), "a")
    assert not is_alone(run(red, executing("b", "y/**")), "a")
    assert is_alone(run(red, executing("b", "y/**"), is_parallel=False), "a")


def test_what_failed_or_is_built_again_beside_others_leaves_the_branch() -> None:
    def a(state: PhaseStatus) -> P:
        return executing("a", "x/**", state=state, before_commit="0", branch_place=1)

    beside = executing("b", "y/**")
    ci, queued, gate = PhaseStatus.CI_RUNNING, PhaseStatus.QUEUED, PhaseStatus.GATE

    def names(before: R, after: R) -> list[str]:
        return [phase.phase_id for phase in to_undo(before, after)]

    assert names(run(a(ci), beside), run(a(queued), beside)) == ["a"]
    assert names(run(a(ci), beside), run(a(gate), beside)) == ["a"]
    assert names(run(a(ci)), run(a(queued))) == []  # alone: the next try builds on it
    assert names(run(a(ci), beside), run(a(PhaseStatus.FAILED), beside)) == ["a"]
    assert names(run(a(ci), beside), run(a(PhaseStatus.COMPLETE), beside)) == []
    skipped = a(PhaseStatus.SKIPPED)
    assert names(run(a(ci), beside), run(skipped, beside)) == []  # by the end of the run
    by_hand = replace(skipped, completed_by=CompletedBy.HAND)
    assert names(run(a(ci), beside), run(by_hand, beside)) == ["a"]
    assert names(run(a(ci)), run(by_hand)) == ["a"]
    assert names(run(by_hand, beside), run(by_hand, beside)) == []
    # The latest first: each undo is of what is then the last on the branch.
    later = replace(beside, state=ci, before_commit="1", branch_place=2)
    failed = (replace(each, state=PhaseStatus.FAILED) for each in (a(ci), later))
    assert names(run(a(ci), later), run(*failed)) == ["b", "a"]


HAND, RULES_ENDED = CompletedBy.HAND, CompletedBy.RULES
GREEN, RED = Verdict.GREEN, Verdict.RED


@pytest.mark.parametrize(
    ("others", "named"),
    [
        ([], ""),
        ([(1, HAND, None)], "p1"),
        ([(2, HAND, None), (1, HAND, RED)], "p1 p2"),  # in the order of the branch
        ([(1, RULES_ENDED, GREEN)], ""),
        ([(1, RULES_ENDED, None)], ""),  # its profile has no CI
        ([(1, HAND, GREEN)], ""),
        # The verdict on a later commit covers what is before that, and not what is after it.
        ([(1, HAND, None), (2, RULES_ENDED, GREEN)], ""),
        ([(1, RULES_ENDED, GREEN), (2, HAND, None)], "p2"),
        ([(1, HAND, None), (2, RULES_ENDED, RED)], "p1"),
        ([(6, HAND, None)], ""),  # after the judged commit
        ([(6, RULES_ENDED, GREEN), (1, HAND, None)], "p1"),
    ],
)
def test_commits_completed_by_hand_stay_unjudged_until_a_later_green_verdict(
    others: list[tuple[int, CompletedBy, Verdict | None]], named: str
) -> None:
    before = [
        replace(
            done(f"p{place}"),
            before_commit="0",
            branch_place=place,
            completed_by=by,
            verdict=verdict,
        )
        for place, by, verdict in others
    ]
    judged = executing("x", state=PhaseStatus.CI_RUNNING, before_commit="0", branch_place=5)
    undone = replace(done("u"), completed_by=HAND, branch_place=3)  # without commits
    found = unjudged_before(run(*before, undone, judged), judged)
    assert " ".join(phase.phase_id for phase in found) == named


def test_ci_judges_commits_in_the_order_of_the_branch() -> None:
    def at(name: str, place: int) -> P:
        return executing(name, name, state=PhaseStatus.CI_RUNNING, branch_place=place)

    turn = ci_turn(run(at("a", 3), at("b", 2), P("c")))
    assert turn is not None
    assert turn.phase_id == "b"
    assert ci_turn(run(P("a"))) is None


# The plan


def plan(*phases: tuple[str, list[str] | None]) -> Plan:
    return Plan.model_validate(
        {
            "run": {"run_id": "run-1"},
            "tiers": [{"tier_id": "T", "tier_index": 0, "name": "T"}],
            "phases": [
                {
                    "phase_id": name,
                    "phase_index": at,
                    "tier_id": "T",
                    "name": name,
                    **({} if depends_on is None else {"depends_on": depends_on}),
                }
                for at, (name, depends_on) in enumerate(phases)
            ],
        }
    )


RULES = Ruleset(project_id="Shop")


@pytest.mark.parametrize(
    ("phases", "place", "why"),
    [
        ([("a", []), ("b", ["a", "a"])], "phases[1].depends_on[1]", "'a' is named twice"),
        ([("a", ["a"])], "phases[0].depends_on[0]", "phase 'a' cannot depend on itself"),
        ([("a", ["x"])], "phases[0].depends_on[0]", "'x' is not a phase of the plan"),
        ([("a", ["b"]), ("b", [])], "phases[0].depends_on[0]", "'b' comes later than 'a'"),
        (
            [("a", ["c"]), ("b", ["a"]), ("c", ["b"])],
            "phases[0].depends_on[0]",
            "'a' and 'c' are part of a cycle",
        ),
    ],
)
def test_a_wrong_dependency_is_refused_by_name(
    phases: list[tuple[str, list[str] | None]], place: str, why: str
) -> None:
    with pytest.raises(InvalidPlanError) as caught:
        check_plan(plan(*phases), RULES)
    errors: Any = caught.value.extra["errors"]
    first = errors[0]
    assert first["loc"] == place
    assert why in first["message"]


def test_dependencies_on_earlier_phases_are_accepted_and_an_old_plan_has_the_same_document() -> (
    None
):
    check_plan(plan(("a", None), ("b", []), ("c", ["a", "b"])), RULES)
    document = plan(("a", None)).model_dump(mode="json")
    assert "depends_on" not in document["phases"][0]


@pytest.mark.parametrize(
    ("by_hand", "named"),
    [
        (0, ""),
        (1, "'P1'"),
        (5, "'P1', 'P2', 'P3', 'P4', 'P5'"),
        (6, "'P1', 'P2', 'P3', 'P4', 'P5' and 1 more"),
    ],
)
def test_a_red_verdict_names_the_first_five_phases_that_no_ci_has_judged(
    start: Start, by_hand: int, named: str
) -> None:
    run = start({"T1": tuple(f"P{place}" for place in range(1, 8))}).run
    phases = [
        replace(
            phase,
            state=PhaseStatus.COMPLETE,
            completed_by=HAND,
            before_commit="0",
            branch_place=place,
        )
        for place, phase in enumerate(run.phases[:by_hand], 1)
    ]
    judged = replace(run.phases[6], state=PhaseStatus.CI_RUNNING, before_commit="0", branch_place=9)
    run = replace(run, phases=(*phases, judged))
    said = reason_of(run, "P7", Verdict.RED, "a test failed")
    assert said.partition("no CI has judged: ")[2] == named
    assert said.startswith("a test failed")
    assert reason_of(run, "P7", Verdict.GREEN, "all passed") == "all passed"
