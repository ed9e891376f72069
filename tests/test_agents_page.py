"""The examples on the page for agents work."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autopack.api.examples import PATCH, PLAN
from autopack.api.mcp.tools import TOOLS
from autopack.domain.changes import DIFF_COMMAND

if TYPE_CHECKING:
    from tests.conftest import GitRepo, ServedHere

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "agents.md").read_text()
ADDRESS = "http://localhost:8000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def run_code(code: str, names: dict[str, Any]) -> None:
    exec(code, names)  # noqa: S102 - the page's own


@pytest.mark.unit
def test_every_client_gets_the_same_address() -> None:
    (cursor, gemini, opencode), (codex,) = blocks("json"), blocks("toml")
    assert json.loads(gemini)["mcpServers"]["autopack"]["httpUrl"] == f"{ADDRESS}/mcp"
    assert json.loads(opencode)["mcp"]["autopack"]["url"] == f"{ADDRESS}/mcp"
    assert json.loads(cursor)["mcpServers"]["autopack"]["url"] == f"{ADDRESS}/mcp"
    assert tomllib.loads(codex)["mcp_servers"]["autopack"]["url"] == f"{ADDRESS}/mcp"
    assert f"--transport http autopack {ADDRESS}/mcp" in blocks("bash")[0]


@pytest.mark.unit
def test_every_tool_is_named() -> None:
    table = PAGE.partition("\n| tool |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", row)]
    assert [name for name in named if name in TOOLS] == list(TOOLS)


@pytest.mark.unit
def test_the_builder_on_the_page_makes_its_patch_with_the_command_of_the_prompts() -> None:
    names: dict[str, Any] = {}
    run_code(blocks("python")[0].partition("\n\n\n")[0], names)
    names["api"].close()
    assert " ".join(("git", *names["DIFF"])) == f"{DIFF_COMMAND} --cached --binary --full-index"


@pytest.mark.e2e
def test_the_python_examples_work_as_they_stand_whatever_git_is_set_to(
    served_here: ServedHere, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    hostile = {"diff.noprefix": "true", "color.ui": "always", "diff.external": "false"}
    monkeypatch.setenv("GIT_CONFIG_COUNT", str(len(hostile)))
    for index, (key, value) in enumerate(hostile.items()):
        monkeypatch.setenv(f"GIT_CONFIG_KEY_{index}", key)
        monkeypatch.setenv(f"GIT_CONFIG_VALUE_{index}", value)
    builder, cursor, codex = (block.replace(ADDRESS, served_here.url) for block in blocks("python"))
    with httpx.Client(base_url=served_here.url, timeout=60) as client:
        for run_id in ("run-001", "run-002"):
            plan = {**PLAN, "run": {**PLAN["run"], "run_id": run_id}}
            assert client.post("/runs/start", json=plan).status_code == 201

        names: dict[str, Any] = {"diff_output": PATCH}
        run_code(cursor, names)
        run_code(codex, names)
        answers = [names[name].status_code for name in ("response", "requested", "reviewed")]
        assert answers == [200, 202, 200]

        def edit(work: dict[str, Any], folder: Path) -> int:
            if not work["history"]:  # a first try that policy refuses
                (folder / ".github").mkdir()
                (folder / ".github" / "CODEOWNERS").write_text("* @me\n")
            (folder / "logo.bin").write_bytes(b"\0\xff")
            (folder / "src" / "app.py").unlink()
            return 1_200

        run_code(builder, names)
        names["build"]("run-002", edit)
        names["api"].close()
        run = client.get("/runs/run-002").json()
    assert (run["state"], run["tokens_used"]) == ("DONE_SUCCESS", 2_400)
    difference = ("diff", "--name-status", "main", "autonomous/run-002")
    changed = git_repo.git(*difference, "--", ":!.autonomous_runs")
    assert changed.split() == ["A", "logo.bin", "D", "src/app.py"]
    assert len(git_repo.git("worktree", "list").splitlines()) == 1
