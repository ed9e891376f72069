"""A demonstration: one run over HTTP, with a Builder that once works from an old state."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .autopack import Autopack
from .errors import ApiError, ClientError

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
    """The run did something else than the demonstration expects."""


def run_demo(url: str, repository: Path, runs_dir: Path) -> bool:
    """Carry out the run and print each step. Returns False when it went wrong."""
    try:
        with Autopack(url) as client:
            _Story(client).tell()
    except (DemoError, ClientError) as error:
        print(f"The demonstration stopped: {error}", file=sys.stderr, flush=True)
        return False
    print(
        f"""
What to look at, while this server runs (Ctrl-C stops it and removes the sample):
  git -C {repository} log --stat --decorate autonomous/{RUN_ID}
  git -C {repository} diff main...autonomous/{RUN_ID}
  less {runs_dir / RUN_ID / 'run_summary.md'}
  curl {url}/runs/{RUN_ID}
  {url}/dashboard/runs/{RUN_ID}
  {url}/docs""",
        flush=True,
    )
    return True


class _Story:
    def __init__(self, client: Autopack) -> None:
        self._client = client
        self._files = dict(SAMPLE_FILES)

    def tell(self) -> None:
        started = self._client.start_run(PLAN)
        tiers, phases = len(PLAN["tiers"]), len(PLAN["phases"])
        _say(f"Started {RUN_ID}: {tiers} tiers, {phases} phases, {started.state}.")
        _say(f"      It builds on {started.branch}; main stays as it is.")

        self._build("P1.1", GREET, AFTER_P1_1)

        issue = {
            "issue_key": "test_failure__blanks_in_names",
            "severity": "minor",
            "source": "test",
            "category": "test_failure",
            "evidence_refs": [f"{TEST}::test_names_are_stripped"],
        }
        self._client.record_issue(RUN_ID, "P1.2", issue)
        _say("P1.2  an issue is recorded: blanks around names are kept (minor).")

        outdated = make_patch(GREET, SAMPLE_FILES[GREET], OUTDATED_P1_2)
        refused = self._refused("P1.2", GREET, outdated)
        _say(f"P1.2  a Builder sends a patch made before P1.1: refused ({refused.code}).")
        _say(f"      {refused.detail}")
        _say("      Nothing of it is on the branch; one of the phase's tries is used up.")
        self._build("P1.2", GREET, AFTER_P1_2, comment="made again on the branch's head: ")

        self._build("P2.1", TEST, AFTER_P2_1)
        self._build("P2.2", README, AFTER_P2_2)

        run = self._client.get_run(RUN_ID)
        verdict = "may" if run.promotion_eligible_to_main else "may not"
        _say(f"The run is over: {run.state}; its branch {verdict} be promoted to main.")
        if run.state != "DONE_SUCCESS":
            raise DemoError(f"{RUN_ID} ended as {run.state}: {run.failure_reason}")
        status = self._client.integration_status(RUN_ID)
        _say(
            f"The branch is {status.commits_ahead_of_main} commits ahead of main "
            f"(+{status.insertions} -{status.deletions} lines) and "
            f"{'merges' if status.mergeable else 'does not merge'} into it."
        )

    def _build(self, phase_id: str, path: str, content: str, *, comment: str = "") -> None:
        patch = make_patch(path, self._files.get(path), content)
        answer = self._client.submit_builder_result(RUN_ID, phase_id, _result(path, patch))
        self._files[path] = content
        commit = str(answer.commit_sha)[:10]
        _say(f"{phase_id}  {comment}applied as commit {commit}: {answer.phase_state}")

    def _refused(self, phase_id: str, path: str, patch: str) -> ApiError:
        try:
            self._client.submit_builder_result(RUN_ID, phase_id, _result(path, patch))
        except ApiError as refusal:
            return refusal
        raise DemoError(f"{phase_id} took a patch that was made on an older state")


def _result(path: str, patch: str) -> Mapping[str, object]:
    lines = patch.splitlines()
    return {
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


def make_patch(path: str, before: str | None, after: str) -> str:
    """Return a patch as git writes it. `before` is None for a new file."""
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


def _say(line: str) -> None:
    print(f"  {line}", flush=True)
