"""One whole run over HTTP, told line by line: a Builder that once works from an old state."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import httpx

RUN_ID: Final = "demo-001"
GREET: Final = "greeter/greet.py"
TEST: Final = "tests/test_greet.py"
README: Final = "README.md"

SAMPLE_FILES: Final[Mapping[str, str]] = {
    README: "# Greeter\n\nSays hello.\n",
    "greeter/__init__.py": "",
    GREET: 'def greet(name: str) -> str:\n    return f"Hello, {name}!"\n',
}
AFTER_P1_1: Final = """\
def greet(name: str, *, greeting: str = "Hello") -> str:
    return f"{greeting}, {name}!"
"""
OUTDATED_P1_2: Final = """\
def greet(name: str) -> str:
    return f"Hello, {name.strip()}!"
"""
AFTER_P1_2: Final = """\
def greet(name: str, *, greeting: str = "Hello") -> str:
    return f"{greeting}, {name.strip()}!"
"""
AFTER_P2_1: Final = """\
from greeter.greet import greet


def test_names_are_stripped() -> None:
    assert greet(" Ada ", greeting="Hi") == "Hi, Ada!"
"""
AFTER_P2_2: Final = """\
# Greeter

Says hello, or whatever you like:

    greet("Ada", greeting="Hi")
"""

PLAN: Final[Mapping[str, Any]] = {
    "run": {
        "run_id": RUN_ID,
        "safety_profile": "normal",
        "run_scope": "incremental",
        "token_cap": 200_000,
        "max_phases": 10,
    },
    "tiers": [
        {"tier_id": "T1", "tier_index": 0, "name": "Behaviour"},
        {"tier_id": "T2", "tier_index": 1, "name": "Tests and documentation"},
    ],
    "phases": [
        {
            "phase_id": phase_id,
            "phase_index": phase_index,
            "tier_id": tier_id,
            "name": name,
            "description": name,
            "task_category": task_category,
            "complexity": complexity,
            "builder_mode": "compose",
        }
        for phase_id, phase_index, tier_id, name, task_category, complexity in (
            ("P1.1", 0, "T1", "Let callers choose the greeting", "feature_scaffolding", "medium"),
            ("P1.2", 1, "T1", "Strip blanks around names", "feature_scaffolding", "medium"),
            ("P2.1", 0, "T2", "Test what greet does", "tests", "low"),
            ("P2.2", 1, "T2", "Document the greeting", "docs", "low"),
        )
    ],
}


class DemoError(Exception):
    """The service did not answer as the demonstration expects."""


def run_demo(url: str, repository: Path, runs_dir: Path) -> bool:
    """Drive the run, print what happens and what to look at next. False when it went wrong."""
    try:
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            _Story(client).tell()
    except (DemoError, httpx.HTTPError) as error:
        print(f"The demonstration stopped: {error}", file=sys.stderr, flush=True)
        return False
    print(
        f"""
