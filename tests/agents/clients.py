"""The real agents: where their programs are, and how each reaches a model and its tools."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.agents.model_server import MODEL, Call

Json = dict[str, Any]
FOLDER: Final = "AUTOPACK_TEST_AGENTS"  # where scripts/agents.sh installs the programs
KEY: Final = "not-a-key"  # of the model
OPENCODE_MODEL: Final = "TEST_OPENCODE_MODEL"  # of the model that its settings name
API_KEY: Final = "AUTOPACK_API_KEY"  # the variable from which the header of MCP is made


@dataclass(frozen=True)
class Agent:
    """One agent.

    `configure` writes its settings into a home, for the address of a model and perhaps of an MCP
    server, and returns its environment. `shell` is a call of the tool that runs a command line.
    """

    name: str
    configure: Callable[[Path, str, str | None], dict[str, str]]
    shell: Callable[[str], Call]


def programs() -> str | None:
    """Return the PATH of the installed agents, None where none are to be tested."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return None
    return f"{folder}/npm/node_modules/.bin:{folder}/aider/bin"


def environment(
    agent: Agent, home: Path, model: str, mcp: str | None = None, api_key: str | None = None
) -> dict[str, str]:
    """Return an environment with a home of its own and nothing else of this machine."""
    scratch = home / "tmp"  # Codex refuses a home below the folder for temporary files
    scratch.mkdir(parents=True)
    node = shutil.which("node")
    path = [programs() or "", os.path.dirname(node) if node else "", "/usr/local/bin:/usr/bin:/bin"]
    ours = agent.configure(home, model, mcp)
    own = {"HOME": str(home), "TMPDIR": str(scratch), "LANG": "C.UTF-8"}
    key = {} if api_key is None else {API_KEY: api_key}
    return {"PATH": ":".join(filter(None, path)), **own, **ours, **key}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _codex(home: Path, model: str, mcp: str | None) -> dict[str, str]:
    settings = (
        f'model = "{MODEL}"\nmodel_provider = "stand-in"\n'
        f'[model_providers.stand-in]\nname = "stand-in"\nbase_url = "{model}/v1"\n'
        'wire_api = "responses"\nenv_key = "STAND_IN_KEY"\n'
        "request_max_retries = 0\nstream_max_retries = 0\n"
    )
    if mcp is not None:  # as docs/agents.md has it
        settings += (
            f'[mcp_servers.autopack]\nurl = "{mcp}"\ntool_timeout_sec = 120\n'
            f'default_tools_approval_mode = "approve"\nbearer_token_env_var = "{API_KEY}"\n'
        )
    _write(home / ".codex/config.toml", settings)
    return {"STAND_IN_KEY": KEY}


def _claude(home: Path, model: str, mcp: str | None) -> dict[str, str]:
    if mcp is not None:
        headers = {"Authorization": f"Bearer ${{{API_KEY}}}"}
        server = {"type": "http", "url": mcp, "headers": headers}
        _write(home / ".claude.json", json.dumps({"mcpServers": {"autopack": server}}))
    return {
        "ANTHROPIC_BASE_URL": model,
        "ANTHROPIC_API_KEY": KEY,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_MAX_RETRIES": "0",
    }


def _gemini(home: Path, model: str, mcp: str | None) -> dict[str, str]:
    settings: Json = {"security": {"auth": {"selectedType": "gemini-api-key"}}}
    if mcp is not None:
        headers = {"Authorization": f"Bearer ${{{API_KEY}}}"}
        server = {"httpUrl": mcp, "trust": True, "headers": headers}
        settings["mcpServers"] = {"autopack": server}
    _write(home / ".gemini/settings.json", json.dumps(settings))
    return {
        "GOOGLE_GEMINI_BASE_URL": model,
        "GEMINI_API_KEY": KEY,
        "GEMINI_MODEL": "gemini-2.5-pro",  # of its own choice it asks a model which to ask
        "GEMINI_TELEMETRY_ENABLED": "false",
    }


def _opencode(home: Path, model: str, mcp: str | None) -> dict[str, str]:
    price = {"input": 1, "output": 2, "cache_read": 0.1}
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "options": {"baseURL": f"{model}/v1", "apiKey": KEY},
        "models": {MODEL: {"cost": price}},
    }
    # Its own `openai` is what the gateway of --meter stands before, in the Responses format.
    providers = {"stand-in": provider, "openai": {"models": {MODEL: {}}}}
    settings: Json = {"provider": providers, "model": f"{{env:{OPENCODE_MODEL}}}"}
    if mcp is not None:
        headers = {"Authorization": f"Bearer {{env:{API_KEY}}}"}
        settings["mcp"] = {"autopack": {"type": "remote", "url": mcp, "headers": headers}}
    _write(home / ".config/opencode/opencode.json", json.dumps(settings))
    return {
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        OPENCODE_MODEL: f"stand-in/{MODEL}",
    }


def _aider(home: Path, model: str, mcp: str | None) -> dict[str, str]:
    return {
        "OPENAI_API_BASE": f"{model}/v1",
        "OPENAI_API_KEY": KEY,
        "AIDER_MODEL": f"openai/{MODEL}",
        "AIDER_ANALYTICS_DISABLE": "1",
    }


AGENTS: Final[Mapping[str, Agent]] = {
    agent.name: agent
    for agent in (
        Agent("codex", _codex, lambda line: Call("exec_command", {"cmd": line})),
        Agent("claude", _claude, lambda line: Call("Bash", {"command": line})),
        Agent("gemini", _gemini, lambda line: Call("run_shell_command", {"command": line})),
        Agent(
            "opencode",
            _opencode,
            lambda line: Call("bash", {"command": line, "description": "Run it"}),
        ),
        Agent("aider", _aider, lambda line: Call("none", {})),
    )
}


def written(path: str, text: str) -> str:
    """Return a command line that writes a file."""
    return f"printf %s {shlex.quote(text)} > {shlex.quote(path)}"
