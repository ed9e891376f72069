"""Measure how much sooner a run ends whose phases are side by side.

    python benchmarks/parallel.py [--seconds 1.0] [--agents 4]

A run of 12 phases in 3 independent lanes is built twice over HTTP by agents that sleep: once with
`depends_on` and several agents, once without it by the same agents, who then have one phase at a
time. It prints both times and their ratio, which must be below 0.5. `src/autopack` must be
importable.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx
from history import BASE, git, serve

LANES, DEPTH, MOST = "abc", 4, 0.5


def plan(run_id: str, *, is_parallel: bool) -> dict[str, Any]:
    """Return a plan of 12 phases: three lanes of four, each in a folder of its own."""
    phases = []
    for step in range(DEPTH):
        for at, lane in enumerate(LANES):
            phase = {
                "phase_id": f"{lane}{step}",
                "phase_index": step * len(LANES) + at,
                "tier_id": "T1",
                "name": f"Step {step} of lane {lane}",
                "allowed_paths": [f"{lane}/**"],
            }
            if is_parallel:
                phase["depends_on"] = [f"{lane}{step - 1}"] if step else []
            phases.append(phase)
    tiers = [{"tier_id": "T1", "tier_index": 0, "name": "All"}]
    return {"run": {"run_id": run_id}, "tiers": tiers, "phases": phases}


def agent(client: httpx.Client, run_id: str, seconds: float) -> None:
    """Claim, sleep and submit until the run is over."""
    while True:
        found = client.post(f"/runs/{run_id}/claim", json={"role": "builder", "agent": "sleeper"})
        if found.status_code == 409:
            return
        if found.status_code == 204:
            time.sleep(seconds / 50)
            continue
        item = found.raise_for_status().json()
        time.sleep(seconds)
        name = item["phase_id"]
        path = f"{name[0]}/{name}.txt"
        patch = (
            f"diff --git a/{path} b/{path}\nnew file mode 100644\n"
            f"--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{name}\n"
        )
        client.post(
            f"/runs/{run_id}/phases/{name}/builder_result",
            json={
                "status": "success",
                "patch_content": patch,
                "lease_token": item["lease"]["token"],
            },
        ).raise_for_status()


def measure(client: httpx.Client, run_id: str, agents: int, seconds: float) -> float:
    """Return how long a run takes, in seconds, once its plan is accepted."""
    document = plan(run_id, is_parallel=run_id == "parallel")
    client.post("/runs/start", json=document).raise_for_status()
    began = time.monotonic()
    threads = [
        threading.Thread(target=agent, args=(client, run_id, seconds)) for _ in range(agents)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    state = client.get(f"/runs/{run_id}").json()["state"]
    if state != "DONE_SUCCESS":
        raise SystemExit(f"run {run_id} ended as {state}")
    return took


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=1.0, help="how long an agent sleeps")
    parser.add_argument("--agents", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        repository = Path(name) / "repository"
        repository.mkdir()
        git(repository, "init", "-qb", BASE)
        identity = ("-c", "user.name=A", "-c", "user.email=a@localhost")
        git(repository, *identity, "commit", "-q", "--allow-empty", "-m", "Start")
        with serve(Path(name), repository) as client:
            serial = measure(client, "serial", options.agents, options.seconds)
            parallel = measure(client, "parallel", options.agents, options.seconds)
    ratio = parallel / serial
    print(f"one at a time  {serial:6.2f} s")
    print(f"side by side   {parallel:6.2f} s")
    print(f"ratio          {ratio:6.2f}  (must be below {MOST})")
    return 0 if ratio < MOST else 1


if __name__ == "__main__":
    sys.exit(main())