What to look at, while this server runs (Ctrl-C stops it and removes the sample):
  git -C {repository} log --stat --decorate autonomous/{RUN_ID}
  git -C {repository} diff main...autonomous/{RUN_ID}
  less {runs_dir / RUN_ID / 'run_summary.md'}
  curl {url}/runs/{RUN_ID}
  {url}/docs""",
        flush=True,
    )
    return True


class _Story:
    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._files = dict(SAMPLE_FILES)

    def tell(self) -> None:
        run = self._post("/runs/start", PLAN, 201)
        tiers, phases = len(PLAN["tiers"]), len(PLAN["phases"])
        _say(f"Started {RUN_ID}: {tiers} tiers, {phases} phases, {run.get('state')}.")
        _say(f"      It builds on autonomous/{RUN_ID}; main stays as it is.")

        self._build("P1.1", GREET, AFTER_P1_1)

        self._post(
            f"/runs/{RUN_ID}/phases/P1.2/record_issue",
            {
                "issue_key": "test_failure__blanks_in_names",
                "severity": "minor",
                "source": "test",
                "category": "test_failure",
                "evidence_refs": [f"{TEST}::test_names_are_stripped"],
            },
            201,
        )
        _say("P1.2  an issue is recorded: blanks around names are kept (minor).")

        outdated = make_patch(GREET, SAMPLE_FILES[GREET], OUTDATED_P1_2)
        refusal = self._post(self._result_path("P1.2"), self._result("P1.2", GREET, outdated), 409)
        _say(f"P1.2  a Builder sends a patch made before P1.1: refused ({refusal.get('code')}).")
        _say(f"      {refusal.get('detail')}")
        _say("      Nothing of it is on the branch; one of the phase's tries is used up.")
        self._build("P1.2", GREET, AFTER_P1_2, comment="made anew on the branch's head: ")

        self._build("P2.1", TEST, AFTER_P2_1)
        self._build("P2.2", README, AFTER_P2_2)

        run = self._get(f"/runs/{RUN_ID}")
        verdict = "may" if run.get("promotion_eligible_to_main") else "may not"
        _say(f"The run is over: {run.get('state')}; its branch {verdict} be promoted to main.")
        if run.get("state") != "DONE_SUCCESS":
            raise DemoError(f"{RUN_ID} ended as {run.get('state')}: {run.get('failure_reason')}")
        status = self._get(f"/runs/{RUN_ID}/integration_status")
        _say(
            f"The branch is {status.get('commits_ahead_of_main')} commits ahead of main "
            f"(+{status.get('insertions')} -{status.get('deletions')} lines) and "
            f"{'merges' if status.get('mergeable') else 'does not merge'} into it."
        )

    def _build(self, phase_id: str, path: str, content: str, *, comment: str = "") -> None:
        patch = make_patch(path, self._files.get(path), content)
        answer = self._post(self._result_path(phase_id), self._result(phase_id, path, patch), 200)
        self._files[path] = content
        commit = str(answer.get("commit_sha"))[:10]
        _say(f"{phase_id}  {comment}applied as commit {commit}: {answer.get('phase_state')}")

    def _result_path(self, phase_id: str) -> str:
        return f"/runs/{RUN_ID}/phases/{phase_id}/builder_result"

    def _result(self, phase_id: str, path: str, patch: str) -> Mapping[str, object]:
        lines = patch.splitlines()
        return {
            "phase_id": phase_id,
            "run_id": RUN_ID,
            "patch_content": patch,
            "files_changed": [path],
            "lines_added": sum(line.startswith("+") and line[:3] != "+++" for line in lines),
            "lines_removed": sum(line.startswith("-") and line[:3] != "---" for line in lines),
            "builder_attempts": 1,
            "tokens_used": 4_000,
            "duration_minutes": 0.5,
            "status": "success",
            "notes": "From the demonstration.",
        }

    def _post(self, path: str, body: Mapping[str, Any], expected: int) -> Mapping[str, Any]:
        return _checked(self._client.post(path, json=body), expected)

    def _get(self, path: str) -> Mapping[str, Any]:
        return _checked(self._client.get(path), 200)


def make_patch(path: str, before: str | None, after: str) -> str:
    """Return a patch as git writes it. `before` is None for a file that is not there yet."""
    header = f"diff --git a/{path} b/{path}\n"
    if before is None:
        header += "new file mode 100644\n"
    lines = difflib.unified_diff(
        (before or "").splitlines(keepends=True),
        after.splitlines(keepends=True),
        "/dev/null" if before is None else f"a/{path}",
        f"b/{path}",
    )
    return header + "".join(lines)


def _checked(response: httpx.Response, expected: int) -> Mapping[str, Any]:
    request = response.request
    if response.status_code != expected:
        raise DemoError(
            f"{request.method} {request.url.path} answered {response.status_code} instead of "
            f"{expected}: {response.text[:500]}"
        )
    answer: Mapping[str, Any] = response.json()
    return answer


def _say(line: str) -> None:
    print(f"  {line}", flush=True)
