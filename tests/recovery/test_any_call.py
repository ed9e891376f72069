"""A process that dies after any call of the system, while others of its service work on.

No start rolls forward what it leaves: the request that is sent again meets it at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from .test_kill import CHANGES, history, issue, plan, waiting_for_ci

if TYPE_CHECKING:
    from .conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

ANY_CALL = Path(__file__).resolve().with_name("any_call.py")
# All but those of a ruleset that holds for every later run.
ALL = [name for name, change in CHANGES.items() if change.prepare is not waiting_for_ci]
# Nothing of a killed process is waited for; a request alone takes a tenth of a second.
MOST_SECONDS = 20


class Beside:
    """A process that answers beside a service."""

    def __init__(self, stage: Stage, url: str, calls: Path) -> None:
        self._stage = stage
        self.url = url
        self.calls = calls

    def send(self, name: str, run: str) -> httpx.Response | None:
        """Send a change's request to it; None if it died."""
        path, body = CHANGES[name].request(run)
        with httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False) as client:
            try:
                return client.post(path, json=body, headers=_headers(name, run))
            except httpx.TransportError:
                return None


@contextmanager
def beside(stage: Stage, kill_after: int) -> Iterator[Beside]:
    """Start a process beside the service that dies after so many calls; 0: it does not."""
    log, calls = stage.folder / "beside.log", stage.folder / "calls"
    calls.unlink(missing_ok=True)
    own = {"KILL_AFTER": str(kill_after), "CALLS": str(calls)}
    with log.open("w") as output:
        process = stage.fork_server.start(
            folder=stage.settings.repo_path,
            environment=stage.whole_environment() | own,
            output=output,
            first=ANY_CALL,
        )
    try:
        wait_until(
            lambda: "answers at" in log.read_text() or process.poll() is not None, log.read_text
        )
        assert process.poll() is None, log.read_text()
        yield Beside(stage, log.read_text().split()[-1], calls)
    finally:
        process.kill()
        process.wait()


def _headers(name: str, run: str) -> dict[str, str]:
    key = CHANGES[name].key
    return {"Idempotency-Key": f"{key}-{run}"} if key else {}


@pytest.mark.parametrize(
    ("names", "kills", "seed"),
    [
        pytest.param(["run_completed"], 1, 1, id="few"),
        pytest.param(ALL, 3, None, id="many", marks=pytest.mark.campaigns),
    ],
)
def test_wherever_a_process_is_killed_the_others_carry_out_its_request_once_and_at_once(
    stage: Stage, names: list[str], kills: int, seed: int | None
) -> None:
    seed = random.randrange(1_000_000) if seed is None else seed  # each campaign kills elsewhere
    chance = random.Random(seed)
    stage.must("POST", "/runs/start", plan("other", "P1"))
    for name in names:
        change = CHANGES[name]
        change.prepare(stage, f"{name}-0")
        with beside(stage, 0) as other:
            answer = other.send(name, f"{name}-0")
            assert answer is not None
            assert answer.status_code == change.status
            length = other.calls.stat().st_size
        expected = history(stage, f"{name}-0")
        for number in range(1, kills + 1):
            run = f"{name}-{number}"
            change.prepare(stage, run)
            kill_after = chance.randint(1, length)
            told = f"seed {seed}: {name} killed after call {kill_after} of {length}"
            with beside(stage, kill_after) as other:
                other.send(name, run)
            path, body = change.request(run)
            with stage.client() as client:
                unhindered = client.post(issue("other")[0], json=issue("other")[1])
                answer = client.post(path, json=body, headers=_headers(name, run))
            assert unhindered.status_code == 201, f"{told}: {unhindered.text}"
            assert answer.status_code in (change.status, 200), f"{told}: {answer.text}"
            assert max(unhindered.elapsed, answer.elapsed).total_seconds() < MOST_SECONDS, told
            assert history(stage, run) == expected, told
    stage.assert_consistent()
