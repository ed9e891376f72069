"""Real agents behind the gateway of `autopack work --meter`. (docs/worker.md, Measured spend)"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.agents.clients import KEY, written
from tests.agents.model_server import USAGE, Say, Situation, Turn

if TYPE_CHECKING:
    from tests.agents.conftest import Scene

pytestmark = [
    pytest.mark.agents,
    pytest.mark.parametrize("agent_name", ["codex", "claude", "aider", "opencode", "gemini"]),
]
GREETER = 'def greet(name):\n    return f"Hello, {name}!"\n'
PER_TURN = USAGE.fresh + USAGE.cached + USAGE.output


def test_what_a_real_agent_spends_is_measured_and_it_has_no_key(scene: Scene) -> None:
    def script(seen: Situation) -> Turn:
        if scene.agent.name == "aider":  # it has no tools
            return Say(f"Done.\n\ngreeter.py\n```\n{GREETER}```\n")
        if not seen.tools:
            return Say("A title")
        steps = [scene.agent.shell(written("greeter.py", GREETER)), scene.agent.shell("env")]
        done = len(seen.results)
        return steps[done] if done < len(steps) else Say(f"Done.\n{seen.results[-1]}")

    scene.start()
    model = scene.model(script)
    worker = scene.work(model, "--builder", scene.agent.name, "--meter")
    assert worker.returncode == 0, worker.stdout + worker.stderr
    attempt = scene.attempt()
    assert attempt.files_changed == ["greeter.py"]
    assert attempt.tokens_used == model.turns * PER_TURN  # its title counts too
    assert attempt.output_tokens == model.turns * USAGE.output
    assert attempt.model
    assert f"measured: {model.turns} requests" in worker.stdout
    assert KEY not in attempt.log_tail
    assert scene.agent.name == "aider" or "OPENAI_API_KEY=autopack-" in attempt.log_tail


def test_a_real_agent_stops_at_the_cap(scene: Scene) -> None:
    """Without the cap it would go on for ever."""
    if scene.agent.name == "aider":
        pytest.skip("aider asks a model once for a task")
    scene.start(token_cap=3 * PER_TURN)
    model = scene.model(
        lambda seen: Say("No edit") if not seen.tools else scene.agent.shell("true")
    )
    scene.work(model, "--builder", scene.agent.name, "--meter")
    attempt = scene.attempt()
    assert attempt.status == "failed"
    assert "The budget of this task is used up" in attempt.notes
    assert attempt.tokens_used == 3 * PER_TURN == model.turns * PER_TURN
