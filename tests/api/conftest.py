"""A caller who speaks of runs and phases, over the real application."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from autopack.config import Settings
from autopack.services.upkeep import keep_up

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo

Json = dict[str, Any]
NO_RECORD = ("--invert-grep", "--grep=^Autopack-Record-SHA256: ")
LEASE_SECONDS = 900
PROBLEM_MEMBERS = {"type", "title", "status", "detail", "code"}


def with_remote(settings: Settings, folder: Path) -> Settings:
    """Return the settings of a service that pushes to a new bare repository in a folder."""
    bare = folder / "remote.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    return settings.model_copy(update={"git_remote": SecretStr(str(bare))})


@dataclass
class Api:
    """Requests of few words, and what every refusal must look like."""

    client: TestClient
    repo: GitRepo
    runs_dir: Path

    def start(self, run_id: str = "run-001", **how: Any) -> Json:
        """Start a run that must start."""
        response = self.client.post("/runs/start", json=self.plan(run_id, **how))
        assert response.status_code == 201, response.text
        return answer(response)

    def run(self, run_id: str = "run-001") -> Json:
        response = self.client.get(f"/runs/{run_id}")
        assert response.status_code == 200, response.text
        return answer(response)

    def phase(self, run_id: str = "run-001", phase_id: str = "P0.0") -> Json:
        phases = [phase for tier in self.run(run_id)["tiers"] for phase in tier["phases"]]
        return next(phase for phase in phases if phase["phase_id"] == phase_id)

    def result(
        self,
        run_id: str = "run-001",
        phase_id: str = "P0.0",
        patch: str | None = None,
        key: str | None = None,
        **fields: Any,
    ) -> Response:
        """Post a Builder's result: by default a patch that adds a file of the phase's name."""
        body = {
            "status": "success",
            "patch_content": self.new_file(f"src/{phase_id}.txt") if patch is None else patch,
            **fields,
        }
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(
            f"/runs/{run_id}/phases/{phase_id}/builder_result", json=body, headers=headers
        )

    def issue(
        self,
        issue_key: str = "a_failing_test",
        run_id: str = "run-001",
        phase_id: str = "P0.0",
        key: str | None = None,
        **fields: Any,
    ) -> Response:
        body = {"issue_key": issue_key, "source": "test", "category": "test_failure", **fields}
        headers = {"Idempotency-Key": key} if key else {}
        return self.client.post(
            f"/runs/{run_id}/phases/{phase_id}/record_issue", json=body, headers=headers
        )

    def status(
        self, state: str, run_id: str = "run-001", phase_id: str = "P0.0", **fields: Any
    ) -> Response:
        return self.client.post(
            f"/runs/{run_id}/phases/{phase_id}/update_status", json={"state": state, **fields}
        )

    def head(self, run_id: str = "run-001") -> str:
        """Return the last commit of the run's branch in git, its record aside."""
        return self.repo.git("rev-list", "-1", *NO_RECORD, f"refs/heads/autonomous/{run_id}")

    def commits(self, run_id: str = "run-001") -> list[str]:
        """Return the commits of the run's branch, newest first, all but its record."""
        branch = f"main..refs/heads/autonomous/{run_id}"
        return self.repo.git("rev-list", *NO_RECORD, branch).split()

    def file(self, *parts: str) -> str:
        return self.runs_dir.joinpath(*parts).read_text()

    def document(self, *parts: str) -> Json:
        return json_object(self.file(*parts))

    @staticmethod
    def plan(
        run_id: str = "run-001",
        *,
        tiers: int = 1,
        phases: int = 1,
        phase: Json | None = None,
        **run: Any,
    ) -> Json:
        """Make a plan: so many tiers `T0`…, each with so many phases `P<tier>.<index>`."""
        return {
            "run": {"run_id": run_id, **run},
            "tiers": [
                {"tier_id": f"T{tier}", "tier_index": tier, "name": f"Tier {tier}"}
                for tier in range(tiers)
            ],
            "phases": [
                {
                    "phase_id": f"P{tier}.{index}",
                    "phase_index": index,
                    "tier_id": f"T{tier}",
                    "name": f"Phase {index} of tier {tier}",
                    **(phase or {}),
                }
                for tier in range(tiers)
                for index in range(phases)
            ],
        }

    @staticmethod
    def new_file(path: str, *lines: str) -> str:
        """Write the patch that adds a file."""
        lines = lines or (f"This is {path}.",)
        body = "".join(f"+{line}\n" for line in lines)
        return (
            f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
            f"@@ -0,0 +1,{len(lines)} @@\n{body}"
        )

    @staticmethod
    def refused(response: Response, status: int, code: str | None = None, *names: str) -> Json:
        """Expect a problem document of this status and code whose sentence names these words."""
        assert response.status_code == status, f"{response.status_code}: {response.text[:500]}"
        assert response.headers["content-type"] == "application/problem+json"
        problem = answer(response)
        assert problem.keys() >= PROBLEM_MEMBERS
        assert problem["status"] == status
        assert code is None or problem["code"] == code, problem
        assert problem["type"].endswith(problem["code"])
        for name in names:
            assert name in problem["detail"], problem
        assert len(response.content) < 20_000  # what was sent is not sent back
        return problem


