"""From `autopack init` in a project that has nothing of ours to a pull request for its run."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from tests.scripts.workflows import Workflow, pull_requests, put_stand_in_gh
from tests.waiting import wait_until

from autopack.cli.app import main
from autopack.config import Settings

if TYPE_CHECKING:
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo

pytestmark = pytest.mark.e2e

RUN, BRANCH = "run-001", "autonomous/run-001"
# A shell project: its own folder, its own checks, no Python, no pytest.
PROJECT: dict[str, str | bytes | None] = {
    "widget/widget.sh": "echo widget\n",
    "checks/all.sh": "set -e\nfor check in checks/*.check; do sh $check; done\n",
    "checks/widget.check": 'test "$(sh widget/widget.sh)" = widget\n',
}
PATCH = """\
diff --git a/widget/widget.sh b/widget/widget.sh
--- a/widget/widget.sh
+++ b/widget/widget.sh
@@ -1 +1,2 @@
+# Says what it is.
 echo widget
diff --git a/checks/comment.check b/checks/comment.check
new file mode 100644
--- /dev/null
+++ b/checks/comment.check
@@ -0,0 +1 @@
+grep -q '^#' widget/widget.sh
"""


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A service for the project `widget`, whose files lie where they lie by default."""
    return settings.model_copy(
        update={
            "project_id": "widget",
            "jobs": "inside",
            "git_remote": SecretStr(str(tmp_path / "host.git")),
            "autonomous_runs_dir": settings.repo_path / ".autonomous_runs",
        }
    )


@pytest.fixture
def git_repo(git_repo: GitRepo, tmp_path: Path) -> GitRepo:
    """The project, and its host."""
    git_repo.git("rm", "--quiet", "-r", ".")
    git_repo.git("branch", "--move", "trunk")
    git_repo.commit(PROJECT, "Start the widget")
    git_repo.git("init", "--quiet", "--bare", "--initial-branch=trunk", str(tmp_path / "host.git"))
    git_repo.git("remote", "add", "origin", str(tmp_path / "host.git"))
    return git_repo


@pytest.mark.campaigns
@pytest.mark.parametrize("mode", ["local", "external"])
def test_from_init_to_a_pull_request(
    mode: str,
    git_repo: GitRepo,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(git_repo.path / "widget")
    monkeypatch.setenv("AUTOPACK_PROJECT_ID", "widget")
    assert main(["init", "--ci", mode, "--ci-command", "sh checks/all.sh"]) == 0
    todo = next(line for line in capsys.readouterr().out.splitlines() if "git add" in line)
    git_repo.git(*todo.partition("git ")[2].partition(" && ")[0].split())
    git_repo.git("commit", "--quiet", "--message", "Set Autopack up")
    git_repo.git("push", "--quiet", "origin", "trunk")

    client: TestClient = request.getfixturevalue("client")  # from here on, the service
    _post(client, "/runs/start", PLAN)
    built = _post(
        client,
        f"/runs/{RUN}/phases/P1/builder_result",
        {"status": "success", "patch_content": PATCH},
    )
    assert built["phase_state"] == "CI_RUNNING"
    if mode == "external":
        _wait(client, "integration_status", lambda status: status["remote"]["is_up_to_date"])
        _judge_as_github_would(git_repo, client, tmp_path, built["commit_sha"])
    _wait(client, "", lambda run: run["state"].startswith("DONE_"))
    run = client.get(f"/runs/{RUN}").json()
    assert (run["state"], run["promotion_eligible_to_main"]) == ("DONE_SUCCESS", True)
    _wait(client, "integration_status", lambda status: status["remote"]["is_up_to_date"])

    # What GitHub does when a person starts the promotion.
    promoted = tmp_path / "promoted"
    git_repo.git("clone", "--quiet", str(tmp_path / "host.git"), str(promoted))
    put_stand_in_gh(tmp_path / "bin")

    def promote(run_id: str) -> tuple[int, str]:
        done = Workflow.read(promoted / ".github/workflows/promotion.yml").run(
            "promote",
            {
                "inputs.run_id || github.event.client_payload.run_id": run_id,
                "inputs.integration_branch"
                " || github.event.client_payload.integration_branch": BRANCH,
                "github.token": "a-token",
                "github.repository": "acme/widget",
            },
            promoted,
            PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            RUNNER_TEMP=str(tmp_path),
            GITHUB_STEP_SUMMARY=str(tmp_path / "summary.md"),
        )
        return done.returncode, done.stdout + done.stderr

    for other in ("'; touch pwned; '", "run-002"):
        code, said = promote(other)
        assert code != 0, said
    assert pull_requests(tmp_path / "bin") == []
    assert not list(tmp_path.rglob("pwned"))
    code, said = promote(RUN)
    assert code == 0, said
    (opened,) = pull_requests(tmp_path / "bin")
    assert (opened["base"], opened["head"]) == ("trunk", BRANCH)
    served = client.get(f"/runs/{RUN}/promotion").json()["pull_request"]
    assert opened["title"] == served["title"]
    assert RUN in opened["body"]

    # The base branch moves. The runner rehearses the merge with the one that it has checked out.
    (promoted / "widget" / "widget.sh").write_text("# Another comment.\necho widget\n")
    identity = ("-c", "user.name=Person", "-c", "user.email=person@localhost")
    git_repo.git("-C", str(promoted), *identity, "commit", "--quiet", "-am", "Another comment")
    code, said = promote(RUN)
    assert code != 0
    assert "does not merge with trunk at " in said
    assert "widget/widget.sh" in said
    assert len(pull_requests(tmp_path / "bin")) == 1


PLAN: dict[str, object] = {
    "run": {"run_id": RUN, "safety_profile": "safety_critical"},  # every phase is strict
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First"}],
    "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Comment it"}],
}


