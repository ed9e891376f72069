"""Each agent that speaks MCP, alone with the service. (docs/agents.md, MCP)"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.agents.clients import written
from tests.agents.model_server import Call, Say, Situation, Turn

from autopack.client import Autopack

if TYPE_CHECKING:
    from tests.agents.conftest import Scene

    from autopack.config import Settings

pytestmark = pytest.mark.agents

GREETER = 'def greet(name):\n    return f"Hello, {name}!"\n'
# As docs/agents.md starts them; no person is there who could approve a tool.
COMMANDS = {
    "codex": ["codex", "exec", "--skip-git-repo-check", "--sandbox", "workspace-write", "-"],
    "claude": ["claude", "-p", "--allowedTools", "mcp__autopack,Edit,Write,Bash"],
    "gemini": ["gemini", "--yolo", "--skip-trust"],
    "opencode": ["opencode", "run"],
}
WAITED = "waited-for-tools"
MOST_WAITS = 20
DIFF = "git diff --no-ext-diff --no-color --src-prefix=a/ --dst-prefix=b/ --cached --binary HEAD"


def work_item(answer: str) -> Any:
    """Find the claimed work in what an agent shows its model of a tool's answer."""
    place = answer.index('{"work"') if '{"work"' in answer else answer.index("{")
    document, _ = json.JSONDecoder().raw_decode(answer[place:])
    return document["work"]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """A service that asks for keys."""
    return settings.model_copy(update={"auth": "required"})


@pytest.mark.parametrize("agent_name", COMMANDS)
def test_an_agent_builds_a_phase_by_the_tools_alone(scene: Scene) -> None:
    """The clone of the repository's path works in the agent's own sandbox.

    Each agent sends its API key with every message, as docs/agents.md configures it.
    """
    operator = scene.make_key("ada", "operator")
    scene.service = scene.stack.enter_context(Autopack(scene.service.address, api_key=operator))
    scene.api_key = scene.make_key("builder-1", "builder")

    def script(seen: Situation) -> Turn:
        if not seen.tools:
            return Say("A title")
        results = [text for text in seen.results if WAITED not in text]
        if not any(name.endswith("claim_work") for name in seen.tools):
            # Agents start before their MCP servers have answered.
            assert len(seen.results) < MOST_WAITS, seen.tools
            return scene.agent.shell(f"sleep 1; echo {WAITED}")
        run = {"run_id": "run-001"}
        match len(results):
            case 0:
                return Call("claim_work", {**run, "role": "builder", "agent": scene.agent.name})
            case 1:
                work = work_item(results[0])
                place, base = work["repository"]["path"], work["repository"]["base_commit"]
                return scene.agent.shell(
                    f"git clone -q --no-checkout {place} clone && cd clone &&"
                    f" git checkout -q --detach {base} && {written('greeter.py', GREETER)} &&"
                    f" git add --all && {DIFF}"
                )
            case 2:
                work = work_item(results[0])
                found = re.search(r"diff --git .*?\+    return [^\n]*", results[1], re.DOTALL)
                assert found, results[1]
                return Call(
                    "submit_builder_result",
                    {
                        **run,
                        "phase_id": work["phase_id"],
                        "lease_token": work["lease"]["token"],
                        "base_commit": work["repository"]["base_commit"],
                        "status": "success",
                        "patch_content": f"{found[0]}\n",
                        "tokens_used": 4_000,
                    },
                )
            case _:
                return Say("The run is over.")

    scene.start()
    model = scene.model(script)
    ended = scene.drive(model, *COMMANDS[scene.agent.name])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = model.situations[-1]
    assert scene.service.get_run("run-001").state == "DONE_SUCCESS", told
    assert scene.repo.git("show", "autonomous/run-001:greeter.py") == GREETER.rstrip()
    attempt = scene.attempt()
    assert (attempt.agent, attempt.tokens_used) == (scene.agent.name, 4_000)
    assert attempt.actor == "key:builder-1:builder"
