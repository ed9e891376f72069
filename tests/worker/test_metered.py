"""A worker behind whose agents the gateway measures. (docs/worker.md, Measured spend)"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.meter.conftest import MODEL, REAL_KEY, Provider

from autopack.meter.providers import ProviderError, providers_of
from autopack.meter.server import GatewayServer
from autopack.worker import metered
from autopack.worker.agents import Agent
from autopack.worker.metered import Metered, opencode_settings
from autopack.worker.worker import NOTHING_MEASURED, Ending, Orders

if TYPE_CHECKING:
    from .conftest import Workshop

pytestmark = pytest.mark.integration

KEYS = {"OPENAI_API_KEY": REAL_KEY, "MY_COPY": f"key={REAL_KEY}", "CODEX_API_KEY": "other"}
# Asks the model as often as its argument says; exits with 1 at the first refusal.
ASK = f"""
import json, os, sys, urllib.request
for _ in range(int(sys.argv[1])):
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps({{"model": "{MODEL}", "messages": [], "max_tokens": 10}}).encode(),
        {{"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}},
    )
    try:
        urllib.request.urlopen(request).read()
    except urllib.error.HTTPError as error:
        sys.exit(error.read().decode())
"""
USAGE = {
    "prompt_tokens": 900,
    "prompt_tokens_details": {"cached_tokens": 400},
    "completion_tokens": 100,
    "completion_tokens_details": {"reasoning_tokens": 30},
}


def ask(times: int) -> str:
    return f"{shlex.quote(sys.executable)} -c {shlex.quote(ASK)} {times}"


@pytest.fixture
def gateway() -> Iterator[GatewayServer]:
    provider = Provider(lambda request: httpx.Response(200, json={"usage": USAGE}))
    with GatewayServer(providers_of(KEYS), provider) as server:
        yield server


def test_what_was_measured_is_the_result_not_what_the_agent_says(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    workshop.start()
    lie = """printf '{"tokens_used": 5, "model": "mine", "cost_usd": 9}' > $AUTOPACK_RESULT"""
    command = f"{ask(2)}; {lie}; env > seen.txt"
    assert workshop.work(command, gateway=gateway, environment=KEYS) is Ending.SUCCESS
    (attempt,) = workshop.attempts()
    assert attempt.tokens_used == 2_000
    assert (attempt.input_tokens, attempt.cached_tokens, attempt.output_tokens) == (1_000, 800, 200)
    assert attempt.reasoning_tokens == 60
    assert attempt.is_measured
    assert workshop.service.get_run("run-001").tokens_measured == 2_000
    assert attempt.model == MODEL
    assert attempt.cost_usd is None  # the ruleset has no price
    assert f"no price of {MODEL}" in workshop.said("measured")
    seen = workshop.service.attempts("run-001", "P1")
    assert seen.attempts[0].files_changed == ["seen.txt"]


def test_the_agent_does_not_get_the_models_key(workshop: Workshop, gateway: GatewayServer) -> None:
    workshop.start()
    command = f"{ask(1)}; echo more >> README.md; env"
    workshop.work(command, gateway=gateway, environment=KEYS | {"NO_PROXY": "a.example"})
    (attempt,) = workshop.attempts()
    assert REAL_KEY not in attempt.log_tail
    assert "CODEX_API_KEY" not in attempt.log_tail
    assert f"OPENAI_BASE_URL={gateway.url}/v1\n" in attempt.log_tail
    assert "NO_PROXY=a.example,127.0.0.1\n" in attempt.log_tail


def test_an_agent_at_the_cap_has_failed_and_its_account_does_not_pause(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    """Its message is of a quota, but no other time would help."""
    workshop.start(run={"token_cap": 2_500})
    assert workshop.work(ask(9), gateway=gateway, environment=KEYS) is Ending.FAILURE
    (attempt,) = workshop.attempts()
    assert attempt.tokens_used == 3_000
    assert attempt.status == "failed"
    assert "The budget of this task is used up: 3000 of 2500 tokens" in attempt.notes
    assert workshop.service.get_run("run-001").tokens_used == 3_000


def test_an_agent_that_waits_at_the_cap_is_stopped(
    workshop: Workshop, gateway: GatewayServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metered, "CAP_GRACE_SECONDS", 0.01)
    workshop.start(run={"token_cap": 2_500})
    assert workshop.work(f"{ask(9)}; sleep 1000", gateway=gateway, environment=KEYS)
    (attempt,) = workshop.attempts()
    assert "The command was stopped: The budget of this task is used up" in attempt.notes


def test_the_prices_of_the_ruleset_make_the_cost(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    price = {"input": 1, "cached": "0.5", "output": 10, "date": "2026-11-01"}
    workshop.service.put_ruleset(workshop.service.get_ruleset() | {"prices": {MODEL: price}})
    workshop.start(run={"cost_cap_usd": "0.002"})
    assert workshop.work(ask(9), gateway=gateway, environment=KEYS) is Ending.FAILURE
    (attempt,) = workshop.attempts()
    assert str(attempt.cost_usd) == "0.003400"  # two requests of 0.0017
    assert "0.003400 of 0.002000 USD" in attempt.notes


def test_beside_another_agent_the_money_is_what_the_claim_reserved(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    """So agents side by side pass the run's cap by at most one request each."""
    price = {"input": 1, "cached": "0.5", "output": 10, "date": "2026-11-01"}
    workshop.service.put_ruleset(workshop.service.get_ruleset() | {"prices": {MODEL: price}})
    phases = [
        {
            "phase_id": name,
            "phase_index": at,
            "tier_id": "T1",
            "name": "Do it",
            "task_category": "docs",
            "depends_on": [],
            "allowed_paths": [f"{name}/**"],
        }
        for at, name in enumerate(("P1", "P2"))
    ]
    tiers = [{"tier_id": "T1", "tier_index": 0, "name": "Tier"}]
    # 200,000 of the run's tokens for each phase: two thirds of the money, and what is left.
    run = {"run_id": "run-001", "token_cap": 300_000, "cost_cap_usd": "0.006"}
    workshop.service.start_run({"run": run, "tiers": tiers, "phases": phases})
    other = workshop.service.claim("builder", "other", run_id="run-001")
    assert other is not None
    assert other.lease is not None
    assert str(other.lease.cost_reserved_usd) == "0.004000"
    assert workshop.work(ask(9), gateway=gateway, environment=KEYS) is Ending.FAILURE
    (attempt,) = workshop.service.attempts("run-001", "P2").attempts
    assert str(attempt.cost_usd) == "0.003400"  # two requests, the second of which passed it
    assert "0.003400 of 0.002000 USD" in str(attempt.notes)


def test_an_agent_that_asks_its_model_elsewhere_is_told_about(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    workshop.start()
    command = """echo more >> README.md; echo '{"tokens_used": 77}'"""
    workshop.work(command, gateway=gateway, environment=KEYS)
    assert workshop.attempts()[0].tokens_used == 77
    assert workshop.said("measured") == NOTHING_MEASURED


def test_work_without_a_result_counts_what_was_measured(
    workshop: Workshop, gateway: GatewayServer
) -> None:
    """The lease lapses at the figures of the last heartbeat."""
    workshop.start(task_category="debt_cleanup")
    workshop.work("echo more >> README.md")
    beats: list[int] = []

    def listen(request: httpx.Request) -> None:
        if request.url.path.endswith("heartbeat"):
            beats.append(json.loads(request.content)["tokens_used"])

    workshop.transport.interfere = listen
    workshop.work("exit 9", auditor=ask(1), gateway=gateway, environment=KEYS)
    assert workshop.kinds[-1] == "no_verdict"
    assert beats == [1_000]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has prctl")
def test_a_worker_that_measures_hides_its_environment() -> None:
    code = (
        "import ctypes; from autopack.worker.command import hide_from_other_processes as hide;"
        "hide(); print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_codex_gets_the_gateway_as_its_provider(gateway: GatewayServer) -> None:
    token, account = gateway.open(1, None, {}, lambda: None)
    agent = Agent("codex@x", ["/bin/codex", "exec", "-m", "gpt-5", "-"], "codex")
    words = Metered(gateway, token, account).command(agent)
    assert words[:3] == ["/bin/codex", "-c", 'model_provider="autopack"']
    assert f'base_url="{gateway.url}/v1"' in words[4]
    assert words[5:] == ["exec", "-m", "gpt-5", "-"]
    assert token not in " ".join(words)


def test_opencode_and_gemini_get_the_gateway_in_place_of_each_key() -> None:
    names = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY")
    keys = {name: f"sk-{name}" for name in names}
    with GatewayServer(providers_of(keys), Provider()) as server:
        url = server.url
        token, account = server.open(1, None, {}, lambda: None)
        agent = Agent("opencode@x", ["opencode", "run"], "opencode")
        given = Metered(server, token, account).environment(
            keys | {"GOOGLE_API_KEY": "other", "GOOGLE_GENAI_USE_VERTEXAI": "true"}, agent
        )
    assert {name: given[name] for name in names} == dict.fromkeys(names, token)
    assert given["GOOGLE_GEMINI_BASE_URL"] == url
    assert not {"GOOGLE_API_KEY", "GOOGLE_GENAI_USE_VERTEXAI"} & given.keys()
    assert "sk-" not in " ".join(given.values())
    providers = json.loads(given["OPENCODE_CONFIG_CONTENT"])["provider"]
    assert {name: each["options"]["baseURL"] for name, each in providers.items()} == {
        "openai": f"{url}/v1",
        "anthropic": f"{url}/v1",
        "google": f"{url}/v1beta",
    }
    assert providers["google"]["options"]["apiKey"] == "{env:GEMINI_API_KEY}"


def test_opencode_keeps_the_other_settings_of_its_variable(gateway: GatewayServer) -> None:
    mine = {
        "model": "openai/gpt-5",
        "provider": {
            "openai": {"options": {"baseURL": "http://x", "timeout": 9}, "models": {"a": {}}},
            "local": {"npm": "x"},
        },
    }
    token, account = gateway.open(1, None, {}, lambda: None)
    agent = Agent("opencode@x", ["opencode", "run"], "opencode")
    given = Metered(gateway, token, account).environment(
        {"OPENCODE_CONFIG_CONTENT": json.dumps(mine)}, agent
    )
    settings = json.loads(given["OPENCODE_CONFIG_CONTENT"])
    assert settings["model"] == "openai/gpt-5"
    assert settings["provider"]["local"] == {"npm": "x"}
    assert settings["provider"]["openai"]["models"] == {"a": {}}
    assert settings["provider"]["openai"]["options"] == {
        "timeout": 9,
        "baseURL": f"{gateway.url}/v1",
        "apiKey": "{env:OPENAI_API_KEY}",
    }


@pytest.mark.parametrize("text", ["// none", "[]"])
def test_settings_of_opencode_that_cannot_get_the_gateway_stop_the_start(text: str) -> None:
    fallback = Agent("second", ["opencode"], "opencode")
    first = Agent("first", ["codex"], "codex", fallback=fallback)
    orders = Orders(agents={"builder": first})
    assert "opencode" in orders.kinds
    with pytest.raises(ProviderError, match="OPENCODE_CONFIG_CONTENT is not a JSON object"):
        opencode_settings({"OPENCODE_CONFIG_CONTENT": text})


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"GOOGLE_GEMINI_BASE_URL": "x"}, "GOOGLE_GEMINI_BASE_URL is not"),
        ({}, "needs the key of a model"),
        ({"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "ftp://x"}, "OPENAI_BASE_URL is not"),
        ({"ANTHROPIC_BASE_URL": "http://[::1"}, "ANTHROPIC_BASE_URL is not"),
    ],
)
def test_a_gateway_without_a_usable_provider_is_refused(
    environment: dict[str, str], message: str
) -> None:
    with pytest.raises(ProviderError, match=message):
        providers_of(environment)
