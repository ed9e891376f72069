"""Every broken set-up and cheating agent of the corpus is seen, and no honest change is refused.

The outcomes of the commands are recorded, `python benchmarks/evidence.py` runs them again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .corpus import CASES, Case
from .judging import Recorded, judge, refused_by, run_now, seen_by
from .table import table

pytestmark = pytest.mark.unit

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "evidence.md"
BAD = [case for case in CASES if not case.is_honest]
HONEST = [case for case in CASES if case.is_honest]


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


def test_the_corpus_is_large_enough() -> None:
    assert len({case.id for case in BAD}) == len(BAD) >= 30
    assert len({case.id for case in HONEST}) == len(HONEST) >= 30


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_a_bad_case_is_seen_with_its_reason(case: Case, recorded: Recorded) -> None:
    found = judge(case, recorded)
    seen = seen_by(found)
    assert seen, found
    assert all(found[name][1] for name in seen)


@pytest.mark.parametrize("case", HONEST, ids=lambda case: case.id)
def test_an_honest_change_is_not_refused(case: Case, recorded: Recorded) -> None:
    found = judge(case, recorded)
    assert found["command"][0] == "passed"
    assert refused_by(found) == []


def test_the_table_of_the_documentation_is_what_was_seen(recorded: Recorded) -> None:
    lines = "\n".join(table({case: judge(case, recorded) for case in CASES}))
    assert lines in DOCUMENT.read_text(), "run `python benchmarks/evidence.py`"


@pytest.mark.parametrize("name", ["shell: assert weakened", "shell: feature with tests"])
def test_some_cases_run_for_real(name: str, recorded: Recorded) -> None:
    (case,) = [each for each in CASES if each.id == name]
    assert judge(case, run_now) == judge(case, recorded)


@pytest.mark.probes
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_the_recorded_outcomes_are_those_of_today(case: Case, recorded: Recorded) -> None:
    program = {"javascript": "node", "c": "cc"}.get(case.project.language, "sh")
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")
    now = {name: result for name, (result, _) in judge(case, run_now).items()}
    assert now == {name: result for name, (result, _) in judge(case, recorded).items()}
