"""Many clients at once against the service as its users run it: a process, sockets, threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from .conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]
PHASES = 3


def plan(run_id: str) -> Json:
    return {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
        "phases": [
            {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T1", "name": "Do it"}
            for index in range(PHASES)
        ],
    }


def result(path: str, text: str) -> Json:
    patch = (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+{text}\n"
    )
    return {"status": "success", "patch_content": patch, "tokens_used": 5}


def all_at_once(calls: int, call: Any) -> list[Any]:
    """Make calls from as many threads, which wait for each other before they begin."""
    gate = threading.Barrier(calls)

    def wait_and_call(number: int) -> Any:
        gate.wait()
        return call(number)

    with ThreadPoolExecutor(calls) as pool:
        return list(pool.map(wait_and_call, range(calls)))


@pytest.mark.parametrize("runs", [6, pytest.param(20, marks=pytest.mark.campaigns)])
def test_many_runs_at_once_all_get_to_their_end_without_a_refusal(stage: Stage, runs: int) -> None:
    def drive(number: int) -> None:
        run_id = f"run-{number:03}"
        stage.must("POST", "/runs/start", plan(run_id))
        issue = {"issue_key": f"seen-{number}", "source": "test", "category": "test_failure"}
        for index in range(PHASES):
            path = f"/runs/{run_id}/phases/P{index}"
            stage.must("POST", f"{path}/record_issue", issue)
            stage.must("POST", f"{path}/builder_result", result(f"src/new{index}.txt", run_id))

    all_at_once(runs, drive)
    for number in range(runs):
        run_id = f"run-{number:03}"
        run = stage.must("GET", f"/runs/{run_id}")
        assert run["state"].startswith("DONE_"), run["state"]
        assert run["tokens_used"] == 5 * PHASES
        history = stage.repo.git("rev-list", "--parents", f"main..autonomous/{run_id}").splitlines()
        assert [len(line.split()) for line in history] == [2] * (PHASES + 1)  # and the record
    stage.assert_consistent()


def test_of_two_results_at_once_one_is_accepted_and_the_other_is_refused_with_the_reason(
    stage: Stage,
) -> None:
    stage.must("POST", "/runs/start", plan("run-001"))

    def submit(number: int) -> httpx.Response:
        body = result(f"src/by-{number}.txt", f"by {number}")
        return stage.call("POST", "/runs/run-001/phases/P0/builder_result", body)

    answers = all_at_once(2, submit)
    winner, loser = sorted(answers, key=lambda answer: answer.status_code)
    assert (winner.status_code, loser.status_code) == (200, 409), loser.text
    problem = loser.json()
    assert "P0" in problem["detail"]
    assert "COMPLETE" in problem["detail"]
    assert stage.repo.git("rev-parse", "autonomous/run-001") == winner.json()["commit_sha"]
    stage.assert_consistent()


def test_a_branch_moved_by_hand_amid_work_is_seen_and_never_overwritten(stage: Stage) -> None:
    """Another process moves one of several branches while patches arrive on all of them."""
    runs = 4
    for number in range(runs):
        stage.must("POST", "/runs/start", plan(f"run-{number:03}"))
    ref = "refs/heads/autonomous/run-000"
    theirs = stage.repo.git("commit-tree", "main^{tree}", "-p", "main", "-m", "Mine")

    def submit(number: int, phase_id: str) -> int:
        path = f"/runs/run-{number:03}/phases/{phase_id}/builder_result"
        return stage.call("POST", path, result(f"{phase_id}.txt", "x")).status_code

    def work(number: int) -> list[int]:
        if number == runs:  # waits for the service's lock, and then moves the branch
            stage.repo.git("-c", "core.filesRefLockTimeout=-1", "update-ref", ref, theirs)
            return []
        return [submit(number, phase_id) for phase_id in ("P0", "P1")]

    statuses = all_at_once(runs + 1, work)
    assert statuses[1:runs] == [[200, 200]] * (runs - 1)
    assert submit(0, "P2") == 409
    assert stage.repo.git("rev-parse", ref) == theirs
    run = stage.must("GET", "/runs/run-000")
    assert run["state"] == "DONE_FAILED_POLICY_VIOLATION"
    assert run["failure_code"] == "branch_moved"
    stage.assert_consistent()