def _judge_as_github_would(
    git_repo: GitRepo, client: TestClient, tmp_path: Path, commit: str
) -> None:
    """Run the gate on the pushed branch, and let its verdict reach the service."""
    checkout = tmp_path / "checkout"
    git_repo.git("clone", "--quiet", "--branch", BRANCH, str(tmp_path / "host.git"), str(checkout))
    message = git_repo.git("log", "-1", "--format=%B", BRANCH)
    assert "[strict]" in message
    preflight = Workflow.read(checkout / ".github/workflows/preflight.yml")
    output = tmp_path / "output"
    temporary = {"runner.temp": str(tmp_path)}
    gated = preflight.run("preflight-strict", temporary, checkout, GITHUB_OUTPUT=str(output))
    assert gated.returncode == 0, gated.stderr
    job = {
        "result": "success",
        "outputs": {"gate": "success", "report": output.read_text().removeprefix("report=")},
    }
    with _relay(client) as url:
        told = preflight.run(
            "report",
            {
                "vars.AUTOPACK_URL": url,
                "secrets.AUTOPACK_API_KEY": "",
                "github.sha": commit,
                "github.event.head_commit.message": message,
                "toJSON(needs.preflight-normal)": json.dumps(job),
                "toJSON(needs.preflight-strict)": json.dumps(job),
                "github.server_url": "https://github.com",
                "github.repository": "acme/widget",
                "github.run_id": "5",
            },
            checkout,
        )
    assert told.returncode == 0, told.stdout


def _post(client: TestClient, path: str, body: object) -> Any:
    response = client.post(path, json=body)
    assert response.is_success, response.text
    return response.json()


def _wait(client: TestClient, what: str, is_so: Callable[[Any], bool]) -> None:
    def found() -> Any:
        return client.get(f"/runs/{RUN}/{what}".rstrip("/")).json()

    wait_until(lambda: is_so(found()), lambda: str(found()))


@contextmanager
def _relay(client: TestClient) -> Iterator[str]:
    """Give the service of this process an address."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = client.post(
                self.path, content=body, headers={"Content-Type": "application/json"}
            )
            self.send_response(answer.status_code)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}"
        finally:
            listener.shutdown()
            thread.join()
