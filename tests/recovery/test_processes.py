"""A service of several processes, of which any may be killed at any moment.

Here no start rolls forward what a killed process left: the ones beside it meet it at once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import psutil
import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from .conftest import Stage
from .test_nodes import Campaign, Stream
from .test_parallel import PHASES, plan, result

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import GitRepo
    from tests.processes import ForkServer

    from autopack.config import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]


@pytest.fixture
def several(
    settings: Settings,
    git_repo: GitRepo,
    fork_server: ForkServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Stage]:
    """A started service of so many processes as the test's parameter says."""
    own = {"AUTOPACK_PROCESSES": str(request.param)}
    stage = Stage(settings, git_repo, fork_server, tmp_path, environment=own)
    stage.start()
    yield stage
    stage.stop()


class Builders(Campaign):
    """Clients that build runs of their own while processes of one service are killed."""

    def __init__(self, stage: Stage, seed: int) -> None:
        super().__init__([stage], seed)
        self.stage = stage
        self.kills: list[str] = []
        self._seen: set[psutil.Process] = set()

    def build(self, run_id: str) -> list[str]:
        """Carry out a run, and return its acknowledged commits."""
        chance = random.Random(run_id)
        started = self.ask(chance, "/runs/start", plan(run_id), f"start-{run_id}")
        assert started.status_code in (200, 201), started.text
        commits = []
        for index in range(PHASES):
            phase = f"/runs/{run_id}/phases/P{index}"
            issue = {"issue_key": f"seen-{run_id}", "source": "test", "category": "test_failure"}
            noted = self.ask(chance, f"{phase}/record_issue", issue, f"issue-{run_id}-{index}")
            assert noted.status_code == 201, noted.text
            body = result(f"src/{run_id}/{index}.txt", f"{run_id} {index}")
            key = f"result-{run_id}-{index}"
            done = self.ask(chance, f"{phase}/builder_result", body, key)
            assert done.status_code == 200, done.text
            self.note(f"{phase}/builder_result", body, key, done.json())
            self.acknowledged.append((run_id, f"P{index}"))
            commits.append(done.json()["commit_sha"])
        return commits

    def kill(self, what: str) -> None:
        """Kill one process that answers, all of them, or the first one, which starts again."""
        self.kills.append(what)
        answering = self.stage.answering()
        self._seen |= {*answering}
        if what == "first":
            self.stage.kill()
            self.stage.start()
        elif answering:
            for each in answering if what == "all" else [self.random.choice(answering)]:
                with suppress(psutil.NoSuchProcess):  # it is the one of before, and is over now
                    each.kill()

    def assert_none_left(self) -> None:
        """Stop the service, and see that none of its processes is left."""
        self._seen |= {*self.stage.answering()}
        self.stage.stop()
        _, alive = psutil.wait_procs(self._seen, PATIENCE_SECONDS)
        assert alive == []


@pytest.mark.parametrize(
    ("several", "clients", "runs", "kills"),
    [
        pytest.param(2, 3, 1, ("one", "first"), id="few"),
        pytest.param(3, 12, 3, None, id="many", marks=pytest.mark.campaigns),
    ],
    indirect=["several"],
)
def test_every_acknowledged_patch_is_on_its_branch_whatever_process_is_killed(
    several: Stage, clients: int, runs: int, kills: tuple[str, ...] | None
) -> None:
    builders = Builders(several, seed=1)
    names = [f"run-{client}-{at}" for client in range(clients) for at in range(runs)]
    stream = Stream(several, "/events/stream", names)
    with ThreadPoolExecutor(clients + 1) as pool:
        try:
            reading = pool.submit(stream.read)
            building = {name: pool.submit(builders.build, name) for name in names}
            log = several.log.read_text

            def await_more_than(number: int) -> None:
                """Wait for so many acknowledged patches, or for a client that failed."""

                def is_reached() -> bool:
                    ended = [each for each in building.values() if each.done()]
                    return len(builders.acknowledged) > number or any(
                        each.exception() for each in ended
                    )

                wait_until(is_reached, log)

            if kills is not None:
                await_more_than(0)
                for what in kills:
                    builders.kill(what)
            else:
                for reached in range(0, PHASES * len(names), 5):  # each kill falls into work
                    await_more_than(reached)
                    builders.kill(builders.random.choice(("one", "one", "one", "all", "first")))
            commits = {name: each.result(PATIENCE_SECONDS) for name, each in building.items()}
            reading.result(PATIENCE_SECONDS)
        finally:
            stream.is_over.set()
    for name, acknowledged in commits.items():
        assert several.must("GET", f"/runs/{name}")["state"].startswith("DONE_")
        span = f"main..autonomous/{name}"
        listed = several.repo.git("rev-list", "--reverse", span).split()
        assert listed[:-1] == acknowledged  # and the record
    builders.assert_answered_once()
    assert stream.told == stream.recorded()
    wait_until(lambda: not several.is_behind(), several.log.read_text)
    several.assert_consistent()
    builders.assert_none_left()
