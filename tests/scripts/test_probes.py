"""The probes pass against the real service, and name the first wrong answer of a false one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from pydantic import SecretStr

from autopack.config import Settings

if TYPE_CHECKING:
    from tests.conftest import LiveServer

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.probes,
    pytest.mark.skipif(
        not (shutil.which("bash") and shutil.which("curl") and shutil.which("python3")),
        reason="the probes need bash, curl and python3",
    ),
]

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
PROBES = ("run_state", "issues", "strategy", "builder_auditor", "ci_promotion")
# A service each; the groups take about the same time.
GROUPS = [("run_state", "strategy"), ("issues", "builder_auditor", "ci_promotion")]
Json = dict[str, Any]


@dataclass(frozen=True)
class Lie:
    """What a service would answer, or leave undone, that is not true; and who must notice."""

    probe: str
    name: str  # a part of the line that the probe must end with
    method: str
    path: str
    tell: Callable[[Json], object] = lambda body: None
    status: int | None = None
    removes: str | None = None  # a file of the runs directory; {run} is the run in the path
    resets: bool = False  # the run's branch to where it began


def put(place: str, value: object, was: object = None) -> Callable[[Json], object]:
    """Make the lie that sets a value at a place such as `tiers.0.state`, if it is `was` there."""

    def tell(body: Json) -> None:
        *steps, last = place.split(".")
        inner: Any = body
        for step in steps:
            inner = inner[int(step) if step.isdigit() else step]
        assert inner[last] != value
        assert was in (None, inner[last])
        inner[last] = value

    return tell


RUN = r"/runs/[^/]+"
LIES = [
    Lie("run_state", "the service is healthy", "GET", "/health", put("status", "unhealthy")),
    Lie("run_state", "a run starts", "POST", "/runs/start", put("state", "DONE"), status=200),
    Lie("run_state", "the run starts with its cap", "POST", "/runs/start", put("token_cap", 999)),
    Lie(
        "run_state",
        "after the start: the run: state is 'GATE'",
        "GET",
        RUN,
        put("state", "GATE"),
    ),
    Lie(
        "run_state",
        "the file {run}/tiers/tier_0_T1.md is missing",
        "POST",
        "/runs/start",
        removes="{run}/tiers/tier_0_T1.md",
    ),
    Lie("run_state", "allowed", "POST", f"{RUN}/phases/P1.1/update_status", put("allowed", [])),
    Lie("run_state", "breaks the hash chain", "GET", f"{RUN}/events", put("events.3.actor", "x")),
    Lie(
        "issues",
        "after one report: in the run: minor_issues_count is '0' instead of '1'",
        "GET",
        f"{RUN}-1",
        put("minor_issues_count", 0),
    ),
    Lie(
        "issues",
        "the first sighting: project_backlog_entry.age_in_runs",
        "POST",
        f"{RUN}-1/phases/P1/record_issue",
        put("project_backlog_entry.age_in_runs", 2),
    ),
    Lie(
        "issues",
        "the file project_issue_backlog.json is missing",
        "POST",
        f"{RUN}/phases/P1/record_issue",
        removes="project_issue_backlog.json",
    ),
    Lie(
        "issues",
        "a report counts: run_index_entry.occurrence_count",
        "POST",
        f"{RUN}-1/phases/P1/record_issue",
        put("run_index_entry.occurrence_count", 7),
    ),
    Lie(
        "strategy",
        "cross_cutting_refactor: strategy.phases.P1.max_builder_attempts",
        "POST",
        "/strategy/dry_run",
        put("strategy.phases.P1.max_builder_attempts", 9),
    ),
    Lie(
        "strategy",
        "the file project_ruleset_Autopack.json is missing",
        "GET",
        "/project/ruleset",
        removes="project_ruleset_Autopack.json",
    ),
    Lie("strategy", "a ruleset with a wrong value", "POST", "/strategy/dry_run", put("code", "")),
    Lie(
        "builder_auditor",
        "with nothing on it: commits_ahead_of_main",
        "GET",
        f"{RUN}/integration_status",
        put("commits_ahead_of_main", 1),
    ),
    Lie(
        "builder_auditor",
        "a malformed patch is refused",
        "POST",
        f"{RUN}/phases/P1/builder_result",
        put("code", "patch_conflict", was="patch_malformed"),
        status=200,
    ),
    Lie(
        "builder_auditor",
        "costs a try: Builder tries",
        "GET",
        RUN,
        put("tiers.0.phases.0.builder_attempts_used", 0, was=1),
    ),
    Lie(
        "builder_auditor",
        "both patches are applied: patches_applied",
        "POST",
        f"{RUN}/phases/P2/auditor_result",
        put("patches_applied", 1),
    ),
    Lie(
        "ci_promotion",
        "a run that goes on is not eligible: eligible is 'true'",
        "GET",
        f"{RUN}-normal/promotion",
        put("eligible", True),
    ),
    Lie(
        "ci_promotion",
        "no phase waits for a verdict",
        "POST",
        f"{RUN}-normal/phases/P1/ci_result",
        status=200,
    ),
    Lie(
        "ci_promotion",
        "is eligible: the checker ended with 1",
        "GET",
        f"{RUN}-normal/promotion",
        lambda body: body["warnings"][0],  # only once it is eligible
        resets=True,
    ),
    Lie(
        "ci_promotion",
        "a strict phase without a verdict is not eligible: eligible is 'true'",
        "GET",
        f"{RUN}-strict/promotion",
        put("eligible", True),
    ),
]


@dataclass
class Proxy:
    """Stands between a probe and the service, and tells one lie wherever it can."""

    target: str
    settings: Settings
    lie: Lie
    url: str = ""
    told: int = field(default=0)

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, str, bytes]:
        passed_on = {
            name: value
            for name, value in headers.items()
            if name.lower() in ("content-type", "idempotency-key")
        }
        response = httpx.request(
            method, self.target + path, headers=passed_on, content=body, trust_env=False, timeout=60
        )
        status, content = response.status_code, response.content
        bare = path.partition("?")[0]
        if method == self.lie.method and re.fullmatch(self.lie.path, bare):
            status, content = self._lie(bare, status, content)
        return status, response.headers["content-type"], content

    def _lie(self, path: str, status: int, content: bytes) -> tuple[int, bytes]:
        document = json.loads(content)
        try:
            self.lie.tell(document)
        except (KeyError, IndexError, AssertionError):
            return status, content  # nothing to lie about in this answer
        self.told += 1
        if self.lie.removes:
            name = document.get("run_id") or path.split("/")[2]
            runs_dir = self.settings.autonomous_runs_dir
            (runs_dir / self.lie.removes.format(run=name)).unlink(missing_ok=True)
        if self.lie.resets:
            branch = f"refs/heads/autonomous/{path.split('/')[2]}"
            move = ["git", "-C", str(self.settings.repo_path), "update-ref", branch, "main"]
            subprocess.run(move, check=True)
        return self.lie.status or status, json.dumps(document).encode()


@contextmanager
def lying(server: LiveServer, settings: Settings, lie: Lie) -> Iterator[Proxy]:
    proxy = Proxy(server.url, settings, lie)

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, kind, content = proxy.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = _serve  # noqa: N815  the names that the library asks for

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    proxy.url = f"http://127.0.0.1:{listener.server_address[1]}"
    try:
        yield proxy
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()


def probe(*names: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run probes by the one that runs them all."""
    return subprocess.run(
        ["bash", SCRIPTS / "autonomous_probe_complete.sh", *names],
        env={"PATH": os.environ["PATH"], "no_proxy": "127.0.0.1", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def of(server: LiveServer | Proxy, settings: Settings) -> dict[str, str]:
    """Tell a probe where the service is, and where its files are."""
    return {
        "API_URL": server.url,
        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
        "AUTOPACK_REPO_PATH": str(settings.repo_path),
    }


def test_the_probes_pass_against_the_service_as_it_is(
    live_server: LiveServer, settings: Settings
) -> None:
    done = probe(**of(live_server, settings))
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len(lines) == len(PROBES)
    assert all(re.fullmatch(r"PASS  .*: \d{2,} checks of http://.*", line) for line in lines)

    unreachable = of(live_server, settings) | {"AUTONOMOUS_RUNS_DIR": "/nowhere"}
    done = probe("run_state", **unreachable)
    assert done.returncode == 2
    assert "AUTONOMOUS_RUNS_DIR" in done.stderr
    assert "PROBE_FILES=skip" in done.stderr
    wrong = probe("run_state", **unreachable, PROBE_FILES="maybe")
    assert wrong.returncode == 2
    assert "maybe" in wrong.stderr

    # Again, without access to the files, and with an external CI.
    outside = {"project_id": "Autopack", "ci": {"mode": "external"}}
    url = f"{live_server.url}/project/ruleset"
    assert httpx.put(url, json=outside, trust_env=False, timeout=60).status_code == 200
    without = probe("ci_promotion", **unreachable, PROBE_FILES="skip")
    assert without.returncode == 0, without.stderr
    assert re.search(r"[1-9]\d* checks of files skipped", without.stdout)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Runs with an external CI only start if there is a remote."""
    host = tmp_path / "host.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(host)], check=True)
    return settings.model_copy(update={"git_remote": SecretStr(str(host))})


@pytest.mark.parametrize("names", GROUPS, ids="-".join)
def test_a_probe_names_the_first_thing_that_is_not_true(
    live_server: LiveServer, settings: Settings, names: tuple[str, ...]
) -> None:
    for lie in LIES:
        if lie.probe not in names:
            continue
        with lying(live_server, settings, lie) as proxy:
            done = probe(lie.probe, **of(proxy, settings))
        assert proxy.told, f"{lie.name}: the lie was never told"
        assert done.returncode == 1, f"{lie.name}: {done.stdout[-1_000:]}{done.stderr}"
        (line,) = done.stderr.splitlines()
        assert line.startswith("FAIL  ")
        head, _, tail = lie.name.partition("{run}")
        assert head in line, line
        assert tail in line, line
        assert "PASS" not in done.stdout
        url = f"{live_server.url}/runs?live=true"
        live = httpx.get(url, trust_env=False, timeout=60).json()["runs"]
        assert live == [], f"{lie.name}: it left runs open"


def test_probes_without_a_service_are_given_one_that_is_thrown_away(tmp_path: Path) -> None:
    environment = {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(SCRIPTS.parent / "src"),
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "DATABASE_URL": "postgresql://nobody@127.0.0.1:9/somebodys",
        "AUTOPACK_REPO_PATH": "/nowhere",
    }
    done = probe("ci_promotion", **environment)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "PASS  CI and promotion: " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_probe_that_cannot_reach_the_service_says_so_and_does_not_pass(tmp_path: Path) -> None:
    done = probe(API_URL="http://127.0.0.1:9", AUTONOMOUS_RUNS_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.count("127.0.0.1:9") >= len(PROBES)
    assert "PASS" not in done.stdout
    unknown = probe("../no_such")
    assert unknown.returncode == 2
    assert "../no_such" in unknown.stderr
