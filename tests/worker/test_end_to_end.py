"""From a plan to a branch that may be promoted, by commands alone. (docs/worker.md)"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from sqlalchemy import create_engine, text
from tests.conftest import start_server, stop_server
from tests.processes import ForkedProcess, ForkServer
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.client import Autopack
from autopack.config import Settings
from autopack.views.events import EventAnswer
from autopack.views.runs import RunAnswer

if TYPE_CHECKING:
    from tests.conftest import GitRepo

    from autopack.config import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILDER, AUDITOR = (
    shlex.join([sys.executable, str(HERE / name)]) for name in ("builder.py", "auditor.py")
)
PROFILE = {"command": "python3 -m unittest", "timeout_seconds": 60, "retries": 0}
CI = {"mode": "local", "profiles": {"normal": PROFILE, "strict": PROFILE}}
SAMPLE = {
    "greeter.py": "def greet(name):\n    raise NotImplementedError\n",
    "test_greeter.py": (
        "import unittest\n\nfrom greeter import greet\n\n\n"
        "class Greeting(unittest.TestCase):\n"
        "    def test_people_are_greeted_by_their_name(self):\n"
        '        self.assertEqual(greet("Ada"), "Hello, Ada!")\n'
    ),
}


@dataclass
class Stage:
    service: Autopack
    repo: GitRepo
    folder: Path
    database_url: str
    fork_server: ForkServer
    workers: list[ForkedProcess] = field(default_factory=list)

    def start(self) -> None:
        """Start the run that the documentation shows."""
        page = (ROOT / "docs" / "worker.md").read_text()
        (plan,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
        file = self.folder / "plan.yaml"
        file.write_text(plan)
        said, errors = self.start_command("run", "start", str(file)).communicate()
        assert "run-001" in said, errors

    def work(self, *options: str, **environment: str) -> ForkedProcess:
        """Start a worker that builds and reviews."""
        process = self.start_command(
            *("work", "--run", "run-001", "--json", "--poll-seconds", "0.1"),
            *("--builder", BUILDER, "--auditor", AUDITOR, *options),
            **environment,
        )
        self.workers.append(process)
        return process

    def start_command(self, *words: str, **environment: str) -> ForkedProcess:
        return self.fork_server.start(
            *(*words, "--url", self.service.address),
            folder=self.folder,
            environment=_environment(HOME=str(self.folder), **environment),
        )

    def end_leases(self) -> None:
        """Let the time of all leases be over, which would take a minute at least."""
        engine = create_engine(self.database_url)
        with engine.begin() as connection:
            connection.execute(text("UPDATE leases SET expires_at = now() WHERE ended_at IS NULL"))
            connection.execute(
                text("UPDATE phases SET deadline_at = now() WHERE deadline_at > now()")
            )
        engine.dispose()

    def run(self) -> RunAnswer:
        return self.service.get_run("run-001")

    def events(self) -> Iterator[EventAnswer]:
        return self.service.events("run-001")


@pytest.fixture
def stage(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, fork_server: ForkServer
) -> Iterator[Stage]:
    """A service in a process of its own, over a project whose tests fail."""
    git_repo.commit(dict(SAMPLE), "Say what greetings shall be")
    assert settings.database_url
    server = start_server(fork_server, settings, tmp_path / "service.log")
    try:
        with Autopack(server.url) as service:
            service.put_ruleset({"project_id": "Autopack", "ci": CI})
            stage = Stage(service, git_repo, tmp_path, settings.database_url, fork_server)
            yield stage
            for worker in stage.workers:
                worker.kill()
                worker.communicate()
    finally:
        stop_server(server)


def test_a_plan_becomes_a_branch_that_may_be_promoted(stage: Stage) -> None:
    stage.start()
    said, errors = stage.work().communicate(timeout=PATIENCE_SECONDS)
    events = [json.loads(line) for line in said.splitlines()]
    assert stage.workers[0].returncode == 0, said + errors
    steps = [(event.get("phase_id"), event.get("role"), event["event"]) for event in events]
    assert [step for step in steps if step[2] == "handed_in"] == [
        ("P1.1", "builder", "handed_in"),
        ("P1.1", "builder", "handed_in"),
        ("P1.2", "builder", "handed_in"),
        ("P1.2", "auditor", "handed_in"),
    ]
    assert_promotable(stage)
    judged = [event for event in stage.events() if event.from_state == "CI_RUNNING"]
    phases = [(event.phase_id, event.to_state) for event in judged if event.phase_id]
    assert phases == [("P1.1", "QUEUED"), ("P1.1", "COMPLETE"), ("P1.2", "COMPLETE")]
    assert stage.run().tokens_used == 3 * 1200


def test_a_worker_that_is_killed_amid_its_work_loses_nothing(stage: Stage) -> None:
    stage.start()
    stall = stage.folder / "stall"
    victim = stage.work(STALL=str(stall))
    wait_until(stall.exists, lambda: "the victim took no work")
    survivor = stage.work()
    wait_until(lambda: len(list(rooms(stage))) == 2, lambda: "the survivor did not start")
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    stage.end_leases()
    said, errors = survivor.communicate(timeout=PATIENCE_SECONDS)
    assert survivor.returncode == 0, said + errors
    assert_promotable(stage)
    assert [event.phase_id for event in stage.events() if event.kind == "LeaseLapsed"] == ["P1.1"]
    # Its command did not outlive it; its folder goes when the next worker comes.
    assert not psutil.pid_exists(int(stall.read_text()))
    assert len(list(rooms(stage))) == 1
    assert stage.work().wait(PATIENCE_SECONDS) == 0
    assert list(rooms(stage)) == []


def assert_promotable(stage: Stage) -> None:
    """See the end of the run: state, tags, tests, record, and what the checker says of it."""
    finished = stage.run()
    assert finished.state == "DONE_SUCCESS"
    assert finished.promotion_eligible_to_main, finished.promotion_reasons
    branch = "autonomous/run-001"
    for phase in finished.tiers[0].phases:
        tag = f"autonomous/run-001/tier-T1/phase-{phase.phase_id}"
        assert stage.repo.git("rev-parse", f"{tag}^{{commit}}") == phase.commit
    tree = stage.folder / "promoted"
    run("git", "clone", "--quiet", "--branch", branch, str(stage.repo.path), str(tree))
    run(sys.executable, "-m", "unittest", folder=tree)
    words = ["--run-id", "run-001", "--branch", branch]
    run(sys.executable, str(ROOT / "scripts" / "check_promotion.py"), *words, folder=tree)
    assert stage.repo.git("status", "--porcelain") == ""


def rooms(stage: Stage) -> Iterator[Path]:
    return (stage.folder / ".cache" / "autopack-worker" / "work").glob("*.lock")


def run(*command: str, folder: Path | None = None) -> str:
    result = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": "/none", **more}