def answer(response: Response) -> Json:
    return json_object(response.text)


def json_object(text: str) -> Json:
    value = json.loads(text)
    assert isinstance(value, dict)
    return value


@pytest.fixture
def api(client: TestClient, git_repo: GitRepo, settings: Settings) -> Api:
    return Api(client, git_repo, settings.autonomous_runs_dir)


@dataclass
class Agents:
    """Builders and Auditors at their work, and a clock that waits for them."""

    api: Api
    app: FastAPI
    now: datetime = field(default_factory=lambda: datetime.now(UTC))
    tokens: list[str] = field(default_factory=list)

    def clock(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now

    def wait(self, **time: float) -> None:
        self.now += timedelta(**time)

    def upkeep(self) -> None:
        keep_up(self.app.state.context)

    def ask(
        self,
        role: str = "builder",
        run_id: str | None = "run-001",
        key: str | None = None,
        **fields: Any,
    ) -> Response:
        """Ask a run for work, None: any run."""
        path = "/claim" if run_id is None else f"/runs/{run_id}/claim"
        body = {"role": role, "agent": f"{role}@host-1", "lease_seconds": LEASE_SECONDS, **fields}
        headers = {"Idempotency-Key": key} if key else {}
        return self.api.client.post(path, json=body, headers=headers)

    def claim(self, role: str = "builder", run_id: str | None = "run-001", **fields: Any) -> Json:
        """Claim work that must be there."""
        response = self.ask(role, run_id, **fields)
        assert response.status_code == 200, response.text
        item: Json = response.json()
        self.tokens.append(item["lease"]["token"])
        return item

    def nothing_for(self, role: str = "builder", run_id: str | None = "run-001") -> None:
        response = self.ask(role, run_id)
        assert response.status_code == 204, response.text
        assert response.content == b""

    def peek(self, role: str = "builder", run_id: str = "run-001") -> Response:
        return self.api.client.get(f"/runs/{run_id}/next_phase", params={"role": role})

    def beat(self, item: Json, tokens_used: int = 0, **figures: str) -> Json:
        path = f"/runs/{item['run_id']}/phases/{item['phase_id']}/heartbeat"
        body = {"lease_token": item["lease"]["token"], "tokens_used": tokens_used, **figures}
        response = self.api.client.post(path, json=body)
        assert response.status_code == 200, response.text
        answer: Json = response.json()
        return answer

    def build(self, item: Json, **fields: Any) -> Response:
        """Hand in a result under a lease."""
        return self.api.result(
            item["run_id"], item["phase_id"], lease_token=item["lease"]["token"], **fields
        )

    def review(
        self, recommendation: str = "approve", token: str | None = None, **where: str
    ) -> Response:
        run_id = where.get("run_id", "run-001")
        phase_id = where.get("phase_id", "P0.0")
        body = {"recommendation": recommendation, "review_notes": "seen"}
        body |= {"lease_token": token} if token else {}
        return self.api.client.post(f"/runs/{run_id}/phases/{phase_id}/auditor_result", json=body)

    def reserved(self, run_id: str = "run-001") -> tuple[int, int]:
        """Return what the run and its phases have reserved, as the tables have it."""
        with self.app.state.context.engine.connect() as connection:
            row = connection.execute(
                text(
                    "SELECT r.tokens_reserved, (SELECT sum(p.tokens_reserved) FROM phases p"
                    " WHERE p.run_pk = r.id) FROM runs r WHERE r.run_id = :run_id"
                ),
                {"run_id": run_id},
            ).one()
        return int(row[0]), int(row[1])

    def events(self, run_id: str = "run-001") -> list[Json]:
        page = self.api.client.get(f"/runs/{run_id}/events", params={"limit": 1000}).json()
        events: list[Json] = page["events"]
        return events


@pytest.fixture
def agents(api: Api, app: FastAPI) -> Agents:
    agents = Agents(api, app)
    app.state.context = replace(app.state.context, now=agents.clock)
    return agents
