"""Whole runs by real MCP clients: the SDK's own, over Streamable HTTP and a real socket."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import httpx
import pytest
from mcp import Client
from mcp_types import CallToolResult, TextContent, TextResourceContents

if TYPE_CHECKING:
    from tests.conftest import GitRepo, ServedHere

pytestmark = pytest.mark.e2e

Json = dict[str, Any]
RUNS = 5
AGENTS = 10


@dataclass
class Agent:
    """An agent with a name, that calls tools and gets structured content."""

    client: Client
    name: str = "ada"

    async def call(self, tool: str, **arguments: Any) -> Json:
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        assert not result.is_error, result
        content: Json = result.structured_content
        return content

    async def refused(self, tool: str, **arguments: Any) -> Json:
        result = await self.client.call_tool(tool, arguments)
        assert isinstance(result, CallToolResult)
        assert result.is_error, result
        problem: Json = result.structured_content
        return problem

    async def claim(self, role: str, run_id: str | None = None) -> Json | None:
        where = {"run_id": run_id} if run_id else {}
        answer = await self.call("claim_work", role=role, agent=self.name, **where)
        work: Json | None = answer["work"]
        return work

    async def submit(self, work: Json, patch: str) -> Json:
        return await self.call("submit_builder_result", **self._result(work, patch))

    async def submit_refused(self, work: Json, patch: str) -> Json:
        return await self.refused("submit_builder_result", **self._result(work, patch))

    @staticmethod
    def _result(work: Json, patch: str) -> Json:
        return {
            "run_id": work["run_id"],
            "phase_id": work["phase_id"],
            "lease_token": work["lease"]["token"],
            "status": "success",
            "patch_content": patch,
            "base_commit": work["repository"]["base_commit"],
            "tokens_used": 100,
        }


def plan(run_id: str, *phases: tuple[str, str]) -> Json:
    """Make a plan with one tier a phase."""
    return {
        "run": {"run_id": run_id},
        "tiers": [
            {"tier_id": f"T{index}", "tier_index": index, "name": phase_id}
            for index, (phase_id, _) in enumerate(phases)
        ],
        "phases": [
            {
                "phase_id": phase_id,
                "phase_index": 0,
                "tier_id": f"T{index}",
                "name": f"Do {phase_id}",
                "task_category": category,
            }
            for index, (phase_id, category) in enumerate(phases)
        ],
    }


def start(server: ServedHere, plan: Json) -> None:
    answer = httpx.post(f"{server.url}/runs/start", json=plan, trust_env=False, timeout=60)
    assert answer.status_code == 201, answer.text


def change(old: str, new: str) -> str:
    return (
        "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
        f"@@ -1,3 +1,3 @@\n first\n-{old}\n+{new}\n last\n"
    )


def new_file(path: str) -> str:
    return (
        f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
        "@@ -0,0 +1 @@\n+new\n"
    )


def test_an_agent_can_complete_a_run_by_mcp_alone(
    served_here: ServedHere, git_repo: GitRepo
) -> None:
    git_repo.commit({"src/app.py": "first\nVALUE = 1\nlast\n"})
    start(served_here, plan("run-001", ("change", "docs"), ("schema", "schema_contract_change")))
    anyio.run(_one_run, served_here.url, git_repo)


@pytest.mark.campaigns
def test_many_agents_complete_runs_by_mcp_and_none_takes_a_phase_of_another(
    served_here: ServedHere, git_repo: GitRepo
) -> None:
    for number in range(RUNS):
        start(served_here, plan(f"many-{number}", ("one", "docs"), ("two", "docs")))
    claims = anyio.run(_many_agents, served_here.url)
    wanted = [(f"many-{number}", phase) for number in range(RUNS) for phase in ("one", "two")]
    assert sorted(claims) == sorted(wanted)  # no phase twice
    for number in range(RUNS):
        assert len(git_repo.git("rev-list", f"main..autonomous/many-{number}").split()) >= 2
        run = httpx.get(f"{served_here.url}/runs/many-{number}", trust_env=False, timeout=60).json()
        assert run["state"] == "DONE_SUCCESS"
        phases = [phase for tier in run["tiers"] for phase in tier["phases"]]
        assert [phase["builder_attempts_used"] for phase in phases] == [1, 1]


async def _one_run(url: str, repo: GitRepo) -> None:
    """A conflict solved by its ticket, an issue, and a high risk phase that is approved."""
    async with Client(f"{url}/mcp", mode="legacy") as client:  # as today's agents connect
        agent = Agent(client)
        prompt = await client.get_prompt("builder", {"run_id": "run-001"})
        text = prompt.messages[0].content
        assert isinstance(text, TextContent)
        tools = [tool.name for tool in (await client.list_tools()).tools]
        for name in ("claim_work", "check_patch", "submit_builder_result", "record_issue"):
            assert name in tools
            assert f"`{name}`" in text.text

        work = await agent.claim("builder", "run-001")
        assert work is not None
        assert await agent.claim("builder", "run-001") is None
        beat = await agent.call(
            "heartbeat",
            run_id="run-001",
            phase_id="change",
            lease_token=work["lease"]["token"],
            tokens_used=50,
        )
        assert beat["directive"] == "continue"

        outdated = change("VALUE = 0", "VALUE = 2")
        check = await agent.call(
            "check_patch",
            run_id="run-001",
            patch_content=outdated,
            base_commit=work["repository"]["base_commit"],
        )
        ticket = await agent.submit_refused(work, outdated)
        assert ticket.pop("detail") == (
            check["problem"].pop("detail") + " Builder tries used: 1 of 2; left: 1."
        )
        assert ticket == check["problem"]
        assert (ticket["status"], ticket["code"]) == (409, "patch_conflict")

        again = await agent.claim("builder", "run-001")
        assert again is not None
        assert again["repository"]["base_commit"] == ticket["head"]
        (before,) = again["history"]
        assert before["ticket"]["files"] == ticket["files"]
        (hunk,) = ticket["files"][0]["hunks"]
        _, now, _ = hunk["now"].splitlines()
        mended = change(now, "VALUE = 2")
        assert (await agent.submit(again, mended))["phase_state"] == "COMPLETE"

        schema = await agent.claim("builder", "run-001")
        assert schema is not None
        issue = {"issue_key": "no_migration_test", "source": "cursor_self_doubt"}
        phase = {"run_id": "run-001", "phase_id": "schema"}
        await agent.call("record_issue", **phase, **issue, category="test_gap", severity="minor")
        patch = new_file("src/schema.sql")
        pending = await agent.submit(schema, patch)
        assert (pending["phase_state"], pending["next"]["action"]) == ("GATE", "audit")
        assert await agent.claim("builder", "run-001") is None

        own = await agent.call("claim_work", role="auditor", agent="ada")
        assert own["work"] is None
        assert "waits for another Auditor: local:ada@" in own["message"]
        agent.name = "grace"
        review = await agent.claim("auditor", "run-001")
        assert review is not None
        assert review["review"]["patch_content"] == patch
        assert [each["issue_key"] for each in review["open_issues"]] == ["no_migration_test"]
        approved = await agent.call(
            "submit_auditor_result",
            **phase,
            lease_token=review["lease"]["token"],
            recommendation="approve",
            review_notes="It says what it does.",
        )
        assert approved["phase_state"] == "COMPLETE"

        over = await agent.refused("claim_work", role="builder", agent="ada", run_id="run-001")
        assert (over["status"], over["code"]) == (409, "run_over")
        run = await agent.call("get_run", run_id="run-001")
        assert run["state"] == "DONE_SUCCESS"
        backlog = await agent.call("get_backlog", category="test_gap")
        assert list(backlog["issues_by_key"]) == ["no_migration_test"]

        listed = [each.uri for each in (await client.list_resources()).resources]
        assert listed == ["autopack://runs/run-001/summary", "autopack://runs/run-001/diff"]
        summary, diff = [(await client.read_resource(uri)).contents[0] for uri in listed]
        assert isinstance(summary, TextResourceContents)
        assert '"DONE_SUCCESS"' in summary.text
        assert isinstance(diff, TextResourceContents)
        repo.git("apply", "--check", stdin=diff.text)
        assert repo.git("show", "autonomous/run-001:src/app.py") == "first\nVALUE = 2\nlast"
        assert repo.git("show", "autonomous/run-001:src/schema.sql") == "new"


@dataclass
class Progress:
    """Lets agents wait for one another instead of for a clock."""

    wanted: int
    done: int = 0
    claims: list[tuple[str, str]] = field(default_factory=list)
    moved: anyio.Condition = field(default_factory=anyio.Condition)

    async def one_more(self) -> None:
        async with self.moved:
            self.done += 1
            self.moved.notify_all()

    async def past(self, seen: int) -> None:
        async with self.moved:
            while self.done == seen:
                await self.moved.wait()


async def _many_agents(url: str) -> list[tuple[str, str]]:
    progress = Progress(wanted=2 * RUNS)

    async def work_on(number: int) -> None:
        async with Client(f"{url}/mcp") as client:
            agent = Agent(client, f"agent-{number}")
            while (seen := progress.done) < progress.wanted:
                work = await agent.claim("builder")
                if work is None:  # the agent with the last work item has no answer yet
                    await progress.past(seen)
                    continue
                progress.claims.append((work["run_id"], work["phase_id"]))
                await agent.submit(work, new_file(f"src/{work['phase_id']}.txt"))
                await progress.one_more()

    with anyio.fail_after(120):
        async with anyio.create_task_group() as tasks:
            for number in range(AGENTS):
                tasks.start_soon(work_on, number)
    return progress.claims
