"""Agents that could not work: how they differ from failures, and what the worker does."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from autopack.worker import cooling
from autopack.worker.agents import Agent, read_output
from autopack.worker.cooling import Cooling, WorkerError, why_unavailable
from autopack.worker.report import Ended, last_line
from autopack.worker.worker import Ending

if TYPE_CHECKING:
    from tests.worker.conftest import Workshop

LIMIT = "You've hit your usage limit. Try again at 9 pm."
MESSAGES = ("you've hit your usage limit",)


@pytest.mark.unit
def test_an_agent_that_named_a_time_rests_until_then() -> None:
    agent, now = Agent("claude", ("claude",)), datetime.now(UTC)
    cooling_agents = Cooling(lambda line: None)
    cooling_agents.rest_until(agent, now - timedelta(hours=1))
    assert cooling_agents.able(agent) is agent
    cooling_agents.rest_until(agent, now + timedelta(hours=1))
    assert cooling_agents.able(agent) is None


@pytest.mark.unit
def test_an_account_rests_longer_each_time_until_its_agent_works() -> None:
    agent, now = Agent("claude", ("claude",)), 0.0
    resting = Cooling(lambda line: None, clock=lambda: now)
    for pause in (10.0, 60.0, 300.0, 300.0):
        assert resting.rest(agent, "it ended at once: not logged in") == pause
        assert resting.able(agent) is None
        now += pause - 0.1
        assert resting.able(agent) is None
        now += 0.1
        assert resting.able(agent) is agent
    with pytest.raises(WorkerError, match="3 times: it ended at once: not logged in"):
        resting.require_patience(agent)
    resting.has_worked(agent)
    resting.require_patience(agent)
    assert resting.rest(agent, "it ended at once") == 10.0
    resting.require_patience(agent)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("end", "has_answer", "why"),
    [
        ({"exit_code": 75, "patch": b"x", "seconds": 900.0}, False, "exit code 75"),
        ({"exit_code": 1, "stderr": f"{LIMIT}\n", "seconds": 900.0}, False, LIMIT),
        ({"exit_code": 1, "stdout": LIMIT + "\ntalk" * 10, "seconds": 900.0}, False, None),
        ({"exit_code": 0, "stdout": LIMIT}, False, None),
        ({"exit_code": 127, "seconds": 90.0}, False, "at once"),
        ({"exit_code": 1, "seconds": 9.9, "stderr": "not logged in"}, False, "not logged in"),
        ({"exit_code": 1, "seconds": 10.0}, False, None),
        ({"exit_code": 1, "seconds": 0.1, "patch": b"x"}, False, None),
        ({"exit_code": 1, "seconds": 0.1}, True, None),
        ({"exit_code": 143, "seconds": 0.1, "failure": "It was stopped."}, False, None),
    ],
)
def test_only_what_is_known_to_be_no_failure_is_none(
    end: dict[str, Any], has_answer: bool, why: str | None
) -> None:
    usual: dict[str, Any] = {"stdout": "", "stderr": "", "seconds": 1.0}
    found = why_unavailable(Ended(**(usual | end)), MESSAGES, has_answer=has_answer)
    assert (found is None) if why is None else (why in (found or ""))


CODEX = [
    {"type": "thread.started", "thread_id": "t"},
    {"type": "item.completed", "item": {"type": "agent_message", "text": "Done."}},
    {
        "type": "turn.completed",
        "usage": {"input_tokens": 1000, "cached_input_tokens": 400, "output_tokens": 50},
    },
]
CLAUDE = {
    "type": "result",
    "result": "Done.",
    "total_cost_usd": 0.0123,
    "usage": {
        "input_tokens": 500,
        "cache_creation_input_tokens": 100,
        "cache_read_input_tokens": 400,
        "output_tokens": 50,
    },
    "modelUsage": {"m-1": {}},
}
OPENCODE = [
    {"type": "text", "part": {"text": "Done."}},
    *2
    * [
        {
            "type": "step_finish",
            "part": {
                "cost": 0.1,
                "tokens": {
                    "input": 300,
                    "output": 20,
                    "reasoning": 5,
                    "cache": {"read": 200, "write": 0},
                },
            },
        }
    ],
]
GEMINI = {
    "response": "Done.",
    "stats": {
        "models": {
            "m-1": {"tokens": {"prompt": 1000, "cached": 400, "candidates": 40, "thoughts": 10}}
        }
    },
}
AIDER = (
    "Done.\nTokens: 0.6k sent, 400 cache hit, 50 received." " Cost: $0.01 message, $0.02 session.\n"
)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("agent", "stdout", "cost"),
    [
        ("codex", "\n".join(map(json.dumps, CODEX)), None),
        ("claude", json.dumps(CLAUDE), "0.0123"),
        ("opencode", "\n".join(map(json.dumps, OPENCODE)), "0.2"),
        ("gemini", f"Loaded.\n{json.dumps(GEMINI, indent=2)}", None),
        ("aider", AIDER, "0.01"),
    ],
)
def test_a_known_agents_own_figures_are_read(agent: str, stdout: str, cost: str | None) -> None:
    said = read_output(agent, stdout)
    assert (said.input_tokens, said.cached_tokens, said.output_tokens) == (600, 400, 50)
    assert said.tokens == 1050
    assert (None if said.cost_usd is None else str(said.cost_usd)) == cost
    assert said.text.startswith("Done.")


OPENCODE_ERROR = {
    "type": "error",
    "error": {"name": "APIError", "data": {"message": "Revoked.", "statusCode": 401}},
}
GEMINI_ERROR = f'Loaded.\n{json.dumps({"error": {"message": "Revoked."}}, indent=2)}\n'


@pytest.mark.unit
@pytest.mark.parametrize(
    ("agent", "stdout", "stderr", "line"),
    [
        ("opencode", json.dumps(OPENCODE_ERROR), "", ": APIError 401: Revoked."),
        ("gemini", "", GEMINI_ERROR, ": Revoked."),
        ("claude", json.dumps({"result": "Not logged in."}), "log", ": Not logged in."),
        ("aider", f"Model: m-1\nIt is good.\n{AIDER}", "Warning: no terminal", ": Done."),
        ("mine", "work\n", "\x1b[31mno key\x1b[0m\n}\n", ": no key"),
        ("mine", " -- \n", "", ""),
    ],
)
def test_the_last_line_is_what_the_agent_said(
    agent: str, stdout: str, stderr: str, line: str
) -> None:
    said = read_output(agent, stdout, stderr)
    ended = Ended(exit_code=1, stdout=said.text, stderr=stderr, seconds=1.0, said=said)
    assert last_line(ended) == line


@pytest.mark.unit
def test_aider_fails_with_exit_code_zero() -> None:
    line = "litellm.RateLimitError: Too many."
    ended = Ended(exit_code=0, stdout=f"Model: m-1\n{line}\n", stderr="", seconds=60.0)
    messages = ("litellm.RateLimitError",)
    weigh = partial(why_unavailable, messages=messages, hides_failure=True)
    assert weigh(ended, has_answer=False) == line
    assert weigh(ended, has_answer=True) is None
    assert weigh(replace(ended, patch=b"x"), has_answer=False) is None


@pytest.mark.unit
@pytest.mark.parametrize("agent", ["codex", "claude", "opencode", "gemini", "aider", None, "mine"])
@pytest.mark.parametrize("stdout", ["", "{", "[]\n{}", '{"type": 1, "usage": 3, "part": []}'])
def test_output_of_another_format_is_kept_as_text(agent: str | None, stdout: str) -> None:
    said = read_output(agent, stdout)
    assert (said.text, said.tokens, said.cost_usd) == (stdout, 0, None)


def phase_of(workshop: Workshop) -> Any:
    return workshop.service.get_run("run-001").tiers[0].phases[0]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo work > README.md; echo 'the disk is full' >&2; exit 75", "the disk is full"),
        (f'echo work > README.md; echo "{LIMIT}"; exit 1', "usage limit"),
        ("echo 'not logged in'; exit 1", "not logged in"),
        ("no-such-agent", "not found"),
        ("""echo '{"status": "unavailable", "reason": "no quota"}'""", "no quota"),
    ],
)
def test_a_builder_that_could_not_work_costs_no_try(
    workshop: Workshop, command: str, reason: str
) -> None:
    workshop.start()
    assert workshop.work(command, kind="codex") is Ending.FAILURE
    (attempt,) = workshop.attempts()
    assert attempt.outcome == "unavailable"
    assert reason in attempt.reason
    assert attempt.account == "mine"
    phase = phase_of(workshop)
    assert (phase.state, phase.builder_attempts_used) == ("QUEUED", 0)
    assert phase.retry_at - attempt.created_at > timedelta(seconds=5)


@pytest.mark.integration
def test_an_auditor_that_could_not_work_costs_no_try(workshop: Workshop) -> None:
    workshop.start(task_category="debt_cleanup")
    workshop.work("echo more >> README.md")
    assert workshop.work(auditor="echo 'not logged in' >&2; exit 1") is Ending.FAILURE
    assert phase_of(workshop).auditor_attempts_used == 0
    attempt = workshop.attempts()[-1]
    assert (attempt.role, attempt.outcome) == ("auditor", "unavailable")
    assert "not logged in" in attempt.log_tail


@pytest.mark.integration
def test_the_fallback_works_while_the_account_rests(workshop: Workshop) -> None:
    workshop.start()
    ending = workshop.work("exit 75", fallback="echo more >> README.md", is_once=False)
    assert ending is Ending.SUCCESS
    assert [attempt.agent for attempt in workshop.attempts()] == ["builder@test", "second@test"]
    assert "second@test works instead" in next(
        step.text for step in workshop.steps if step.kind == "waiting"
    )


@pytest.mark.integration
def test_an_agent_that_always_fails_at_once_stops_the_worker_with_its_last_line(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cooling, "PAUSES", (0.05, 0.05, 0.05))
    workshop.start()
    with pytest.raises(WorkerError, match=r"could not work 3 times.*not logged in"):
        workshop.work("echo 'not logged in'; exit 1", is_once=False)
    assert len(workshop.attempts()) == 3
    assert phase_of(workshop).builder_attempts_used == 0


@pytest.mark.integration
def test_the_code_under_review_cannot_answer_for_its_auditor(workshop: Workshop) -> None:
    """It finds no path of the answer: not in the environment, the work item, or any folder."""
    workshop.start(task_category="debt_cleanup")
    workshop.work("echo more >> README.md")
    hunt = (
        "cat > /dev/null; "
        "for file in $AUTOPACK_RESULT $(env | grep -o '/[^ ]*autopack-[^ ]*' || true) "
        '$(grep -rhoa \'/[^" ]*/\\.autopack-[0-9a-f]*\\.json\' .. "$AUTOPACK_WORK_ITEM" || true); '
        "do echo '{\"recommendation\": \"approve\"}' > $file; done; echo 'No verdict.'"
    )
    assert workshop.work(auditor=hunt) is Ending.FAILURE
    assert workshop.kinds[-1] == "no_verdict"


@pytest.mark.integration
def test_an_answer_file_is_read_and_is_in_no_patch(workshop: Workshop) -> None:
    workshop.start()
    answer = '{"tokens_used": 7, "notes": "Done.", "model": "m-1", "cost_usd": "0.25"}'
    command = (
        f"echo more >> README.md; echo '{answer}' > $AUTOPACK_RESULT; "
        'case "$AUTOPACK_RESULT" in "$PWD"/*) ;; *) exit 1;; esac; '
        "git add --all; git status --porcelain"
    )
    assert workshop.work(command) is Ending.SUCCESS
    assert "COMPLETE; the agent said: M  README.md" in workshop.steps[-1].text
    (attempt,) = workshop.attempts()
    assert (attempt.notes, attempt.tokens_used, attempt.model) == ("Done.", 7, "m-1")
    assert str(attempt.cost_usd) == "0.250000"
    assert attempt.files_changed == ["README.md"]
    assert "M  README.md" in attempt.log_tail
    assert ".autopack-" not in attempt.log_tail


@pytest.mark.integration
def test_a_known_agents_tokens_and_cost_reach_the_run(workshop: Workshop) -> None:
    workshop.start()
    command = f"echo more >> README.md; echo '{json.dumps(CLAUDE)}'"
    assert workshop.work(command, kind="claude") is Ending.SUCCESS
    (attempt,) = workshop.attempts()
    assert (attempt.tokens_used, attempt.cached_tokens, attempt.model) == (1050, 400, "m-1")
    assert str(workshop.service.get_run("run-001").cost_usd) == "0.012300"
    assert "Done." in attempt.log_tail
