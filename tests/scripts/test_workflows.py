"""The workflows: what triggers them, what they may do, and that their steps do it."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.scripts.workflows import Workflow, pull_requests, put_stand_in_gh

from autopack.domain.results import CiReport
from autopack.domain.terms import Verdict

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".github" / "workflows"
TEMPLATE = ROOT / "src" / "autopack" / "setup" / "files" / ".github" / "workflows" / "preflight.yml"
WORKFLOWS = [*sorted(FOLDER.glob("*.yml")), TEMPLATE]
HOSTILE = [
    "'; touch pwned; '",
    '"; touch pwned; "',
    "$(touch pwned)",
    "`touch pwned`",
    "--help",
    "-",
    "..",
    "a b",
    "run-001\n::error::pwned",
    "",
]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_has_least_rights_pinned_actions_and_no_value_in_a_scripts_text(
    path: Path,
) -> None:
    workflow = Workflow.read(path)
    assert workflow.document["permissions"] in ({}, {"contents": "read"})
    for job in workflow.jobs.values():
        assert job["timeout-minutes"] <= 70
    for step in workflow.steps():
        assert "${{" not in step.get("run", "")
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_ci_runs_where_the_guide_says() -> None:
    ci = Workflow.read(FOLDER / "ci.yml")
    assert ci.document["on"]["push"]["branches"] == ["main", "autonomous/**"]
    assert ci.document["on"]["pull_request"]["branches"] == ["main"]
    assert set(ci.jobs) == {"lint", "test", "preflight-normal", "preflight-strict", "report"}
    on_our_branches = "startsWith(github.ref, 'refs/heads/autonomous/')"
    assert ci.jobs["preflight-normal"]["if"] == on_our_branches
    strict = "contains(github.event.head_commit.message, '[strict]')"
    assert ci.jobs["preflight-strict"]["if"] == f"{on_our_branches} && {strict}"


def test_projects_get_the_same_gate_as_we_have() -> None:
    ours, theirs = (Workflow.read(path).jobs for path in (FOLDER / "ci.yml", TEMPLATE))
    for name in ("preflight-normal", "preflight-strict"):
        gate, outcome = ours[name]["steps"][-2:]
        gate["env"].pop("PYTEST_ADDOPTS")
        assert theirs[name]["steps"][-2:] == [gate, outcome]
        assert theirs[name]["outputs"] == ours[name]["outputs"]
    ours["report"]["steps"][0]["with"]["ref"] = "${{ env.BASE }}"
    assert theirs["report"] == ours["report"]


class Promotion:
    """A repository on a host, its checkout as the action leaves it, and a `gh`.

    The base branch's checker is one that says what the branch's `verdict.json` holds; the workflow
    with the real one is in the test of `autopack init`.
    """

    CHECKER = """\
