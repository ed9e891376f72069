"""Real agents as Builder and Auditor, with a scripted model. (CONTRIBUTING.md, Tests)"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.agents import clients
from tests.agents.clients import AGENTS, Agent
from tests.agents.model_server import MODEL, ModelServer, Script, serve_model
from tests.waiting import PATIENCE_SECONDS

from autopack.client import Autopack

if TYPE_CHECKING:
    from tests.conftest import GitRepo, LiveServer

    from autopack.config import Settings


@dataclass
class Scene:
    """A service with a run of one phase, a scripted model, and one real agent."""

    agent: Agent
    service: Autopack
    repo: GitRepo
    folder: Path
    stack: ExitStack
    settings: Settings
    homes: int = 0
    api_key: str | None = None  # of the agent, where the service asks for one

    def start(self, token_cap: int | None = None, **phase: Any) -> None:
        tier = {"tier_id": "T1", "tier_index": 0, "name": "Tier"}
        wanted = {
            "phase_id": "P1",
            "phase_index": 0,
            "tier_id": "T1",
            "name": "Greet people",
            "task_category": "docs",
        }
        run: dict[str, Any] = {"run_id": "run-001"}
        if token_cap is not None:
            run["token_cap"] = token_cap
        self.service.start_run({"run": run, "tiers": [tier], "phases": [wanted | phase]})

    def model(self, script: Script) -> ModelServer:
        return self.stack.enter_context(serve_model(script))

    def work(self, model: ModelServer, *options: str) -> subprocess.CompletedProcess[str]:
        """Do one work item by `autopack work`, as an operator would start it."""
        environment = clients.environment(self.agent, self._home(), model.url)
        if "--meter" in options:  # the worker finds the model by these, the agent by the worker
            key = clients.KEY
            environment |= {"OPENAI_BASE_URL": f"{model.url}/v1", "OPENAI_API_KEY": key}
            environment |= {"ANTHROPIC_BASE_URL": model.url, "ANTHROPIC_API_KEY": key}
            environment |= {"GOOGLE_GEMINI_BASE_URL": model.url, "GEMINI_API_KEY": key}
            environment |= {clients.OPENCODE_MODEL: f"openai/{MODEL}"}
        return subprocess.run(
            [
                *(sys.executable, "-m", "autopack", "work", "--run", "run-001", "--once"),
                *("--url", self.service.address, *options),
            ],
            env=environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def drive(self, model: ModelServer, *command: str) -> subprocess.CompletedProcess[str]:
        """Run the agent itself, with the service as its MCP server."""
        mcp = f"{self.service.address}/mcp"
        environment = clients.environment(self.agent, self._home(), model.url, mcp, self.api_key)
        folder = Path(environment["HOME"], "work")
        folder.mkdir()
        return subprocess.run(
            command,
            env=environment,
            cwd=folder,
            input="Work as the builder of the Autopack run run-001.",
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
        )

    def make_key(self, name: str, role: str) -> str:
        """Make a key beside the database of the service."""
        settings = self.settings
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "DATABASE_URL": settings.database_url or "",
            "AUTOPACK_REPO_PATH": str(settings.repo_path),
            "AUTOPACK_HOME": str(settings.home),
            "AUTOPACK_AUTH": settings.auth,
        }
        command = ["keys", "create", "--name", name, "--role", role]
        return subprocess.run(
            [sys.executable, "-m", "autopack", *command],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    def _home(self) -> Path:
        """Name a new home for the agent."""
        self.homes += 1
        return self.folder / "agents" / str(self.homes)

    def attempt(self) -> Any:
        return self.service.attempts("run-001", "P1").attempts[-1]

    def phase(self) -> Any:
        return self.service.get_run("run-001").tiers[0].phases[0]


@pytest.fixture
def agent_name() -> str:
    raise NotImplementedError("each test names its agents")


@pytest.fixture
def scene(
    agent_name: str,
    live_server: LiveServer,
    settings: Settings,
    git_repo: GitRepo,
    tmp_path: Path,
) -> Iterator[Scene]:
    """Skips where the agent is not installed: `bash scripts/agents.sh` installs it."""
    path = clients.programs()
    if path is None:
        pytest.skip(f"{clients.FOLDER} names no folder with agents: run scripts/agents.sh")
    if shutil.which(agent_name, path=path) is None:
        pytest.skip(f"{agent_name} is not installed in {clients.FOLDER}: its package is missing")
    with Autopack(live_server.url) as service, ExitStack() as stack:
        yield Scene(AGENTS[agent_name], service, git_repo, tmp_path, stack, settings)
