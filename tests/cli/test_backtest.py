"""`autopack backtest`: what another ruleset would have made of finished runs, for people."""

from __future__ import annotations

import json
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest

from autopack.client import Autopack

if TYPE_CHECKING:
    from tests.cli.conftest import Terminal
    from tests.conftest import ServedHere
    from tests.processes import ForkServer

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
Json = dict[str, Any]


@pytest.fixture
def ruleset(autopack: Autopack, tmp_path: Path) -> Path:
    """The project's ruleset in a file, after two runs: a cheap one and a dear one."""
    finish_run(autopack, "cheap", 10)
    finish_run(autopack, "dear", 4_000)
    file = tmp_path / "rules.json"
    file.write_text(json.dumps(autopack.get_ruleset()))
    return file


def finish_run(autopack: Autopack, run_id: str, tokens: int) -> None:
    """Drive a run of one phase to its success, at a price."""
    phase = {"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "One"}
    plan: Json = {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
        "phases": [{**phase, "task_category": "docs", "allow_empty": True}],
    }
    autopack.start_run(plan)
    result = {"status": "success", "tokens_used": tokens}
    assert autopack.submit_builder_result(run_id, "P1", result).run_state == "DONE_SUCCESS"


def change(file: Path, **run: int) -> None:
    document = json.loads(file.read_text())
    document["run"].update(run)
    file.write_text(json.dumps(document))


def test_the_ruleset_that_runs_had_changes_nothing(terminal: Terminal, ruleset: Path) -> None:
    said = terminal.run("backtest", "--ruleset", ruleset)
    assert "2 finished runs" in said
    assert "no outcome, cost or eligibility would change" in said
    assert said.count("\n") == 1


def test_a_smaller_cap_changes_the_run_that_passes_it_and_says_where(
    terminal: Terminal, ruleset: Path
) -> None:
    change(ruleset, token_cap=1_000)
    said = terminal.run("backtest", "--ruleset", ruleset, exit_code=1)
    first, _, header, _, *rows = said.splitlines()
    assert first.endswith("1 would change.")
    assert header.split() == ["run", "what", "was", "would", "be"]
    assert rows[0].split() == [
        *("dear", "outcome", "DONE_SUCCESS"),
        *("DONE_FAILED_BUDGET_EXHAUSTED", "(token_cap)"),
    ]
    assert rows[1].split() == ["promotion", "eligible", "not", "eligible"]
    assert rows[2].lstrip().startswith("parting")
    assert "at event" in rows[2]
    assert "COMPLETE" in rows[2]
    assert "cheap" not in said


def test_runs_can_be_named_or_the_newest_taken(terminal: Terminal, ruleset: Path) -> None:
    change(ruleset, token_cap=1_000)
    runs = ("--run", "cheap", "--run", "dear")
    named = terminal.run("backtest", "--ruleset", ruleset, *runs[:2])
    assert "1 finished run " in named
    assert "2 finished runs" in terminal.run("backtest", "--ruleset", ruleset, *runs, exit_code=1)
    newest = terminal.run("backtest", "--ruleset", ruleset, "--limit", "1", exit_code=1)
    assert "1 finished run " in newest


def test_a_plan_that_would_be_refused_is_reported(
    terminal: Terminal, autopack: Autopack, ruleset: Path
) -> None:
    phases = [
        {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T1", "name": "x"} for n in range(2)
    ]
    tiers = [{"tier_id": "T1", "tier_index": 0, "name": "First"}]
    autopack.start_run({"run": {"run_id": "big"}, "tiers": tiers, "phases": phases})
    autopack.cancel("big")
    change(ruleset, max_phases=1)
    said = terminal.run("backtest", "--ruleset", ruleset, "--run", "big", exit_code=1)
    assert "the plan would be refused" in said
    assert "max_phases 1" in said


def test_the_whole_answer_can_be_had_as_json(terminal: Terminal, ruleset: Path) -> None:
    change(ruleset, token_cap=1_000)
    document = terminal.json("backtest", "--ruleset", ruleset, exit_code=1)
    assert (document["compared_count"], document["changed_count"]) == (2, 1)
    assert {run["run_id"] for run in document["runs"]} == {"cheap", "dear"}


@pytest.mark.e2e
def test_a_process_asks_the_service_that_the_environment_or_an_option_names(
    served_here: ServedHere, tmp_path: Path, fork_server: ForkServer
) -> None:
    url = served_here.url
    with Autopack(url) as autopack:
        finish_run(autopack, "cheap", 10)
        file = tmp_path / "rules.json"
        file.write_text(json.dumps(autopack.get_ruleset()))
    for arguments, environment in (([], {"API_URL": url}), (["--url", url], {})):
        done = fork_server.run(
            *("backtest", "--ruleset", str(file), *arguments),
            folder=tmp_path,
            environment={"PATH": os.environ["PATH"], **environment},
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert "1 finished run decided again" in done.stdout


def test_what_cannot_be_asked_is_one_line(terminal: Terminal, ruleset: Path) -> None:
    command = ("backtest", "--ruleset", ruleset)
    assert "nobody" in terminal.refusal(*command, "--run", "nobody")
    assert "limit" in terminal.refusal(*command, "--limit", "0")
    change(ruleset, token_cap=-1)
    assert "run.token_cap" in terminal.refusal(*command)


def test_a_file_that_is_no_ruleset_is_one_line(terminal: Terminal, tmp_path: Path) -> None:
    assert "none.json" in terminal.refusal("backtest", "--ruleset", tmp_path / "none.json")
    file = tmp_path / "rules.json"
    for content, reason in ((b"{", "not JSON"), (b"[]", "no object"), (b"\xff\xfe\0", "not UTF-8")):
        file.write_bytes(content)
        assert reason in terminal.refusal("backtest", "--ruleset", file)


def test_a_service_that_is_not_there_is_one_line(
    terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rules.json"
    file.write_text("{}")
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    away = terminal.refusal("backtest", "--ruleset", file, exit_code=3)
    assert "127.0.0.1:9" in away
    assert "autopack serve" in away
    assert "nonsense" in terminal.refusal("backtest", "--ruleset", file, "--url", "nonsense")


@pytest.mark.parametrize(
    ("status", "body", "named"),
    [
        (200, b"<html>", "no JSON"),
        (200, b'{"runs": 1}', "not a BacktestAnswer"),
        (503, b'{"detail": "the database\\nis away"}', "the database is away (503)"),
        (502, b'["x"]', "502"),
    ],
)
def test_an_answer_that_is_none_is_one_line(
    terminal: Terminal, tmp_path: Path, status: int, body: bytes, named: str
) -> None:
    file = tmp_path / "rules.json"
    file.write_text("{}")

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = Thread(target=listener.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{listener.server_address[1]}"
        assert named in terminal.refusal("backtest", "--ruleset", file, "--url", url, exit_code=3)
        thread.join()
