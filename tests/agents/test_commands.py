"""Each known agent's real program as the worker's command. (docs/worker.md, Known agents)"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from tests.agents.clients import AGENTS, written
from tests.agents.model_server import USAGE, Refuse, Say, Situation, Turn

if TYPE_CHECKING:
    from tests.agents.conftest import Scene

pytestmark = pytest.mark.agents

EVERY_AGENT = pytest.mark.parametrize("agent_name", AGENTS)
TOOL_USERS = pytest.mark.parametrize("agent_name", [name for name in AGENTS if name != "aider"])
GREETER = 'def greet(name):\n    return f"Hello, {name}!"\n'
DONE = "It greets people by their name."
NOTES = "Tested by hand."


def answer_file(prompt: str) -> str:
    found = re.search(r"/\S+/\.autopack-[0-9a-f]+\.json", prompt)
    assert found, "the prompt names no file for the answer"
    return found[0]


@EVERY_AGENT
def test_an_agents_edit_and_its_figures_reach_the_run(scene: Scene) -> None:
    """A sandboxed agent can write its answer file too, and leaves nothing else in the patch."""

    def script(seen: Situation) -> Turn:
        if scene.agent.name == "aider":  # it reads edits from the text
            return Say(f"{DONE}\n\ngreeter.py\n```\n{GREETER}```\n")
        if not seen.tools:
            return Say("A title")
        steps = [
            written("greeter.py", GREETER),
            written(answer_file(seen.prompt), f'{{"notes": "{NOTES}"}}'),
        ]
        done = len(seen.results)
        return scene.agent.shell(steps[done]) if done < len(steps) else Say(DONE)

    scene.start()
    model = scene.model(script)
    worker = scene.work(model, "--builder", scene.agent.name)
    assert worker.returncode == 0, worker.stdout + worker.stderr
    assert scene.repo.git("show", "autonomous/run-001:greeter.py") == GREETER.rstrip()
    attempt = scene.attempt()
    turns = sum(1 for each in model.situations if each.tools or scene.agent.name == "aider")
    if scene.agent.name == "aider":  # it rounds, and counts cached tokens as sent
        assert (attempt.input_tokens, attempt.cached_tokens) == (1_200, 0)
    else:
        assert attempt.notes.endswith(NOTES)
        assert attempt.input_tokens == turns * USAGE.fresh
        assert attempt.cached_tokens == turns * USAGE.cached
    assert attempt.output_tokens == turns * USAGE.output
    assert DONE in attempt.log_tail
    assert attempt.files_changed == ["greeter.py"]
    assert (attempt.model is None) == (scene.agent.name in ("codex", "opencode"))
    assert (attempt.cost_usd is None) == (scene.agent.name not in ("claude", "opencode"))
    assert scene.service.get_run("run-001").tokens_used == attempt.tokens_used > 0


@EVERY_AGENT
def test_an_agents_review_decides(scene: Scene) -> None:
    scene.start(task_category="debt_cleanup")
    model = scene.model(lambda seen: Say("A title"))
    scene.work(model, "--builder", "sh -c 'echo more >> README.md'")

    def script(seen: Situation) -> Turn:
        if not seen.tools or scene.agent.name == "aider":
            return Say("It is good.\n\nRECOMMENDATION: approve")
        if not seen.results:
            return scene.agent.shell("git diff HEAD --stat")
        return Say(f"{seen.results[0].strip()}\n\nRECOMMENDATION: approve")

    model = scene.model(script)
    worker = scene.work(model, "--auditor", scene.agent.name)
    assert worker.returncode == 0, worker.stdout + worker.stderr
    assert scene.phase().state == "COMPLETE"
    attempt = scene.attempt()
    assert attempt.role == "auditor"
    assert attempt.tokens_used > 1_000
    if scene.agent.name != "aider":
        assert "README.md" in attempt.notes


@EVERY_AGENT
def test_an_agent_whose_key_is_refused_has_not_failed(scene: Scene) -> None:
    scene.start()
    model = scene.model(lambda seen: Refuse(401, "This key is revoked."))
    worker = scene.work(model, "--builder", scene.agent.name)
    assert worker.returncode == 1, worker.stdout + worker.stderr
    attempt = scene.attempt()
    assert attempt.outcome == "unavailable", attempt
    assert scene.phase().builder_attempts_used == 0
    assert "This key is" in worker.stdout, worker.stdout
