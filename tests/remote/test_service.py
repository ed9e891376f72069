"""Services in processes of their own, killed and doubled, and the remote behind smart HTTP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.cli.address import told_address
from autopack.config import Settings

from .conftest import Bare
from .git_server import GitServer, basic
from .test_pushes import BRANCH, new_file

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.processes import ForkedProcess, ForkServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cr3t-p4ss"


@dataclass
class Service:
    process: ForkedProcess
    log: Path
    url: str = ""

    def wait(self) -> Service:
        """Wait until it answers."""

        def address() -> str | None:
            assert self.process.poll() is None, self.log.read_text()
            return told_address(self.log.read_text())

        self.url = wait_until(address, self.log.read_text)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def post(self, path: str, body: dict[str, Any]) -> None:
        response = httpx.post(
            f"{self.url}{path}", json=body, trust_env=False, verify=False, timeout=60
        )
        assert response.is_success, response.text

    def status(self, run_id: str) -> dict[str, Any]:
        url = f"{self.url}/runs/{run_id}/integration_status"
        response = httpx.get(url, trust_env=False, verify=False, timeout=60)
        answer: dict[str, Any] = response.json()["remote"]
        return answer

    def build(self, run_id: str) -> None:
        """Start a run of one phase and let it be completed."""
        plan = {
            "run": {"run_id": run_id},
            "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "Tier"}],
            "phases": [{"phase_id": "P0", "phase_index": 0, "tier_id": "T0", "name": "Phase"}],
        }
        self.post("/runs/start", plan)
        result = {"status": "success", "patch_content": new_file("P0")}
        self.post(f"/runs/{run_id}/phases/P0/builder_result", result)

    def wait_until_pushed(self, run_id: str) -> None:
        wait_until(
            lambda: bool(self.status(run_id)["is_up_to_date"]),
            lambda: f"{self.status(run_id)} {self.log.read_text()}",
        )


Start = Callable[..., Service]


@pytest.fixture
def start(
    settings: Settings, server: GitServer, tmp_path: Path, fork_server: ForkServer
) -> Iterator[Start]:
    with ExitStack() as stack:

        def start_one(name: str = "one", remote: str = "") -> Service:
            server.credentials = ("ada", SECRET)
            address = server.url.replace("://", f"://ada:{SECRET}@") + "/bare.git"
            log = tmp_path / f"{name}.log"
            with log.open("w") as output:
                process = fork_server.start(
                    *("serve", "--port=0"),
                    folder=settings.repo_path,
                    environment={
                        "PATH": os.environ["PATH"],
                        "DATABASE_URL": str(settings.database_url),
                        "AUTOPACK_REPO_PATH": str(settings.repo_path),
                        "AUTOPACK_HOME": str(settings.home),
                        "AUTOPACK_PROJECT_ID": settings.project_id,
                        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
                        "AUTOPACK_GIT_REMOTE": remote or address,
                    },
                    output=output,
                )
            stack.callback(process.wait)
            stack.callback(process.kill)
            return Service(process, log)

        yield start_one
        server.may_push.set()


@pytest.mark.safety_critical
def test_a_push_that_a_kill_interrupts_is_repeated_by_the_next_start(
    start: Start, server: GitServer, bare: Bare, git_repo: GitRepo
) -> None:
    server.hold_pushes()
    first = start().wait()
    first.build("run-001")
    assert server.has_push.wait(PATIENCE_SECONDS)
    first.kill()
    assert bare.refs() == {}
    server.may_push.set()
    second = start("two").wait()
    second.wait_until_pushed("run-001")
    assert bare.refs()[BRANCH] == git_repo.git("rev-parse", BRANCH)
    assert SECRET not in first.log.read_text() + second.log.read_text()
    assert set(server.authorizations) == {basic("ada", SECRET)}


def test_a_kill_after_the_remote_took_it_is_no_second_push(
    start: Start, server: GitServer, bare: Bare
) -> None:
    """What the remote has is seen there, not in what a killed service might have noted."""
    first = start().wait()
    server.hold_pushes()
    first.build("run-001")
    assert server.has_push.wait(PATIENCE_SECONDS)
    first.process.send_signal(signal.SIGSTOP)  # it will never note the success
    server.may_push.set()
    assert server.has_pushed.wait(PATIENCE_SECONDS)
    assert BRANCH in bare.refs()
    first.kill()
    second = start("two").wait()
    second.wait_until_pushed("run-001")
    assert server.push_count == 1


def test_two_services_push_each_run_once(start: Start, server: GitServer, bare: Bare) -> None:
    services = [start("one"), start("two")]
    for service in services:
        service.wait()
    server.hold_pushes()
    services[0].build("run-001")
    services[1].build("run-002")
    assert server.has_push.wait(PATIENCE_SECONDS)
    server.may_push.set()
    for run_id in ("run-001", "run-002"):
        services[0].wait_until_pushed(run_id)
    assert {ref for ref in bare.refs() if "heads" in ref} == {
        "refs/heads/autonomous/run-001",
        "refs/heads/autonomous/run-002",
    }
    for service in services:
        service.process.terminate()
        assert service.process.wait(PATIENCE_SECONDS) == 0
    assert server.push_count == 2


def test_sigterm_during_a_slow_push_ends_the_service(start: Start, server: GitServer) -> None:
    server.hold_pushes()
    service = start().wait()
    service.build("run-001")
    assert server.has_push.wait(PATIENCE_SECONDS)
    service.process.terminate()
    assert service.process.wait(PATIENCE_SECONDS) == 0
    assert "Traceback" not in service.log.read_text()


@pytest.mark.parametrize(
    ("remote", "words"),
    [
        ("upstream", "the repository has no remote 'upstream'"),
        (f"ftp://ada:{SECRET}@example.org/a", "begins with ftp://"),
    ],
)
def test_a_wrong_remote_stops_the_start_with_one_line(
    remote: str, words: str, start: Start
) -> None:
    service = start(remote=remote)
    assert service.process.wait(PATIENCE_SECONDS) == 2
    lines = service.log.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("autopack: AUTOPACK_GIT_REMOTE: ")
    assert words in lines[0]
    assert SECRET not in lines[0]
