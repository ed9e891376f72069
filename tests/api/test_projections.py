"""Branch and files: true at the moment of the answer, beside a checkout that stays as it was."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ..recovery.consistency import assert_consistent

if TYPE_CHECKING:
    from tests.api.conftest import Api

    from autopack.config import Settings

pytestmark = pytest.mark.integration

RUN_STATE = re.compile(r"^\*\*.+\*\* \(`([A-Z_]+)`\)", re.MULTILINE)


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, git's own objects, logs and our refs left out."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not re.search(r"\.git/(objects|logs|refs/(heads|tags)/autonomous)/", str(path))
    }


def shows(api: Api, *parts: str) -> str:
    found = RUN_STATE.search(api.file(*parts))
    assert found, api.file(*parts)
    return found[1]


def assert_files_are_true(api: Api, run_id: str = "run-001") -> None:
    """Expect of every file of a run that it shows what the API answers now."""
    run = api.run(run_id)
    assert shows(api, run_id, "run_summary.md") == run["state"]
    for tier in run["tiers"]:
        name = f"tier_{tier['tier_index']}_{tier['tier_id']}.md"
        assert shows(api, run_id, "tiers", name) == tier["state"]
        for phase in tier["phases"]:
            name = f"phase_{phase['phase_index']}_{phase['phase_id']}"
            assert shows(api, run_id, "phases", f"{name}.md") == phase["state"]
            issues = api.runs_dir / run_id / "issues" / f"{name}_issues.json"
            if issues.exists():
                document = api.document(run_id, "issues", f"{name}_issues.json")
                assert document["minor_issue_count"] == phase["minor_issues_count"]
                assert document["major_issue_count"] == phase["major_issues_count"]
    index = api.client.get(f"/runs/{run_id}/issues/index").json()["issues_by_key"]
    assert api.document(run_id, "run_issue_index.json")["issues_by_key"] == index
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    file = api.document("project_issue_backlog.json")["issues_by_key"]
    assert {key: entry["total_occurrences"] for key, entry in file.items()} == {
        key: entry["total_occurrences"] for key, entry in backlog.items()
    }
    branch = f"refs/heads/autonomous/{run_id}"
    assert api.repo.git("rev-parse", branch) == run["head_commit"]


def test_a_run_writes_exactly_the_files_of_the_guide(api: Api) -> None:
    api.start(tiers=2, phases=2)
    api.issue("one", phase_id="P1.1")
    found = {
        str(path.relative_to(api.runs_dir)) for path in api.runs_dir.rglob("*") if path.is_file()
    }
    assert found == {
        ".gitignore",
        ".synced.json",
        "project_issue_backlog.json",
        "project_ruleset_Autopack.json",
        "run-001/run_summary.md",
        "run-001/tiers/tier_0_T0.md",
        "run-001/tiers/tier_1_T1.md",
        "run-001/phases/phase_0_P0.0.md",
        "run-001/phases/phase_1_P0.1.md",
        "run-001/phases/phase_0_P1.0.md",
        "run-001/phases/phase_1_P1.1.md",
        "run-001/issues/phase_0_P0.0_issues.json",
        "run-001/issues/phase_1_P0.1_issues.json",
        "run-001/issues/phase_0_P1.0_issues.json",
        "run-001/issues/phase_1_P1.1_issues.json",
        "run-001/project_implementation_strategy_v1.json",
        "run-001/run_issue_index.json",
    }


def test_after_every_answer_branch_and_files_show_it(api: Api) -> None:
    api.start(tiers=2, phases=2)
    assert_files_are_true(api)
    api.status("EXECUTING", tokens_used=50)
    assert_files_are_true(api)
    api.issue("a_minor_one")
    assert_files_are_true(api)
    api.result(patch="no patch at all")
    assert_files_are_true(api)
    api.result()
    assert_files_are_true(api)
    api.result(phase_id="P0.1", status="needs_review")
    assert_files_are_true(api)
    api.status("COMPLETE", phase_id="P0.1")
    assert_files_are_true(api)
    api.issue("a_major_one", phase_id="P1.1", severity="major")
    assert_files_are_true(api)
    api.result(phase_id="P1.0")
    assert_files_are_true(api)
    api.status("SKIPPED", phase_id="P1.1")
    assert_files_are_true(api)
    assert api.run()["ended_at"] is not None


def test_a_whole_run_leaves_the_checkout_byte_for_byte(api: Api) -> None:
    repo = api.repo
    (repo.path / "src/app.py").write_text("VALUE = 'edited, not staged'\n")
    (repo.path / "staged.txt").write_text("staged\n")
    repo.git("add", "staged.txt")
    (repo.path / "staged.txt").write_text("staged, then edited\n")
    (repo.path / "untracked.txt").write_text("untracked\n")
    (repo.path / "README.md").unlink()
    head, before = repo.git("rev-parse", "HEAD"), contents(repo.path)

    api.start(phases=3)
    api.result(patch=api.new_file("untracked.txt", "from the run"))
    api.result(phase_id="P0.1", patch="no patch")
    api.issue(phase_id="P0.1")
    api.result(phase_id="P0.1", patch=api.new_file("staged.txt", "from the run"))
    api.result(phase_id="P0.2")

    assert api.run()["state"] == "DONE_SUCCESS"
    assert contents(repo.path) == before
    assert repo.git("rev-parse", "HEAD") == head
    assert repo.git("symbolic-ref", "HEAD") == "refs/heads/main"


def test_a_run_moves_no_ref_but_its_own(api: Api) -> None:
    repo = api.repo
    repo.git("branch", "feature")
    repo.git("tag", "v1")
    listing = "for-each-ref", "--format=%(refname) %(objectname)", "refs"
    before = set(repo.git(*listing).splitlines())
    api.start(phases=2)
    api.result()
    api.result(phase_id="P0.1")
    after = set(repo.git(*listing).splitlines())
    assert before <= after
    names = {line.split()[0] for line in after - before}
    assert names == {
        "refs/heads/autonomous/run-001",
        "refs/tags/autonomous/run-001/tier-T0/phase-P0.0",
        "refs/tags/autonomous/run-001/tier-T0/phase-P0.1",
    }


def test_a_commit_says_which_run_phase_and_patch_it_is_of(api: Api) -> None:
    api.start()
    commit = api.result(agent="a <b>\u00e9").json()["commit_sha"]
    message = api.repo.git("log", "-1", "--format=%B", commit)
    assert message.splitlines()[0] == "Phase 0 of tier 0"
    for trailer in ("Autopack-Run: run-001", "Autopack-Phase: P0.0", "Autopack-Patch-SHA256: "):
        assert trailer in message
    assert "Co-authored-by: a b\u00e9 <agent@localhost>" in message


def test_a_failed_phase_with_commits_is_undone_by_a_commit(api: Api) -> None:
    api.start(phases=2, run_scope="multi_tier")
    api.result(status="needs_review")
    base = api.run()["base_commit"]
    assert len(api.commits()) == 1
    assert api.status("FAILED").status_code == 200
    assert len(api.commits()) == 2
    assert api.repo.git("diff", base, "autonomous/run-001") == ""
    assert_files_are_true(api)


def test_while_somebody_has_the_branch_checked_out_its_patches_wait(api: Api) -> None:
    api.start()
    folder = api.repo.path.parent / "linked"
    api.repo.git("worktree", "add", "--quiet", str(folder), "autonomous/run-001")
    before = api.run()
    api.refused(api.result(), 409, "branch_checked_out", str(folder))
    assert api.run() == before
    api.repo.git("worktree", "remove", str(folder))
    assert api.result().status_code == 200


def test_a_run_that_a_repair_ticket_ended_writes_the_same_files_again(
    api: Api, settings: Settings
) -> None:
    """Postgres gives a ticket's members back in an order of its own."""
    ruleset = api.client.get("/project/ruleset").json()
    rule = {**ruleset["categories"]["docs"], "max_builder_attempts": 1, "max_auditor_attempts": 0}
    ruleset["categories"]["docs"] = rule
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    api.start(phase={"task_category": "docs"})
    patch = (
        "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
        "@@ -1 +1 @@\n-VALUE = 7\n+VALUE = 8\n"
    )
    api.refused(api.result(patch=patch), 409, "patch_conflict")
    assert api.run()["failure_code"] == "phase_failed"
    assert_consistent(settings)
