"""Many agents claim at once, over real sockets, and the service may die amid it. (rules §4)"""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.waiting import PATIENCE_SECONDS

from .test_parallel import all_at_once

if TYPE_CHECKING:
    from .conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]
PAUSE_SECONDS = 0.3


def plan(run_id: str, *categories: str) -> Json:
    return {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
        "phases": [
            {
                "phase_id": f"P{index}",
                "phase_index": index,
                "tier_id": "T1",
                "name": "Do it",
                "task_category": category,
            }
            for index, category in enumerate(categories)
        ],
    }


def work(item: Json) -> tuple[str, Json]:
    """Do what a work item asks for; the request that hands it in."""
    address = f"/runs/{item['run_id']}/phases/{item['phase_id']}"
    lease = {"lease_token": item["lease"]["token"], "tokens_used": 5}
    if item["role"] == "auditor":
        assert item["review"]["patch_content"]
        return f"{address}/auditor_result", {"recommendation": "approve", **lease}
    path = f"src/{item['phase_id']}.txt"
    patch = (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        f"@@ -0,0 +1 @@\n+{item['run_id']}\n"
    )
    return f"{address}/builder_result", {"status": "success", "patch_content": patch, **lease}


@dataclass
class Crew:
    """Agents who claim over all runs until that many phases are complete."""

    stage: Stage
    phases: int
    given: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    complete: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    has_failed: bool = False  # then the others would wait for phases that nobody completes

    def agent(self, number: int) -> None:
        try:
            self._work(number)
        except BaseException:
            self.has_failed = True
            raise

    def _work(self, number: int) -> None:
        role = "auditor" if number % 5 < 2 else "builder"
        ask = {"role": role, "agent": f"agent-{number}"}
        deadline = time.monotonic() + PATIENCE_SECONDS
        with httpx.Client(
            base_url=self.stage.url, timeout=PATIENCE_SECONDS, trust_env=False, verify=False
        ) as client:
            while self.complete < self.phases and not self.has_failed:
                assert time.monotonic() < deadline, f"{self.complete} of {self.phases}"
                claimed = client.post("/claim", json=ask)
                if claimed.status_code == 204:
                    time.sleep(PAUSE_SECONDS)
                    continue
                assert claimed.status_code == 200, claimed.text
                item = claimed.json()
                with self.lock:
                    self.given[role, item["run_id"], item["phase_id"]] += 1
                path, body = work(item)
                answer = client.post(path, json=body)
                assert answer.status_code == 200, answer.text
                with self.lock:
                    self.complete += answer.json()["phase_state"] == "COMPLETE"


@pytest.mark.parametrize(
    ("agents", "runs"), [(10, 4), pytest.param(50, 20, marks=pytest.mark.campaigns)]
)
def test_many_agents_take_every_phase_of_many_runs_once(
    stage: Stage, agents: int, runs: int
) -> None:
    names = [f"run-{number:03}" for number in range(runs)]
    longer = names[::4]
    for name in names:
        more = ["docs"] if name in longer else []
        stage.must("POST", "/runs/start", plan(name, "debt_cleanup", *more))
    crew = Crew(stage, phases=len(names) + len(longer))
    all_at_once(agents, crew.agent)
    expected = {(role, name, "P0") for name in names for role in ("builder", "auditor")}
    expected |= {("builder", name, "P1") for name in longer}
    assert crew.given == dict.fromkeys(expected, 1)
    for name in names:
        run = stage.must("GET", f"/runs/{name}")
        assert run["state"] == "DONE_SUCCESS"
        assert run["tokens_used"] == (15 if name in longer else 10)
        for phase in run["tiers"][0]["phases"]:
            assert phase["builder_attempts_used"] == 1
    stage.assert_consistent()


@pytest.mark.parametrize("path", ["/claim", "/runs/run-000/claim"])
@pytest.mark.parametrize(("step", "is_recorded"), [("leased", False), ("files_begun", True)])
def test_a_claim_that_is_sent_again_after_a_restart_gets_the_lease_that_was_recorded(
    stage: Stage, path: str, step: str, is_recorded: bool
) -> None:
    stage.must("POST", "/runs/start", plan("run-000", "docs"))
    stage.kill_at(step)
    ask = {"role": "builder", "agent": "agent"}
    with pytest.raises(httpx.TransportError):
        stage.call("POST", path, ask, "key")
    stage.await_death()
    stage.start()
    again = stage.call("POST", path, ask, "key")
    assert again.status_code == 200, again.text
    assert (again.headers.get("Idempotency-Replayed") == "true") == is_recorded
    stage.must("POST", *work(again.json()))
    run = stage.must("GET", "/runs/run-000")
    assert run["state"] == "DONE_SUCCESS"
    assert run["tiers"][0]["phases"][0]["builder_attempts_used"] == 1
    late = stage.call("POST", path, ask, "key")
    assert (late.status_code, late.json()["code"]) == (409, "lease_lost")
    stage.assert_consistent()


@pytest.mark.parametrize(
    "step", ["locked", pytest.param("files_begun", marks=pytest.mark.campaigns)]
)
def test_killed_amid_claims_it_goes_on_where_it_was(stage: Stage, step: str) -> None:
    names = [f"run-{number:03}" for number in range(6)]
    for name in names:
        stage.must("POST", "/runs/start", plan(name, "docs"))
    stage.kill_at(step, 3)
    answered = []

    def claim(number: int) -> None:
        ask = {"role": "builder", "agent": f"agent-{number}", "lease_seconds": 1}
        try:
            answered.append(stage.call("POST", f"/runs/{names[number]}/claim", ask).json())
        except httpx.TransportError:
            return

    all_at_once(len(names), claim)
    stage.await_death()
    stage.start()
    stage.assert_consistent()
    states = Counter(stage.must("GET", f"/runs/{name}")["state"] for name in names)
    assert states.keys() <= {"RUN_CREATED", "PHASE_EXECUTION", "PHASE_QUEUEING"}
    time.sleep(1)  # whose answer was lost, and who died, lets the lease lapse
    ask = {"role": "builder", "agent": "agent"}
    for item in answered:
        path, body = work(item)
        assert stage.call("POST", path, body).json()["code"] == "lease_lost"
    for name in names:
        item = stage.must("POST", f"/runs/{name}/claim", ask)
        stage.must("POST", *work(item))
        run = stage.must("GET", f"/runs/{name}")
        assert run["state"] == "DONE_SUCCESS"
        (phase,) = run["tiers"][0]["phases"]
        assert phase["builder_attempts_used"] == 3 - item["left"]["builder_attempts"]
    stage.assert_consistent()
