"""`autopack backtest`: what another ruleset would have made of finished runs, for people."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autopack.config import Settings

if TYPE_CHECKING:
    from tests.conftest import LiveServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]
Json = dict[str, Any]


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autopack", "backtest", *map(str, arguments)],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def refusal(*arguments: object, exit_code: int = 2, **environment: str) -> str:
    done = command(*arguments, **environment)
    assert done.returncode == exit_code, done.stdout
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("autopack: ")
    return line


def post(server: LiveServer, path: str, body: Json) -> Json:
    response = httpx.post(server.url + path, json=body, trust_env=False)
    assert response.is_success, response.text
    answer: Json = response.json()
    return answer


def finish_run(server: LiveServer, run_id: str, tokens: int) -> None:
    """Drive a run of one phase to its success, at a price."""
    phase = {"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "One"}
    plan: Json = {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
        "phases": [{**phase, "task_category": "docs", "allow_empty": True}],
    }
    post(server, "/runs/start", plan)
    result = {"status": "success", "tokens_used": tokens}
    answer = post(server, f"/runs/{run_id}/phases/P1/builder_result", result)
    assert answer["run_state"] == "DONE_SUCCESS"


@pytest.fixture
def ruleset(live_server: LiveServer, tmp_path: Path) -> Path:
    """The project's ruleset in a file, after two runs: a cheap one and a dear one."""
    finish_run(live_server, "cheap", 10)
    finish_run(live_server, "dear", 4_000)
    file = tmp_path / "rules.json"
    file.write_text(httpx.get(f"{live_server.url}/project/ruleset", trust_env=False).text)
    return file


def change(file: Path, **run: int) -> None:
    document = json.loads(file.read_text())
    document["run"].update(run)
    file.write_text(json.dumps(document))


def test_the_ruleset_that_runs_had_changes_nothing(live_server: LiveServer, ruleset: Path) -> None:
    done = command("--ruleset", ruleset, API_URL=live_server.url)
    assert done.returncode == 0, done.stderr
    assert "2 finished runs" in done.stdout
    assert "no outcome, cost or eligibility would change" in done.stdout
    assert done.stdout.count("\n") == 1


def test_a_smaller_cap_changes_the_run_that_passes_it_and_says_where(
    live_server: LiveServer, ruleset: Path
) -> None:
    change(ruleset, token_cap=1_000)
    done = command("--ruleset", ruleset, "--url", live_server.url)
    assert done.returncode == 1, done.stderr
    first, _, header, _, *rows = done.stdout.splitlines()
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
    assert "cheap" not in done.stdout


def test_runs_can_be_named_or_the_newest_taken(live_server: LiveServer, ruleset: Path) -> None:
    change(ruleset, token_cap=1_000)
    named = command("--ruleset", ruleset, "--run", "cheap", "--url", live_server.url)
    assert (named.returncode, "1 finished run " in named.stdout) == (0, True)
    both = command(
        *("--ruleset", ruleset, "--run", "cheap", "--run", "dear", "--url", live_server.url)
    )
    assert (both.returncode, "2 finished runs" in both.stdout) == (1, True)
    newest = command("--ruleset", ruleset, "--limit", "1", "--url", live_server.url)
    assert (newest.returncode, "1 finished run " in newest.stdout) == (1, True)


def test_a_plan_that_would_be_refused_is_reported(live_server: LiveServer, ruleset: Path) -> None:
    phases = [
        {"phase_id": f"P{n}", "phase_index": n, "tier_id": "T1", "name": "x"} for n in range(2)
    ]
    tiers = [{"tier_id": "T1", "tier_index": 0, "name": "First"}]
    post(live_server, "/runs/start", {"run": {"run_id": "big"}, "tiers": tiers, "phases": phases})
    post(live_server, "/runs/big/cancel", {})
    change(ruleset, max_phases=1)
    done = command("--ruleset", ruleset, "--run", "big", "--url", live_server.url)
    assert done.returncode == 1, done.stderr
    assert "the plan would be refused" in done.stdout
    assert "max_phases 1" in done.stdout


def test_the_whole_answer_can_be_had_as_json(live_server: LiveServer, ruleset: Path) -> None:
    change(ruleset, token_cap=1_000)
    done = command("--ruleset", ruleset, "--json", "--url", live_server.url)
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert (document["compared_count"], document["changed_count"]) == (2, 1)
    assert {run["run_id"] for run in document["runs"]} == {"cheap", "dear"}


def test_what_cannot_be_asked_is_one_line(
    live_server: LiveServer, ruleset: Path, settings: Settings
) -> None:
    url = live_server.url
    assert "nobody" in refusal("--ruleset", ruleset, "--run", "nobody", "--url", url)
    assert "limit" in refusal("--ruleset", ruleset, "--limit", "0", "--url", url)
    change(ruleset, token_cap=-1)
    assert "run.token_cap" in refusal("--ruleset", ruleset, "--url", url)


def test_a_file_that_is_no_ruleset_is_one_line(tmp_path: Path) -> None:
    assert "none.json" in refusal("--ruleset", tmp_path / "none.json")
    file = tmp_path / "rules.json"
    file.write_text("{")
    assert "not JSON" in refusal("--ruleset", file)
    file.write_text("[]")
    assert "no object" in refusal("--ruleset", file)
    file.write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal("--ruleset", file)


def test_a_service_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "rules.json"
    file.write_text("{}")
    away = refusal("--ruleset", file, exit_code=3, API_URL="http://127.0.0.1:9")
    assert "127.0.0.1:9" in away
    assert "autopack serve" in away
    assert "nonsense" in refusal("--ruleset", file, "--url", "nonsense")


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
    tmp_path: Path, status: int, body: bytes, named: str
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
        assert named in refusal("--ruleset", file, "--url", url, exit_code=3)
        thread.join()
