"""A worker in this process, on the real application, with shell commands for agents."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autopack.client import Autopack
from autopack.gitrepo.workspace import ObjectCache
from autopack.worker import workspace
from autopack.worker.agents import Agent
from autopack.worker.mailbox import Mail, Mailbox
from autopack.worker.worker import Ending, Orders, Role, Step, Worker

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from autopack.meter.server import GatewayServer

Json = dict[str, Any]


class InProcess(httpx.BaseTransport):
    """Hands requests to the application; `interfere` may raise instead of what is answered."""

    def __init__(self, client: TestClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self.interfere: Callable[[httpx.Request], None] = lambda request: None

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        with self._lock:
            answer = self._client.request(
                request.method,
                str(request.url),
                content=request.read(),
                headers=dict(request.headers),
            )
        self.interfere(request)
        return httpx.Response(
            answer.status_code, headers=dict(answer.headers), content=answer.content
        )


@dataclass
class Workshop:
    service: Autopack
    transport: InProcess
    home: Path
    steps: list[Step] = field(default_factory=list)
    mailbox: Mailbox = field(default_factory=Mailbox)
    clock: Callable[[], float] = time.monotonic

    def start(self, run: Json | None = None, **phase: Any) -> None:
        """Start a run of one phase."""
        self.service.start_run(
            {
                "run": {"run_id": "run-001"} | (run or {}),
                "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "Tier"}],
                "phases": [
                    {
                        "phase_id": "P1",
                        "phase_index": 0,
                        "tier_id": "T1",
                        "name": "Do it",
                        "task_category": "docs",
                    }
                    | phase
                ],
            }
        )

    def work(
        self,
        builder: str = "exit 9",
        auditor: str | None = None,
        *,
        kind: str | None = None,
        fallback: str | None = None,
        name: str | None = None,
        gateway: GatewayServer | None = None,
        environment: Mapping[str, str] | None = None,
        **orders: Any,
    ) -> Ending:
        """Let a worker work by shell commands, one item unless it is said otherwise.

        `name`: one program for both roles, under this name.
        """
        commands: dict[Role, str | None] = {"auditor": auditor, "builder": builder}
        second = (
            Agent("second@test", ["/bin/sh", "-c", fallback], None, "theirs") if fallback else None
        )
        agents = {
            role: Agent(name or f"{role}@test", ["/bin/sh", "-c", command], kind, "mine", second)
            for role, command in commands.items()
            if command is not None
        }
        wanted: Json = {"run_id": "run-001", "is_once": True, "poll_seconds": 0.05} | orders
        with ExitStack() as stack:
            worker = Worker(
                self.service,
                Orders(agents=agents, **wanted),
                stack.enter_context(workspace.enter(self.home)),
                ObjectCache(self.home / "repositories"),
                self.mailbox,
                {"PATH": "/usr/bin:/bin", "DATABASE_URL": "secret", "GIT_DIR": "/none"}
                | dict(environment or {}),
                self.steps.append,
                self.clock,
                gateway,
            )
            return worker.work()

    def interrupt(self) -> None:
        self.mailbox.post(Mail.INTERRUPTED)

    def attempts(self) -> list[Any]:
        return self.service.attempts("run-001", "P1").attempts

    def said(self, kind: str) -> str:
        """Return the text of the last step of a kind."""
        return [step.text for step in self.steps if step.kind == kind][-1]

    @property
    def kinds(self) -> list[str]:
        return [step.kind for step in self.steps]


@pytest.fixture
def workshop(client: TestClient, tmp_path: Path) -> Iterator[Workshop]:
    transport = InProcess(client)
    with Autopack("http://localhost", transport=transport, retries=0) as service:
        yield Workshop(service, transport, tmp_path / "worker")
