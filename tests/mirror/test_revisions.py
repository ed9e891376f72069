"""No writer puts an older state over a newer one."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from autopack.mirror import Mirror
from autopack.views.issues import IssueIndexAnswer, PhaseIssue
from autopack.views.runs import PhaseDetail, RunDetail

pytestmark = pytest.mark.integration

MIRROR_TESTS = Path(__file__).resolve().parent
SOURCE = MIRROR_TESTS.parents[1] / "src"
MakeRun = Callable[..., RunDetail]
MakePhase = Callable[..., PhaseDetail]
MakeIssue = Callable[..., PhaseIssue]


def revisions(run: Path) -> dict[str, int]:
    """Read the machine-readable revision of every file of a run."""
    found = {}
    for path in run.rglob("*"):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_text())["revision"]
        elif path.suffix == ".md":
            stamp = re.match(r"<!-- autopack revision=(\d+) ", path.read_text())
            assert stamp, path
            found[path.name] = int(stamp[1])
    return found


@pytest.mark.parametrize(
    ("standing", "given", "left"),
    [
        (None, 1, 1),
        (1, 2, 2),
        (2, 2, 2),
        (3, 2, 3),
        (10, 9, 10),
    ],
)
def test_a_newer_revision_replaces_and_an_older_one_does_not(
    mirror: Mirror,
    a_run: MakeRun,
    a_phase: MakePhase,
    an_issue: MakeIssue,
    standing: int | None,
    given: int,
    left: int,
) -> None:
    phases = [a_phase(issues=[an_issue()])]
    index = IssueIndexAnswer(run_id="run-001", issues_by_key={})
    if standing is not None:
        mirror.write_run(a_run(phases, revision=standing), index=index)
    mirror.write_run(a_run(phases, revision=given), index=index)
    assert revisions(mirror.folder("run-001")) == dict.fromkeys(
        (
            "run_summary.md",
            "tier_0_T1.md",
            "phase_0_P1.1.md",
            "phase_0_P1.1_issues.json",
            "run_issue_index.json",
        ),
        left,
    )


def test_writing_the_same_revision_repairs_changed_files(mirror: Mirror, a_run: MakeRun) -> None:
    mirror.write_run(a_run(revision=4))
    page = mirror.folder("run-001") / "phases" / "phase_0_P1.1.md"
    page.write_text("scribble")
    mirror.write_run(a_run(revision=4))
    assert "# Phase" in page.read_text()


def test_a_writer_that_was_overtaken_still_writes_what_the_other_did_not(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    phases = [a_phase("P1.1"), a_phase("P2.1", tier=1, index=1)]
    mirror.write_run(a_run(phases, revision=1))
    mirror.write_run(a_run(phases, revision=3), phases={"P2.1"})
    mirror.write_run(a_run(phases, revision=2), phases={"P1.1", "P2.1"})
    assert revisions(mirror.folder("run-001")) == {
        "run_summary.md": 3,
        "tier_0_T1.md": 2,
        "tier_1_T2.md": 3,
        "phase_0_P1.1.md": 2,
        "phase_1_P2.1.md": 3,
        "phase_0_P1.1_issues.json": 1,  # no issue has changed since
        "phase_1_P2.1_issues.json": 1,
    }


def test_a_new_database_may_use_the_id_of_a_run_that_the_old_one_had(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, an_issue: MakeIssue
) -> None:
    old = a_run([a_phase("Old", index=7, issues=[an_issue()]), a_phase("P1.1")], revision=40)
    index = IssueIndexAnswer(run_id="run-001", issues_by_key={})
    mirror.write_run(old, index=index, documents={"incident.md": b"of the old run"})
    folder = mirror.folder("run-001")
    (folder / "my notes.md").write_text("the operator's")
    for path in folder.rglob("*.*"):
        os.utime(path, (old.created_at.timestamp(), old.created_at.timestamp()))

    new = a_run(revision=1, created_at=old.created_at + timedelta(days=1))
    mirror.write_run(new, documents={"project_implementation_strategy_v1.json": b"of the new run"})
    assert {path.name for path in folder.rglob("*.*")} == {
        "run_summary.md",
        "tier_0_T1.md",
        "phase_0_P1.1.md",
        "phase_0_P1.1_issues.json",
        "project_implementation_strategy_v1.json",
        "my notes.md",
    }
    mirror.write_run(old.model_copy(update={"revision": 41}))
    assert "revision=1 " in (folder / "run_summary.md").read_text()


def test_many_threads_leave_the_newest_state(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    run = a_run([a_phase(f"P{n}", index=n) for n in range(3)])
    numbers = list(range(1, 41))
    random.Random(7).shuffle(numbers)
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda number: mirror.write_run(run.model_copy(update={"revision": number})),
                numbers,
            )
        )
    assert set(revisions(mirror.folder("run-001")).values()) == {40}


def test_two_processes_leave_the_newest_state(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    """While both write, every file is whole at any moment and no page goes back."""
    script = """
import sys
from dataclasses import replace
from pathlib import Path
from conftest import make_phase, make_run
from autopack.mirror import Mirror
mirror = Mirror(Path(sys.argv[1]))
run = make_run([make_phase("P1.1"), make_phase("P1.2", index=1)])
for revision in range(int(sys.argv[2]), 121, 2):
    mirror.write_run(run.model_copy(update={"revision": revision}))
"""
    mirror.write_run(a_run([a_phase("P1.1"), a_phase("P1.2", index=1)], revision=0))
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(mirror.runs_dir), start],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{SOURCE}:{MIRROR_TESTS}"},
        )
        for start in ("1", "2")
    ]
    summary = mirror.folder("run-001") / "run_summary.md"
    seen = 0
    while any(process.poll() is None for process in processes):
        text = summary.read_text()
        stamp = re.match(r"<!-- autopack revision=(\d+) ", text)
        assert stamp
        assert text.endswith("\n")
        assert "## Details" in text
        assert int(stamp[1]) >= seen
        seen = int(stamp[1])
    assert [process.wait() for process in processes] == [0, 0]
    assert set(revisions(mirror.folder("run-001")).values()) == {120}
    assert not [name for name in os.listdir(summary.parent) if name.endswith(".tmp")]
