"""The checker that needs no service comes to the verdict that the service gave."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text as sql
from tests.api.conftest import with_remote
from tests.checker.alone import check_alone

from autopack.config import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


def verdict(api: Api, run_id: str, said: str, phase_id: str = "P0.0") -> None:
    body = {"commit_sha": api.head(run_id), "verdict": said}
    answer = api.client.post(f"/runs/{run_id}/phases/{phase_id}/ci_result", json=body)
    assert answer.status_code == 200, answer.text


def review(api: Api, run_id: str, phase_id: str = "P0.0", **body: Any) -> None:
    path = f"/runs/{run_id}/phases/{phase_id}/auditor_result"
    answer = api.client.post(path, json={"review_notes": "seen", **body})
    assert answer.status_code == 200, answer.text


def green(api: Api, run_id: str) -> None:
    api.start(run_id, phase={"complexity": "high"})
    api.issue("odd", run_id=run_id, source="ci", severity="minor")
    api.result(run_id, patch="no patch")
    api.result(run_id)
    verdict(api, run_id, "red")
    api.result(run_id, patch=api.new_file("src/fix.txt"))
    verdict(api, run_id, "green")


def rolled_back(api: Api, run_id: str) -> None:
    green(api, run_id)
    body = {"to_phase": "P0.0", "reason": "no good"}
    assert api.client.post(f"/runs/{run_id}/rollback", json=body).status_code == 200


def red(api: Api, run_id: str) -> None:
    """Fails with a commit on the branch, which is undone."""
    api.start(run_id, phases=2, phase={"task_category": "docs"})
    for number in range(2):
        api.result(run_id, patch=api.new_file(f"docs/{number}.md"))
        verdict(api, run_id, "red")
    review(api, run_id, recommendation="escalate")
    api.result(run_id, "P0.1", patch="")
    assert api.client.post(f"/runs/{run_id}/cancel", json={"reason": "no"}).status_code == 200


def unable(api: Api, run_id: str) -> None:
    api.start(run_id)
    api.result(run_id)
    verdict(api, run_id, "did_not_run")


def by_hand(api: Api, run_id: str) -> None:
    api.start(run_id, phases=2, phase={"complexity": "high"})
    api.result(run_id)
    assert api.status("COMPLETE", run_id).status_code == 200
    assert api.status("SKIPPED", run_id, "P0.1").status_code == 200


def unclean(api: Api, run_id: str) -> None:
    """Ends with more issues than its tier tolerates, one of them resolved again."""
    api.start(run_id, run_scope="multi_tier", tiers=2, phases=1)
    for number in range(8):
        api.issue(f"minor_{number}", run_id=run_id, severity="minor")
    api.issue("major", run_id=run_id, severity="major")
    api.result(run_id)
    review(api, run_id, recommendation="approve", resolved_issues=["minor_0"])
    verdict(api, run_id, "green")
    api.result(run_id, "P1.0")
    verdict(api, run_id, "green", "P1.0")


def cancelled(api: Api, run_id: str) -> None:
    api.start(run_id)
    assert api.client.post(f"/runs/{run_id}/cancel", json={"reason": "no"}).status_code == 200


def over_budget(api: Api, run_id: str) -> None:
    api.start(run_id, token_cap=1_000)
    api.result(run_id, tokens_used=1_001)


def seen_in_two_phases(api: Api, run_id: str) -> None:
    """One minor issue in two phases, of which CI raised one: green there leaves the other open."""
    api.start(run_id, phases=2)
    api.issue("two", run_id=run_id, source="test")
    api.issue("two", run_id=run_id, phase_id="P0.1", source="ci")
    for phase_id in ("P0.0", "P0.1"):
        api.result(run_id, phase_id)
        verdict(api, run_id, "green", phase_id)
    run = api.run(run_id)
    assert (run["minor_issues_count"], run["debt_status"]) == (1, "has_minor_issues")


def grave_where_it_is_closed(api: Api, run_id: str) -> None:
    """A key that is major in one phase and minor in another counts by where it is open."""
    api.start(run_id, phases=2, run_scope="multi_tier")
    api.issue("both", run_id=run_id, source="ci", severity="major")
    api.result(run_id)
    review(api, run_id, recommendation="approve")
    verdict(api, run_id, "green")
    api.issue("both", run_id=run_id, phase_id="P0.1", severity="minor")
    api.result(run_id, "P0.1")
    verdict(api, run_id, "green", "P0.1")
    run = api.run(run_id)
    assert (run["minor_issues_count"], run["major_issues_count"]) == (1, 0)


def resolved_in_every_phase(api: Api, run_id: str) -> None:
    api.start(run_id, phases=2, phase={"task_category": "schema_change", "complexity": "low"})
    for phase_id in ("P0.0", "P0.1"):
        api.issue("all", run_id=run_id, phase_id=phase_id, severity="major")
    for phase_id in ("P0.0", "P0.1"):
        api.result(run_id, phase_id)
        review(api, run_id, phase_id, recommendation="approve", resolved_issues=["all"])
        verdict(api, run_id, "green", phase_id)


def red_then_a_new_patch(api: Api, run_id: str) -> None:
    """The red verdict is not of what the phase has in the end, so it has none."""
    api.start(run_id, phase={"complexity": "high"})
    api.result(run_id)
    verdict(api, run_id, "red")
    api.result(run_id, patch=api.new_file("src/fix.txt"))
    assert api.client.post(f"/runs/{run_id}/cancel", json={"reason": "no"}).status_code == 200
    assert api.phase(run_id)["verdict"] is None


def red_then_by_hand(api: Api, run_id: str) -> None:
    api.start(run_id, phase={"complexity": "high"})
    api.result(run_id)
    verdict(api, run_id, "red")
    api.result(run_id, patch=api.new_file("src/fix.txt"))
    assert api.status("COMPLETE", run_id).status_code == 200


FAMILY: dict[Callable[[Api, str], None], tuple[bool, str]] = {
    green: (True, ""),
    rolled_back: (False, "the branch was rolled back by hand"),
    red: (False, "the run is DONE_FAILED_REQUIRES_HUMAN_REVIEW, not DONE_SUCCESS"),
    unable: (False, "the run is DONE_FAILED_ENVIRONMENT, not DONE_SUCCESS"),
    by_hand: (False, "strict phase 'P0.0' has no green verdict"),
    unclean: (False, "tier 'T0' is not clean: "),
    cancelled: (False, "the run is DONE_FAILED_REQUIRES_HUMAN_REVIEW, not DONE_SUCCESS"),
    over_budget: (False, "a budget was exhausted: "),
    seen_in_two_phases: (True, ""),
    grave_where_it_is_closed: (True, ""),
    resolved_in_every_phase: (True, ""),
    red_then_a_new_patch: (False, "the run is DONE_FAILED_REQUIRES_HUMAN_REVIEW"),
    red_then_by_hand: (False, "phase 'P0.0' was completed by hand"),
}


def edited(api: Api, run_id: str) -> None:
    """Change a line of a file that `main` has too."""
    old, new = api.repo.git("show", "main:src/app.py"), "VALUE = 2"
    patch = (
        "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
        f"@@ -1 +1 @@\n-{old}\n+{new}\n"
    )
    api.start(run_id)
    assert api.result(run_id, patch=patch).status_code == 200
    verdict(api, run_id, "green")


def move_main(api: Api, **files: str) -> None:
    api.repo.commit({path.replace("__", "/") + ".py": text for path, text in files.items()})


def lose_history(api: Api) -> None:
    tree = api.repo.git("rev-parse", "main^{tree}")
    orphan = api.repo.git("commit-tree", tree, "-m", "Begin anew")
    api.repo.git("update-ref", "refs/heads/main", orphan)


def stranger(api: Api) -> None:
    branch = "refs/heads/autonomous/edited"
    tree = api.repo.git("rev-parse", f"{branch}^{{tree}}")
    commit = api.repo.git("commit-tree", tree, "-p", branch, "-m", "Slip in")
    api.repo.git("update-ref", branch, commit)


def test_a_merge_is_rehearsed_with_the_base_of_today(api: Api) -> None:
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    edited(api, "edited")
    started = api.run("edited")["base_commit"]
    base = api.repo.git("rev-parse", "main")
    steps: list[tuple[Callable[[Api], object], str | None, list[str], str]] = [
        (lambda api: None, "clean", [], ""),
        (lambda api: move_main(api, other="1\n"), "clean", [], ""),
        (
            lambda api: move_main(api, src__app="VALUE = 3\n"),
            "conflict",
            ["src/app.py"],
            "does not merge with main at {main}: src/app.py",
        ),
        (
            lose_history,
            "behind",
            [],
            f"the run started from {started}, which is not in the history of 'main' (any more)",
        ),
        (lambda api: api.repo.git("update-ref", "refs/heads/main", base), "clean", [], ""),
    ]
    for number, (step, result, files, reason) in enumerate(steps):
        step(api)
        main = api.repo.git("rev-parse", "main")
        given = api.client.get("/runs/edited/promotion").json()
        found = check_alone(api.repo.path, "edited")
        expected = {"result": result, "base_branch": "main", "base_commit": main, "files": files}
        assert given["rehearsal"] == found["rehearsal"] == expected, number
        reasons = [reason.format(main=main[:7])] if reason else []
        assert given["reasons"] == found["reasons"] == reasons
        assert given["eligible"] is found["eligible"] is (not reasons)
        summary = api.client.get("/reports/run_summary/edited").json()["promotion"]
        assert summary == {name: given[name] for name in summary}
        # The verdict of the run's end stays what it was.
        assert api.run("edited")["promotion_eligible_to_main"] is True
        assert ("do not merge" in given["pull_request"]["body"]) is bool(reasons)

    stranger(api)
    given = api.client.get("/runs/edited/promotion").json()
    found = check_alone(api.repo.path, "edited")
    assert (given["eligible"], found["eligible"]) == (False, False)
    assert given["rehearsal"] is None
    assert "the run recorded" in given["reasons"][0]
    for ref, reason in (
        ("autonomous/edited", "there is no branch 'autonomous/edited'"),
        ("main", "there is no base branch 'main'"),
    ):
        api.repo.git("update-ref", "-d", f"refs/heads/{ref}")
        given = api.client.get("/runs/edited/promotion").json()
        assert (given["eligible"], given["reasons"]) == (False, [reason])
        found = check_alone(api.repo.path, "edited")
        assert found["reasons"][0] == "there is no branch 'autonomous/edited'"


def test_an_old_git_makes_no_rehearsal_and_says_so(api: Api, tmp_path: Path) -> None:
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    green(api, "green")
    git = shutil.which("git")
    old = tmp_path / "old" / "git"
    old.parent.mkdir()
    old.write_text(
        '#!/bin/sh\ncase " $* " in *" version "*) echo git version 2.37.1; exit;;'
        '*" --write-tree "*) exit 129;; esac\n'
        f'exec {git} "$@"\n'
    )
    old.chmod(0o755)
    found = check_alone(api.repo.path, "green", path=str(old.parent))
    assert found["eligible"] is False
    assert found["rehearsal"] is None
    (reason,) = found["reasons"]
    assert reason.startswith("git 2.37 cannot rehearse the merge with 'main': git 2.38 or newer")


def test_a_run_without_a_record_may_not_be_merged(api: Api, app: FastAPI) -> None:
    context = app.state.context
    unrecorded = context.settings.model_copy(update={"commit_run_record": False})
    app.state.context = replace(context, settings=unrecorded)
    api.start()
    api.result()
    given = api.client.get("/runs/run-001/promotion").json()
    found = check_alone(api.repo.path)
    assert api.run()["promotion_eligible_to_main"] is True
    assert given["eligible"] is found["eligible"] is False
    assert given["reasons"] == found["reasons"]


def test_a_record_that_does_not_satisfy_the_rules_is_refused_by_the_service_too(
    api: Api, app: FastAPI
) -> None:
    """The row and the branch name a forged record: what it holds is checked, not believed."""
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    green(api, "run-001")
    branch, git = "autonomous/run-001", api.repo.git
    path = ".autonomous_runs/run-001/run.json"
    text = git("show", f"{branch}:{path}") + "\n"
    message = git("show", "--no-patch", "--format=%B", branch)
    forged = text.replace('"builder_attempts_used": 3', '"builder_attempts_used": 1')
    assert forged != text
    for old, new in ((text, forged), (forged, text)):
        git("read-tree", branch)
        blob = git("hash-object", "-w", "--stdin", stdin=new)
        git("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        before, after = (hashlib.sha256(each.encode()).hexdigest() for each in (old, new))
        message = message.replace(before, after)
        commit = git("commit-tree", git("write-tree"), "-p", f"{branch}~1", "-m", message)
        git("update-ref", f"refs/heads/{branch}", commit)
        with app.state.context.engine.begin() as connection:
            connection.execute(sql("UPDATE runs SET head_commit = :head"), {"head": commit})
        reason = "phase 'P0.0': builder_attempts_used is 1 in the record, 3 by its events"
        reasons = [reason] if new == forged else []
        given = api.client.get("/runs/run-001/promotion").json()
        found = check_alone(api.repo.path)
        assert given["reasons"] == found["reasons"] == reasons
        assert given["eligible"] is found["eligible"] is (not reasons)


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.campaigns)])
def test_the_checker_decides_as_the_service_does(api: Api, every: int) -> None:
    """Of each run of the family, or each third one."""
    family = {drive: FAMILY[drive] for drive in [*FAMILY][::every]}
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    for drive in family:
        drive(api, drive.__name__)
    for drive, (is_eligible, reason) in family.items():
        given = api.client.get(f"/runs/{drive.__name__}/promotion").json()
        found = check_alone(api.repo.path, drive.__name__)
        assert found["reasons"] == given["reasons"], drive
        assert found["warnings"] == given["warnings"], drive
        assert found["eligible"] is is_eligible, drive
        assert given["eligible"] is is_eligible
        assert any(each.startswith(reason) for each in given["reasons"]) or not reason, drive
        request = given["pull_request"]
        for name in ("title", "body", "head", "base"):
            assert found[name] == request[name]
        assert found["commits"][-1] == api.run(drive.__name__)["head_commit"]
    body = {"ruleset": ruleset, "run_ids": [drive.__name__ for drive in family]}
    for compared in api.client.post("/strategy/backtest", json=body).json()["runs"]:
        assert (compared["changes"], compared["parted_at"]) == ([], None), compared
