"""`autopack up` as its users meet it: one command, Ctrl-C, and the same command again."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.cli.app import main

if TYPE_CHECKING:
    from tests.conftest import GitRepo, ServedHere
    from tests.processes import ForkedProcess, ForkServer

FORKED_CHILDREN = Path(__file__).resolve().with_name("forked_children.py")
PLAN = """
run: {run_id: greet}
tiers: [{tier_id: T1, tier_index: 0, name: First}]
phases:
  - {phase_id: P1, phase_index: 0, tier_id: T1, name: Greet, task_category: docs}
"""
# Hangs while the file beside it says so.
AGENT = """\
cat >/dev/null
here=$(dirname "$0")
touch "$here/begun"
if [ -e "$here/hang" ]; then sleep 600; fi
echo hello >hello.txt
"""
MARK = "TEST_OF_UP"


class Stage:
    """A project, a plan, an agent, and the command."""

    def __init__(
        self, repo: GitRepo, folder: Path, database_url: str, fork_server: ForkServer
    ) -> None:
        self.repo = repo
        self.fork_server = fork_server
        self.folder = folder
        (folder / "plan.yaml").write_text(PLAN)
        self.agent = folder / "agent.sh"
        self.agent.write_text(AGENT)
        self.environment = {
            **{name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
            "HOME": str(folder),
            "DATABASE_URL": database_url,
            "AUTOPACK_PORT": "1",
            MARK: str(folder),
        }

    def start(self, *options: str, has_fresh_children: bool = False) -> ForkedProcess:
        """Start the command; the service and the worker that it starts are forks of it, or fresh.

        A fresh process needs two seconds for its imports.
        """
        words = ["up", "../plan.yaml", "--builder", shlex.join(["sh", str(self.agent)]), *options]
        return self.fork_server.start(
            *words,
            folder=self.repo.path,
            environment=self.environment,
            output=(self.folder / "output").open("w+"),
            first=None if has_fresh_children else FORKED_CHILDREN,
        )

    def processes(self) -> list[psutil.Process]:
        """Return the command and all that it has started, in any session, as far as they run.

        A fork has the environment of its fork server, as the system sees it, but works here.
        """
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.folder) or Path(
                    process.cwd()
                ).is_relative_to(self.folder):
                    found.append(process)
        return found


@pytest.fixture
def stage(
    git_repo: GitRepo, tmp_path: Path, spare_database_url: str, fork_server: ForkServer
) -> Iterator[Stage]:
    stage = Stage(git_repo, tmp_path, spare_database_url, fork_server)
    yield stage
    for process in stage.processes():
        with suppress(psutil.Error):
            process.kill()


def wait_for(file: Path, process: ForkedProcess) -> None:
    """Wait until an agent has begun, which a process that has ended can start no more."""

    def has_begun() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return file.exists()

    wait_until(has_begun)


@pytest.mark.e2e
def test_one_command_works_on_a_plan_stops_by_ctrl_c_and_continues(stage: Stage) -> None:
    hang, begun = stage.folder / "hang", stage.folder / "begun"
    hang.touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        stage.environment["AUTOPACK_PORT"] = str(taken.getsockname()[1])
        process = stage.start()
        wait_for(begun, process)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, said
    assert "is in use: this service takes another one" in said
    assert "claimed by" in said
    assert said.endswith("Stopped. The same command continues the run.\n")
    assert "Traceback" not in said
    assert stage.processes() == []

    hang.unlink()
    process = stage.start()
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, said
    assert "greet  DONE_SUCCESS" in said
    assert "1/2 tries" in said  # to stop used none
    assert "RunStarted" not in said  # what happened before is not told again
    assert "git diff main...autonomous/greet" in said
    assert stage.repo.git("show", "autonomous/greet:hello.txt").strip() == "hello"
    assert stage.processes() == []


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of a parent's end")
def test_nothing_is_left_of_a_command_that_was_killed(stage: Stage) -> None:
    (stage.folder / "hang").touch()
    process = stage.start(has_fresh_children=True)
    wait_for(stage.folder / "begun", process)
    assert len(stage.processes()) >= 4  # the command, service, worker and agent
    process.kill()
    process.communicate()
    wait_until(lambda: stage.processes() == [])


@pytest.mark.e2e
def test_a_plan_never_goes_to_a_stranger_who_answers_at_the_port(
    stage: Stage, served_here: ServedHere
) -> None:
    port = served_here.url.rpartition(":")[2]
    process = stage.start("--port", port)
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in said
    assert httpx.get(f"{served_here.url}/runs", trust_env=False).json()["runs"] == []


@pytest.mark.e2e
def test_a_service_that_cannot_start_gives_its_reason(stage: Stage) -> None:
    database, _, query = stage.environment["DATABASE_URL"].partition("?")
    stage.environment["DATABASE_URL"] = f"{database}_gone?{query}"
    process = stage.start()
    said, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    line = said.splitlines()[-1]
    assert line.startswith("autopack: ")
    assert "_gone" in line


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--builder", "no-such-agent"], "'no-such-agent': the program does not exist"),
        ([], "give --builder or --auditor"),
        (["--builder", "cat | sh"], "no shell runs the command, so '|' has no effect"),
        (["--builder", "sh -c ls>list"], "so '>' has no effect"),
        (["--builder", "KEY=1 sh x"], "so 'KEY=1' has no effect"),
        (["--builder", "sh $HOME/x"], "so '$HOME/x' has no effect"),
        (["--builder", "sh -c 'cat | sh > $F'; ls"], "so ';' has no effect"),
        (["--builder", "no-such-agent -c 'a | b' \"$HOME;\" a=1 5$"], "does not exist"),
        (["--builder", "sh", "--port", "0"], "--port"),
    ],
)
def test_what_cannot_work_is_told_before_anything_starts(
    options: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)
    assert main(["up", "plan.yaml", *options]) == 2
    assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["plan.yaml"]
