"""Which issues a plan lets pass. (rules §6.1, §7)"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from autopack.domain.issues import expected_in, is_expected_key
from autopack.domain.states import PhaseStatus

pytestmark = pytest.mark.unit


@dataclass(frozen=True)
class Expecting:
    state: PhaseStatus
    expected_issues: tuple[str, ...]


def test_a_phase_lets_pass_its_own_issues_and_those_of_complete_phases() -> None:
    own = Expecting(PhaseStatus.CI_RUNNING, ("own",))
    others = [Expecting(state, (str(state),)) for state in PhaseStatus]
    assert expected_in(own, [*others, own]) == (PhaseStatus.COMPLETE, "own")


@pytest.mark.parametrize(
    ("key", "expected", "is_expected"),
    [
        ("flaky", ("flaky",), True),
        ("flaky", ("other",), False),
        ("weakened_test__a", ("weakened_test__a",), True),
        ("weakened_test__a", ("weakened_test__b",), False),
        ("weakened_test__a", ("weakened_test__*",), True),
        ("flaky", ("*",), False),
    ],
)
def test_an_expected_issue_is_named_and_weakened_tests_may_be_all_together(
    key: str, expected: tuple[str, ...], is_expected: bool
) -> None:
    assert is_expected_key(key, expected) is is_expected