import json, pathlib, subprocess, sys
run, branch = (word.split("=", 1)[1] for word in sys.argv[1:3])
pathlib.Path("asked.json").write_text(json.dumps([run, branch, sys.argv[3:]]))
said = subprocess.check_output(["git", "show", f"{branch}:verdict.json"], text=True)
print(said)
sys.exit(0 if json.loads(said)["eligible"] else 1)
"""

    def __init__(self, host: GitRepo, folder: Path) -> None:
        self.host = host
        self.checkout = folder / "checkout"
        self.bin = folder / "bin"
        self.summary = folder / "summary.md"
        put_stand_in_gh(self.bin)
        host.commit({"scripts/check_promotion.py": self.CHECKER})

    def offer(self, branch: str, **verdict: Any) -> None:
        """Push a branch with a verdict of the checker, and one of its own that lies."""
        self.host.git("switch", "--quiet", "--force-create", branch, "main")
        whole = {"eligible": True, "reasons": [], "warnings": [], **verdict}
        evil = "import pathlib; pathlib.Path('pwned').touch()"
        self.host.commit({"verdict.json": json.dumps(whole), "scripts/check_promotion.py": evil})
        self.host.git("switch", "--quiet", "main")

    def run(self, run_id: str, branch: str) -> tuple[int, str]:
        if not self.checkout.exists():
            self.host.git("clone", "--quiet", str(self.host.path), str(self.checkout))
        self.host.git("-C", str(self.checkout), "fetch", "--quiet", "origin")
        done = Workflow.read(FOLDER / "promotion.yml").run(
            "promote",
            {
                "inputs.run_id || github.event.client_payload.run_id": run_id,
                "inputs.integration_branch"
                " || github.event.client_payload.integration_branch": branch,
                "github.token": "a-token",
                "github.repository": "acme/sample",
            },
            self.checkout,
            PATH=f"{self.bin}:{os.environ['PATH']}",
            RUNNER_TEMP=str(self.bin),
            GITHUB_STEP_SUMMARY=str(self.summary),
        )
        return done.returncode, done.stdout + done.stderr

    def is_untouched(self) -> bool:
        return not list(self.checkout.parent.rglob("pwned"))


@pytest.fixture
def promotion(git_repo: GitRepo, tmp_path: Path) -> Promotion:
    return Promotion(git_repo, tmp_path)


def test_promotion_opens_a_pull_request_and_updates_it_the_next_time(promotion: Promotion) -> None:
    title = "Run run-001 $(touch pwned) 'and' \"so on\""
    promotion.offer("autonomous/run-001", title=title, body="# Summary\n`touch pwned`\n")
    code, said = promotion.run("run-001", "autonomous/run-001")
    assert code == 0, said
    (opened,) = pull_requests(promotion.bin)
    assert opened == {
        "number": 1,
        "base": "main",
        "head": "autonomous/run-001",
        "title": title,
        "body": "# Summary\n`touch pwned`\n\n",
    }
    asked = json.loads((promotion.checkout / "asked.json").read_text())
    assert asked == ["run-001", "autonomous/run-001", ["--base=main", "--json"]]

    promotion.offer("autonomous/run-001", title="Anew", body="Other", warnings=["look\n::error::x"])
    code, said = promotion.run("run-001", "autonomous/run-001")
    assert code == 0, said
    (updated,) = pull_requests(promotion.bin)
    assert (updated["number"], updated["title"]) == (1, "Anew")
    assert promotion.is_untouched()


def test_promotion_fails_with_the_reasons_and_opens_nothing(promotion: Promotion) -> None:
    reasons = ["tier 'T1' is not clean", "two\n::add-mask::lines"]
    promotion.offer("autonomous/run-001", eligible=False, reasons=reasons)
    code, said = promotion.run("run-001", "autonomous/run-001")
    assert code != 0
    assert "tier 'T1' is not clean" in said
    assert "tier 'T1' is not clean" in promotion.summary.read_text()
    assert "::add-mask::" not in [line[:12] for line in said.splitlines()]
    assert pull_requests(promotion.bin) == []


def test_an_input_is_never_code(promotion: Promotion) -> None:
    promotion.offer("autonomous/run-001", eligible=False, reasons=["no such run"])
    for value in HOSTILE:
        code, said = promotion.run("run-001", value)
        assert code != 0, said
        code, said = promotion.run(value, "autonomous/run-001")
        assert code != 0, said
        asked = json.loads((promotion.checkout / "asked.json").read_text())
        assert asked == [value, "autonomous/run-001", ["--base=main", "--json"]]
    assert pull_requests(promotion.bin) == []
    assert promotion.is_untouched()


@contextmanager
def service(*answers: int) -> Iterator[tuple[str, list[tuple[str, str | None, Any]]]]:
    """Stand in for the service: answer so, and keep path, key and body of what came."""
    waiting = list(answers)
    came: list[tuple[str, str | None, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            came.append((self.path, self.headers["Authorization"], body))
            self.send_response(waiting.pop(0))
            self.end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_address[1]}/autopack/", came
        finally:
            listener.shutdown()
            thread.join()


MESSAGE = (
    "Add it [strict]\n\nAutopack-Phase: forged\n\n"
    "Autopack-Run: run-001\nAutopack-Phase: P1.1\nAutopack-Submission: 7"
)
GREEN = {"verdict": "green", "tests": {"total": 2, "passed": 2}, "flaky": False}


def job(result: str = "success", gate: str = "success", report: object = GREEN) -> dict[str, Any]:
    text = report if isinstance(report, str) else json.dumps(report)
    return {"result": result, "outputs": {"gate": gate, "report": text}}


def report(url: str, normal: object, strict: object, **contexts: str) -> tuple[int, str]:
    done = Workflow.read(FOLDER / "ci.yml").run(
        "report",
        {
            "vars.AUTOPACK_URL": url,
            "secrets.AUTOPACK_API_KEY": "",
            "github.sha": "1" * 40,
            "github.event.head_commit.message": MESSAGE,
            "toJSON(needs.preflight-normal)": json.dumps(normal),
            "toJSON(needs.preflight-strict)": json.dumps(strict),
            "github.server_url": "https://github.com",
            "github.repository": "acme/sample",
            "github.run_id": "5",
            **contexts,
        },
        ROOT,
    )
    return done.returncode, done.stdout + done.stderr


SKIPPED = {"result": "skipped", "outputs": {}}


@pytest.mark.parametrize(
    ("normal", "strict", "profile", "verdict"),
    [
        (job(), SKIPPED, "normal", Verdict.GREEN),
        (job(), job("failure", "failure", {**GREEN, "verdict": "red"}), "strict", Verdict.RED),
        (job("failure", "failure", ""), SKIPPED, "normal", Verdict.RED),  # hung
        (job("failure", "failure", GREEN), SKIPPED, "normal", Verdict.RED),  # says what is not so
        (job("failure", "skipped", ""), SKIPPED, "normal", Verdict.DID_NOT_RUN),
        (job("success", "success", "[1]"), SKIPPED, "normal", Verdict.DID_NOT_RUN),
        (
            job("failure", "failure", {"verdict": "did_not_run"}),
            SKIPPED,
            "normal",
            Verdict.DID_NOT_RUN,
        ),
    ],
)
def test_the_result_of_the_commits_profile_is_posted_to_the_service(
    normal: object, strict: object, profile: str, verdict: Verdict
) -> None:
    with service(200) as (url, came):
        code, said = report(url, normal, strict)
    assert code == 0, said
    ((path, key, body),) = came
    assert path == "/autopack/runs/run-001/phases/P1.1/ci_result"
    assert key is None
    told = CiReport.model_validate(body)
    assert (told.verdict, told.profile, told.commit_sha) == (verdict, profile, "1" * 40)
    assert told.url == "https://github.com/acme/sample/actions/runs/5"


def test_a_key_goes_into_the_header_and_a_refusal_fails_the_job() -> None:
    with service(401) as (url, came):
        code, said = report(url, job(), SKIPPED, **{"secrets.AUTOPACK_API_KEY": "s3cret"})
    assert code == 1
    assert came[0][1] == "Bearer s3cret"
    assert "s3cret" not in said


def test_no_verdict_is_posted_for_a_commit_that_no_phase_waits_for() -> None:
    with service(409) as (url, came):
        code, _ = report(url, job(), SKIPPED)
        assert (code, len(came)) == (0, 1)
        code, _ = report(
            url, job(), SKIPPED, **{"github.event.head_commit.message": "Record of run-001"}
        )
    assert (code, len(came)) == (0, 1)
