"""The main accidents, from beginning to end: what people read afterwards, as they read it.

A service that is killed between its commit and the ref has its story in tests/recovery/test_story.py.
"""

# ruff: noqa: E501  the pages have long lines
from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.api.conftest import with_remote

from autopack.config import Settings

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.e2e

RUN = "run-001"
BRANCH = f"refs/heads/autonomous/{RUN}"
STALE = (
    "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
    "@@ -1,3 +1,3 @@\n WIDTH = 1\n-DEPTH = 7\n+DEPTH = 8\n HEIGHT = 3\n"
)


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A service that may use an external CI, as it has a remote."""
    return with_remote(settings, tmp_path)


def read(api: Api, page: str, *sections: str) -> str:
    """Return the beginning of a page of the run, and sections of it; commits are numbered."""
    lead, *rest = api.file(RUN, page).split("\n## ")
    told = {part.partition("\n")[0]: part.partition("\n")[2].strip() for part in rest}
    lead = lead.partition("\n# ")[2] if lead.startswith("<!--") else lead.removeprefix("# ")
    text = "\n".join([lead.strip(), *(told[section] for section in sections)])
    found = re.findall(r"\b(?=\w*\d)[0-9a-f]{7,40}\b", text)
    for number, start in enumerate(dict.fromkeys(commit[:7] for commit in found), 1):
        text = re.sub(rf"\b{start}[0-9a-f]*", f"commit-{number}", text)
    return re.sub(r"\n\n+", "\n", text)


def phases(api: Api) -> list[str]:
    """Return what the summary's table says of each phase: id, state, attempts."""
    row = re.compile(r"^\| \[(\S+)\]\(phases/\S+\) \| [^|]* \| (\w+) \| (\d+) ", re.MULTILINE)
    return [" ".join(cells) for cells in row.findall(api.file(RUN, "run_summary.md"))]


def test_another_process_moves_the_branch(api: Api) -> None:
    api.start(phases=2)
    api.result()
    stranger = api.repo.commit({"src/app.py": "VALUE = 2\n"}, "A commit of another process")
    api.repo.git("update-ref", BRANCH, stranger)
    api.refused(api.result(phase_id="P0.1"), 409, "branch_moved")
    assert read(api, "run_summary.md", "What next", "Promotion") == """\
Run run-001
**Failed: policy was violated** (`DONE_FAILED_POLICY_VIOLATION`)
> refs/heads/autonomous/run-001 is at commit-1 and not at commit-2, where Autopack left it: another process moved it, so Autopack does not touch it.
Read [incident.md](incident.md), find out which process moved `autonomous/run-001` (the run left it at `commit-2`), and start a new run.
**Not eligible** for `main`:
- the run is DONE_FAILED_POLICY_VIOLATION, not DONE_SUCCESS
To look at before merging:
- nothing verified phase 'P0.0'"""
    assert read(api, "incident.md", "What to do next") == """\
Incident: run run-001
**DONE_FAILED_POLICY_VIOLATION** (`branch_moved`)
> refs/heads/autonomous/run-001 is at commit-1 and not at commit-2, where Autopack left it: another process moved it, so Autopack does not touch it.
- Find out which process moved autonomous/run-001; this run left it at commit-2 and will not touch it again.
- What was completed is on autonomous/run-001, last snapshot autonomous/run-001/tier-T0/phase-P0.0.
- Start a new run under another run_id."""
    assert phases(api) == ["P0.0 complete 1", "P0.1 skipped 0"]
    assert api.repo.git("rev-parse", BRANCH) == stranger


def test_an_agent_lapses_and_comes_back_late(api: Api, agents: Agents) -> None:
    api.start()
    late = agents.claim()
    agents.wait(minutes=30)
    agents.upkeep()
    in_time = agents.claim()
    problem = api.refused(agents.build(late, tokens_used=50), 409, "lease_lost")
    assert (
        problem["detail"]
        == "the lease on phase 'P0.0' is not valid any more: it lapsed, was used, or the phase moved on; claim again"
    )
    assert agents.build(in_time, tokens_used=30).status_code == 200
    assert read(api, "run_summary.md", "Promotion") == """\
Run run-001
**Succeeded** (`DONE_SUCCESS`)
**Eligible** for `main`.
To look at before merging:
- nothing verified phase 'P0.0'"""
    assert phases(api) == ["P0.0 complete 2"]
    assert api.run()["tokens_used"] == 30


