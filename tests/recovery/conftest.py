"""A service that can be made to kill itself anywhere, and be started again in a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import pytest
from tests.processes import answering
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.config import Settings
from autopack.gitrepo import Repository

from . import consistency

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.processes import ForkedProcess, ForkServer

KILLING = Path(__file__).resolve().with_name("killing.py")
Json = dict[str, Any]


@dataclass
class Stage:
    """One service's database, repository and folders, through its deaths and rebirths."""

    settings: Settings
    repo: GitRepo
    fork_server: ForkServer
    folder: Path
    jobs: str = "inside"
    leases: dict[str, str] = field(default_factory=dict)
    url: str = ""
    #: Settings of this service alone, and the program that its process runs first.
    environment: dict[str, str] = field(default_factory=dict)
    first: Path = KILLING
    #: The Unix socket of the proxy that all requests go through, and their headers.
    proxy: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    _process: ForkedProcess | None = field(default=None, init=False)

    @property
    def log(self) -> Path:
        return self.folder / "service.log"

    @property
    def fate(self) -> Path:
        return self.folder / "kill_at"

    def start(self) -> None:
        """Start the service and wait until it is ready."""
        self.begin()
        self.await_start()

    def begin(self) -> None:
        """Start the service, which is not ready yet."""
        self.fate.unlink(missing_ok=True)
        self.log.write_text("")
        with self.log.open("a") as output:
            self._process = self.fork_server.start(
                "serve",
                folder=self.settings.repo_path,
                environment=self.whole_environment(),
                output=output,
                first=self.first,
            )

    def whole_environment(self) -> dict[str, str]:
        assert self.settings.database_url is not None
        return {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "AUTOPACK_REPO_PATH": str(self.settings.repo_path),
            "AUTOPACK_HOME": str(self.settings.home),
            "AUTOPACK_PROJECT_ID": self.settings.project_id,
            "AUTONOMOUS_RUNS_DIR": str(self.settings.autonomous_runs_dir),
            "AUTOPACK_PORT": "0",
            "AUTOPACK_JOBS": self.jobs,
            "DATABASE_URL": self.settings.database_url,
            "KILL_AT": str(self.fate),
            **self.environment,
        }

    def await_start(self) -> None:
        wait_until(
            lambda: "  API " in self.log.read_text() or not self.is_running(), self.log.read_text
        )
        assert self.is_running(), self.log.read_text()
        if self.proxy is None:
            self.url = self.log.read_text().partition("  API ")[2].split()[0]

    def kill_at(self, step: str, passage: int = 1) -> None:
        """Let the service kill itself when it passes a step for the n-th time from now."""
        planned = self.fate.with_name("planned")
        planned.write_text(f"{step} {passage}")
        planned.rename(self.fate)

    def kill(self) -> None:
        """Kill the service here and now."""
        assert self._process is not None
        self._process.kill()
        self.await_death()

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def answering(self) -> list[psutil.Process]:
        """Return the processes that answer, where the service has several."""
        assert self._process is not None
        return answering(self._process.pid)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def await_death(self) -> None:
        """Wait for the killed service's end."""
        assert self._process is not None
        ended = self._process.wait(PATIENCE_SECONDS)
        assert ended == -signal.SIGKILL, self.log.read_text()
        self._process = None

    def stop(self) -> None:
        """End the service as a service manager would."""
        self.terminate()
        if self._process is not None:
            self._process.wait(PATIENCE_SECONDS)
            self._process = None

    def terminate(self) -> None:
        if self._process is not None:
            self._process.terminate()

    def client(self) -> httpx.Client:
        """Return a client of the service."""
        way = None if self.proxy is None else httpx.HTTPTransport(uds=self.proxy, verify=False)
        return httpx.Client(
            base_url=self.url,
            headers=self.headers,
            transport=way,
            timeout=PATIENCE_SECONDS,
            trust_env=False,
            verify=False,
        )

    def call(
        self, method: str, path: str, body: Json | None = None, key: str = ""
    ) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        with self.client() as client:
            return client.request(method, path, json=body, headers=headers)

    def must(self, method: str, path: str, body: Json | None = None) -> Json:
        """Send a request that has to be granted."""
        response = self.call(method, path, body)
        assert response.is_success, response.text
        answer: Json = response.json()
        return answer

    def is_behind(self) -> bool:
        """Return whether this node does not show all that is recorded yet."""
        node_id = Repository.open(self.settings).node_identity().node_id
        nodes = self.must("GET", "/health")["nodes"]
        [mine] = [node for node in nodes if node["id"] == node_id]
        return any(mine[name] for name in ("lag_runs", "unseen_runs", "lacking_runs"))

    def assert_consistent(self, run_id: str | None = None) -> None:
        consistency.assert_consistent(self.settings, run_id)


@pytest.fixture
def stage(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, tmp_path: Path
) -> Iterator[Stage]:
    """A started service; whatever becomes of it, it is gone at the end."""
    stage = Stage(settings, git_repo, fork_server, tmp_path)
    stage.start()
    yield stage
    stage.stop()
