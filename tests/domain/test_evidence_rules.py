"""What the outcomes of CI's command on several trees mean. (rules §6.1)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from autopack.domain.evidence import (
    MAX_EVIDENCE_CHECKS,
    MAX_EVIDENCE_TEXT,
    Evidence,
    missing_evidence,
)
from autopack.domain.evidence_rules import (
    CaseState,
    Judged,
    Measured,
    conclude,
    entry,
    judge_base_tests,
    judge_baseline,
    judge_fails_before,
    judge_seeded_faults,
    merged,
    named,
)
from autopack.domain.fault_terms import FaultOperator
from autopack.domain.faults import Fault
from autopack.domain.terms import EvidenceKind, EvidenceResult, Verdict

pytestmark = pytest.mark.unit

GREEN, RED, DID_NOT_RUN = Verdict.GREEN, Verdict.RED, Verdict.DID_NOT_RUN
SIGNS: Mapping[str, CaseState] = {
    "+": CaseState.PASSED,
    "-": CaseState.FAILED,
    "s": CaseState.SKIPPED,
    "x": CaseState.XFAILED,
}


def measured(cases: str | None, status: int | None = None, **fields: Any) -> Measured:
    """Make an outcome from its tests, such as `a+ b- c.s`."""
    states = None if cases is None else {each[:-1]: SIGNS[each[-1]] for each in cases.split()}
    is_red = CaseState.FAILED in (states or {}).values()
    status = int(is_red) if status is None else status
    return Measured(
        **{
            "tree": "1" * 40,
            "verdict": RED if status else GREEN,
            "reason": f"exit {status}",
            "exit_status": status,
            "cases": states,
            **fields,
        }
    )


def judged(head: Measured) -> Judged:
    return Judged(verdict=head.verdict, reason=head.reason, failing_checks=head.failing)


@pytest.mark.parametrize(
    ("base", "head", "verdict", "result", "reason", "failing"),
    [
        ("a+", "a+", GREEN, "passed", "exit 0", ()),
        ("a+", "a-", RED, "passed", "exit 1", ("a",)),
        ("a- b+", "a+ b+", GREEN, "passed", "exit 0", ()),
        ("a- b+", "a- b+", GREEN, "passed", "no check broke; 1 check was red before: a", ()),
        ("a- b- c+", "a- b+ c+", GREEN, "passed", "2 checks were red before: a, b", ()),
        ("a- b+", "a- b-", RED, "passed", "1 check broke: b; 1 check was red before: a", ("b",)),
        ("a- b+", "a- new-", RED, "passed", "1 check broke: new", ("new",)),
        ("a- b+", "a-", RED, "passed", "1 tests ran, on the base 2", ()),
    ],
)
def test_a_phase_is_red_for_what_it_broke(
    base: str, head: str, verdict: Verdict, result: str, reason: str, failing: tuple[str, ...]
) -> None:
    outcome = measured(head)
    found, evidence = judge_baseline(
        measured(base), outcome, judged(outcome), is_strict=False, command="make test"
    )
    assert (found.verdict, evidence.result, found.failing_checks) == (verdict, result, failing)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("base", "head", "verdict", "result"),
    [
        # Another exit status: something beside the tests is wrong.
        (measured("a- b+"), measured("a- b+", 3), RED, "passed"),
        # It was stopped.
        (measured("a- b+"), measured("a- b+", 1, exit_status=None), RED, "passed"),
        # No report names the checks.
        (measured(None, 1), measured(None, 1), RED, "not_measured"),
        (measured(None, 1), measured(None, 0), GREEN, "passed"),
        (measured("a- b+"), measured(None, 1), RED, "passed"),
        # The command does not run on the base.
        (measured(None, 127, verdict=DID_NOT_RUN), measured("a+"), GREEN, "not_measured"),
    ],
)
def test_a_red_commit_is_excused_by_nothing_but_names(
    base: Measured, head: Measured, verdict: Verdict, result: str
) -> None:
    found, evidence = judge_baseline(base, head, judged(head), is_strict=False, command="make test")
    assert (found.verdict, evidence.result) == (verdict, result)


def test_a_strict_baseline_wants_red_checks_mended() -> None:
    head = measured("a- b+")
    found, evidence = judge_baseline(
        measured("a- b+"), head, judged(head), is_strict=True, command="make test"
    )
    assert (found.verdict, evidence.result) == (RED, "failed")
    assert found.failing_checks == ("a",)
    assert "still: a; ci.baseline is strict" in found.reason


@pytest.mark.parametrize(
    ("base", "head", "old", "result", "checks"),
    [
        ("a+ b+", "a+ b+", None, "not_needed", ()),
        ("a+ b+", "a+ b+", "a+ b+", "passed", ()),
        # Weakened: the old test is red on the new code.
        ("a+ b+", "a+ b+", "a- b+", "failed", ("a",)),
        ("a+ b+", "a+ b+", "as b+", "failed", ("a",)),
        ("a+ b+", "a+ b+", "ax b+", "failed", ("a",)),
        # It was red before: known.
        ("a- b+", "a+ b+", "a- b+", "passed", ()),
        # Deleted or renamed.
        ("a+ b+", "a+", "a+ b+", "failed", ("b",)),
        ("a+ b+", "a+ c+", "a+ b+", "passed", ()),
        ("a+ b+", "a+ c+", "a+ b-", "failed", ("b",)),
        # Skipped, or expected to fail.
        ("a+ b+", "a+ bs", None, "failed", ("b",)),
        ("a+ b+", "a+ bx", "a+ b+", "failed", ("b",)),
        ("a+ bs", "a+ bs", None, "not_needed", ()),
        # The files of the base cannot be loaded.
        ("tests.t.a+ b+", "tests.t.a+ b+", "tests.t-", "failed", ("tests.t.a",)),
        ("a+ b+", "a+ b+", "collection-", "failed", ("a", "b")),
        # Deselected by a configuration, beside added tests.
        ("a+ b+", "a+ new+", "a+", "failed", ("b",)),
        # Names that differ from run to run.
        ("a[0x1]+ b+", "a[0x2]+ b+", "a[0x3]+ b+", "passed", ()),
        ("a[0x1]+ b-", "a[0x2]+ b-", "a[0x3]+ b-", "passed", ()),
        # No test was green on the base.
        ("a-", "a+", "a-", "not_needed", ()),
        ("", "a+", None, "not_needed", ()),
    ],
)
def test_a_test_that_was_green_on_the_base_must_be_green(
    base: str, head: str, old: str | None, result: str, checks: tuple[str, ...]
) -> None:
    found = judge_base_tests(
        measured(base),
        measured(head),
        None if old is None else measured(old),
        restored=["tests/t.py"],
        expected=[],
        command="make test",
    )
    assert (found.result, found.checks) == (result, checks)


@pytest.mark.parametrize(
    ("base", "head", "old", "told"),
    [
        ("a+ b-", "a+ b+", "a+ b-", True),
        ("b-", "b+", "b-", True),
        ("a+ b-", "a+ b+", "a+ b+", False),  # the code mends it
        ("a+ b-", "a+ b-", "a+ b-", False),
        ("a+ b-", "a+", "a+ b-", False),
    ],
)
def test_a_red_test_that_only_its_change_made_green_is_named(
    base: str, head: str, old: str, told: bool
) -> None:
    found = judge_base_tests(
        measured(base),
        measured(head),
        measured(old),
        restored=["t.py"],
        expected=[],
        command="make test",
    )
    assert found.result == ("passed" if "a+" in base else "not_needed")
    assert found.reason.endswith("1 test that was red there, green only as changed: b") == told


@pytest.mark.parametrize(
    ("expected", "result", "checks"),
    [
        ([], "failed", ("a", "b")),
        (["weakened_test__a"], "failed", ("b",)),
        (["weakened_test__a", "weakened_test__b"], "warned", ("a", "b")),
        (["weakened_test__*"], "warned", ("a", "b")),
        (["*"], "failed", ("a", "b")),
    ],
)
def test_a_plan_may_expect_that_tests_change(
    expected: list[str], result: str, checks: tuple[str, ...]
) -> None:
    found = judge_base_tests(
        measured("a+ b+ c+"),
        measured("a+ b+ c+"),
        measured("a- b- c+"),
        restored=["t.py"],
        expected=expected,
        command="make test",
    )
    assert (found.result, found.checks) == (result, checks)


@pytest.mark.parametrize(
    ("base", "old"),
    [
        (measured(None, 1), None),
        (measured(None, 127, verdict=DID_NOT_RUN), None),
        (measured("a+"), measured(None, 127, verdict=DID_NOT_RUN)),
    ],
)
def test_what_cannot_be_compared_is_not_measured(base: Measured, old: Measured | None) -> None:
    found = judge_base_tests(
        base, measured("a+"), old, restored=["t.py"], expected=[], command="make test"
    )
    assert found.result == "not_measured"


def test_a_report_of_the_old_tests_that_cannot_be_read_excuses_nothing() -> None:
    found = judge_base_tests(
        measured("a+"),
        measured("a+"),
        measured(None, 1),
        restored=["t.py"],
        expected=[],
        command="make test",
    )
    assert (found.result, found.checks) == ("failed", ("a",))


@pytest.mark.parametrize(
    ("before", "head", "is_required", "result", "checks"),
    [
        (None, "a+", False, "not_needed", ()),
        (measured("new- a+"), "new+ a+", True, "passed", ("new",)),
        (measured("new- a+"), "new+ a+", False, "passed", ("new",)),
        # It passes without the change too.
        (measured("new+ a+"), "new+ a+", True, "failed", ()),
        (measured("new+ a+"), "new+ a+", False, "warned", ()),
        # A known check that is mended, without a new test.
        (measured("old- a+"), "old+ a+", True, "passed", ("old",)),
        (measured("old- a+"), "old- a+", True, "failed", ()),
        # It cannot be loaded without the change.
        (measured("collection-"), "new+", True, "passed", ("new",)),
        (measured("", 4), "new+", True, "passed", ("new",)),
        # It is not there without the change, and nothing is red.
        (measured("a+"), "new+ a+", True, "failed", ()),
        # It ran out of time: no test is red.
        (measured("a+", 1, exit_status=None), "new+ a+", True, "failed", ()),
        # It ran out of time after a red test: the tests that are missing are not red.
        (measured("a-", 1, exit_status=None), "new+ a+", True, "passed", ("a",)),
        (measured(None, 127, verdict=DID_NOT_RUN), "new+", True, "not_measured", ()),
        (measured(None, 1), "new+", True, "not_measured", ()),
        # Names that differ from run to run, beside a known red test.
        (measured("a[0x1]+ old-"), "a[0x2]+ old-", True, "failed", ()),
        # Skipped before is not red.
        (measured("news"), "new+", True, "failed", ()),
    ],
)
def test_a_change_is_proven_by_a_test_that_fails_without_it(
    before: Measured | None, head: str, is_required: bool, result: str, checks: tuple[str, ...]
) -> None:
    found = judge_fails_before(before, measured(head), is_required=is_required, command="make test")
    assert (found.result, found.checks) == (result, checks)


def test_no_entry_that_speaks_against_the_change_leaves_a_verdict_green() -> None:
    refuting = entry(EvidenceKind.BASELINE, EvidenceResult.FAILED, "why", checks=["a"])
    green = Judged(verdict=GREEN, reason="exit 0")
    assert conclude(green, []) == green
    assert conclude(green, [refuting]) == Judged(
        verdict=RED, reason="baseline failed: why", failing_checks=("a",)
    )
    red = Judged(verdict=RED, reason="exit 1", failing_checks=("b",))
    assert conclude(red, [refuting]) == red  # its own reason stays


def test_a_test_that_passed_once_is_flaky_not_red() -> None:
    found = merged([measured("a- b-"), measured("a+ b-")])
    assert (found.failing, found.is_flaky) == (("b",), True)
    assert not merged([measured("a- b+"), measured("a- b+")]).is_flaky


def test_an_entry_has_a_bounded_size_and_reads_back() -> None:
    names = [f"test_{number}" for number in range(1_000)]
    made = entry(
        EvidenceKind.BASELINE,
        EvidenceResult.PASSED,
        "long \n" * 1_000,
        command="x" * 10_000,
        on=measured("a+ b- c.s"),
        checks=names,
    )
    assert (len(made.checks), made.checks_count) == (MAX_EVIDENCE_CHECKS, 1_000)
    assert len(made.reason) == len(str(made.command)) == MAX_EVIDENCE_TEXT
    assert dict(made.counts) == {"total": 3, "passed": 1, "failed": 1, "skipped": 1}
    assert Evidence.read(made.document()) == made


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "magic"},
        {"result": "fine"},
        {"reason": None},
        {"counts": {"total": -1}},
        {"counts": {"total": True}},
        {"counts": {str(number): 1 for number in range(100)}},
        {"checks": ["a"] * 100},
        {"checks": [1]},
        {"checks": "abc"},
        {"more": 1},
    ],
)
def test_a_forged_entry_is_not_read(change: dict[str, Any]) -> None:
    made = entry(EvidenceKind.BASELINE, EvidenceResult.PASSED, "fine").document()
    with pytest.raises((TypeError, ValueError)):
        Evidence.read({**made, **change})


@pytest.mark.parametrize(
    ("result", "missing"),
    [
        (None, ["baseline is missing"]),
        (EvidenceResult.PASSED, []),
        (EvidenceResult.WARNED, []),
        (EvidenceResult.NOT_NEEDED, []),
        (EvidenceResult.NOT_MEASURED, ["baseline not measured: why"]),
        (EvidenceResult.FAILED, ["baseline failed: why"]),
    ],
)
def test_what_a_green_verdict_lacks(result: EvidenceResult | None, missing: list[str]) -> None:
    found = [] if result is None else [entry(EvidenceKind.BASELINE, result, "why")]
    assert [*missing_evidence([EvidenceKind.BASELINE], found)] == missing


def faults(number: int) -> list[Fault]:
    return [
        Fault(
            path=f"shop/{index}.py",
            line=3,
            operator=FaultOperator.CHANGE_CONSTANT,
            before="return 3",
            after="return 4",
            content=b"",
        )
        for index in range(number)
    ]


SHOWN = "shop/0.py:3 change_constant (return 3 -> return 4)"


@pytest.mark.parametrize(
    ("seeded", "outcomes", "result", "reason"),
    [
        (0, [], "not_needed", "the phase changes no line of code to break"),
        (2, ["a- b+", "a+ b-"], "passed", "2 of 2 seeded faults noticed"),
        (2, ["a+ b+", "a+ b-"], "passed", f"1 of 2 seeded faults noticed; not noticed: {SHOWN}"),
        (2, ["a+ b+", "a+ b+"], "warned", f"green with each of 2 seeded faults: {SHOWN}"),
        (1, ["a+ b+"], "warned", f"green with the seeded fault: {SHOWN}"),
        (3, ["a-"], "passed", "1 of 1 seeded faults noticed"),
        (3, ["a+ b+"], "not_measured", "over its budget: 2 of 3 seeded faults are left"),
        (3, [], "not_measured", "over its budget: 3 of 3 seeded faults are left"),
        (2, ["collection-", ""], "not_needed", "every seeded fault broke the build"),
        (2, ["collection-", "a+ b+"], "warned", "green with the seeded fault: shop/1.py:3"),
    ],
)
def test_a_command_that_notices_no_seeded_fault_is_deaf(
    seeded: int, outcomes: list[str], result: str, reason: str
) -> None:
    head = measured("a+ b+")
    found = [measured(each, None if each else 1) for each in outcomes]
    entry = judge_seeded_faults(faults(seeded), found, head, is_red=False, command="c")
    assert (entry.result, reason in entry.reason) == (result, True), entry.reason
    assert len(entry.checks) == seeded
    strict = judge_seeded_faults(faults(seeded), found, head, is_red=True, command="c")
    assert strict.result == ("failed" if result == "warned" else result)


def test_without_reports_every_red_outcome_is_a_noticed_fault() -> None:
    found = [measured(None, 1), measured(None, 2)]
    entry = judge_seeded_faults(faults(2), found, measured(None), is_red=True, command="c")
    assert entry.result is EvidenceResult.PASSED
    assert entry.checks[0] == "shop/0.py:3 change_constant: noticed"


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 red"),
        (1, "1 red: t0"),
        (5, "5 red: t0, t1, t2, t3, t4"),
        (6, "6 red: t0, t1, t2, t3, t4 and 1 more"),
    ],
)
def test_the_first_five_checks_are_named(count: int, said: str) -> None:
    assert named(count, "red", [f"t{number}" for number in range(count)]) == said