def test_a_patch_conflicts_and_is_repaired_from_its_ticket(api: Api) -> None:
    api.repo.commit({"src/app.py": "WIDTH = 1\nDEPTH = 2\nHEIGHT = 3\n"})
    api.start()
    ticket = api.refused(api.result(patch=STALE), 409, "patch_conflict")
    (hunk,) = ticket["files"][0]["hunks"]
    assert hunk["now"] == """\
WIDTH = 1
DEPTH = 2
HEIGHT = 3
"""
    assert api.result(patch=STALE.replace("-DEPTH = 7", "-DEPTH = 2")).status_code == 200
    assert read(api, "run_summary.md", "Promotion") == """\
Run run-001
**Succeeded** (`DONE_SUCCESS`)
**Eligible** for `main`.
To look at before merging:
- nothing verified phase 'P0.0'"""
    assert phases(api) == ["P0.0 complete 2"]
    attempts = read(api, "phases/phase_0_P0.0.md", "Attempts").splitlines()[-2:]
    assert [row.split(" | ")[3] for row in attempts] == ["conflict", "applied"]


def verdict(api: Api, *failing: str) -> None:
    body = {
        "verdict": "red" if failing else "green",
        "commit_sha": api.head(),
        "failing_checks": failing,
    }
    response = api.client.post(f"/runs/{RUN}/phases/P0.0/ci_result", json=body)
    assert response.status_code == 200, response.text


def test_ci_says_red_and_red_and_green(api: Api) -> None:
    """A phase may be red once within its tier's CI runs; the second time the tier is not clean."""
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    api.start()
    for number, failing in enumerate([("test_one",), ("test_two",), ()]):
        assert api.result(patch=api.new_file(f"src/{number}.txt")).status_code == 200
        verdict(api, *failing)
    assert read(api, "run_summary.md", "What next", "Promotion") == """\
Run run-001
**Failed: needs a person's review** (`DONE_FAILED_REQUIRES_HUMAN_REVIEW`)
> tier 'T0' is not clean: 3 CI runs, 2 allowed
Read [incident.md](incident.md), decide what to keep of the branch, change the plan, and start a new run.
**Not eligible** for `main`:
- the run is DONE_FAILED_REQUIRES_HUMAN_REVIEW, not DONE_SUCCESS
- tier 'T0' is not clean: 3 CI runs, 2 allowed"""
    assert phases(api) == ["P0.0 complete 3"]
    outputs = re.findall(r"^> (.*)$", api.file(RUN, "phases", "phase_0_P0.0.md"), re.MULTILINE)
    assert [output.partition(": ")[2] for output in outputs] == [
        "red: test_one",
        "red: test_two",
        "green: reported as green",
    ]


def test_a_budget_is_passed_in_the_middle(api: Api) -> None:
    api.start(phases=3, token_cap=100)
    api.result(tokens_used=60)
    api.result(phase_id="P0.1", tokens_used=60)
    assert read(api, "run_summary.md", "What next", "Promotion") == """\
Run run-001
**Failed: a budget was exhausted** (`DONE_FAILED_BUDGET_EXHAUSTED`)
> run token_cap 100 passed: 120 tokens used
Read [incident.md](incident.md), raise that budget in the ruleset, or split the plan, and start a new run.
**Not eligible** for `main`:
- the run is DONE_FAILED_BUDGET_EXHAUSTED, not DONE_SUCCESS
- a budget was exhausted: run token_cap 100 passed: 120 tokens used
To look at before merging:
- nothing verified phase 'P0.0'"""
    assert read(api, "incident.md", "What to do next", "Phases in trouble") == """\
Incident: run run-001
**DONE_FAILED_BUDGET_EXHAUSTED** (`token_cap`)
> run token_cap 100 passed: 120 tokens used
- Raise run.token_cap in the ruleset or the plan, or split the plan.
- What was completed is on autonomous/run-001, last snapshot autonomous/run-001/tier-T0/phase-P0.0.
- Start a new run under another run_id.
### P0.1: Phase 1 of tier 0
`SKIPPED` after 1 attempts.
**Builder attempt 1**: over_budget, 60 tokens.
> run token_cap 100 passed: 120 tokens used"""
    assert phases(api) == ["P0.0 complete 1", "P0.1 skipped 1", "P0.2 skipped 0"]


def test_the_clone_is_restored_from_an_old_copy(api: Api, tmp_path: Path) -> None:
    """The commits that the copy lacks are made again, to the same ids, before the next one."""
    api.start(phases=3)
    api.result()
    shutil.copytree(api.repo.path, tmp_path / "copy")
    api.result(phase_id="P0.1")
    head = api.head()
    shutil.rmtree(api.repo.path)
    shutil.copytree(tmp_path / "copy", api.repo.path)
    assert api.head() != head
    assert api.result(phase_id="P0.2").status_code == 200
    assert api.commits()[1] == head
    assert read(api, "run_summary.md", "Promotion") == """\
Run run-001
**Succeeded** (`DONE_SUCCESS`)
**Eligible** for `main`.
To look at before merging:
- nothing verified phase 'P0.0'
- nothing verified phase 'P0.1'
- nothing verified phase 'P0.2'"""
    assert phases(api) == ["P0.0 complete 1", "P0.1 complete 1", "P0.2 complete 1"]
