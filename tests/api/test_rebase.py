"""The branch of a run is made again on today's base, as a new run. (rules §8.1)"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.api.conftest import with_remote
from tests.checker.alone import check_alone

from autopack.config import Settings
from autopack.domain.rebasing import rebase_plan
from autopack.domain.record_text import JsonObject
from autopack.gitrepo import Repository
from autopack.services import rebasing

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

EDIT = """\
diff --git a/src/P0.0.txt b/src/P0.0.txt
--- a/src/P0.0.txt
+++ b/src/P0.0.txt
@@ -1 +1,2 @@
 This is src/P0.0.txt.
+And more.
"""


def rebase(api: Api, of: str = "run-001", status: int = 201, **choice: Any) -> JsonObject:
    response = api.client.post(f"/runs/{of}/rebase", json=choice)
    assert response.status_code == status, response.text
    return dict(response.json())


def finish(api: Api, run_id: str = "run-001") -> None:
    """Run two phases: one adds a file, the other one changes it."""
    api.start(run_id, phases=2)
    api.result(run_id)
    assert api.result(run_id, "P0.1", EDIT).json()["run_state"] == "DONE_SUCCESS"


def move_base(api: Api, path: str = "other.txt", text: str = "other\n") -> str:
    """Add a commit to the base branch, as a person does by a merge."""
    return api.repo.commit({path: text})


def show(api: Api, spec: str) -> str:
    return api.repo.git("show", spec)


def refs(api: Api) -> str:
    return api.repo.git("for-each-ref")


def test_a_rebased_run_has_the_same_patches_on_the_new_base_and_may_be_promoted(api: Api) -> None:
    finish(api)
    old = api.run()["head_commit"]
    base = move_base(api)

    run = rebase(api)
    assert (run["run_id"], run["rebases"], run["state"]) == ("run-001.2", "run-001", "DONE_SUCCESS")
    assert (run["base_commit"], run["promotion_eligible_to_main"]) == (base, True)
    assert show(api, "autonomous/run-001.2:other.txt") == "other"
    assert show(api, "autonomous/run-001.2:src/P0.0.txt").endswith("And more.")
    subjects = api.repo.git("log", "--format=%s", f"{base}..{api.head('run-001.2')}").splitlines()
    assert subjects == ["Phase 1 of tier 0", "Phase 0 of tier 0"]
    assert api.run()["head_commit"] == old == api.repo.git("rev-parse", "autonomous/run-001")

    promotion = api.client.get("/runs/run-001.2/promotion").json()
    assert (promotion["eligible"], promotion["reasons"]) == (True, [])
    assert "**Rebases:** `run-001`" in promotion["pull_request"]["body"]
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []
    assert rebase(api, status=200)["created_at"] == run["created_at"]  # the same request


def test_a_rebase_of_a_rebase_is_checked_back_to_the_first_run(api: Api) -> None:
    finish(api)
    move_base(api)
    rebase(api)
    move_base(api, "third.txt")
    assert rebase(api, "run-001.2")["run_id"] == "run-001.3"
    assert check_alone(api.repo.path, "run-001.3")["reasons"] == []
    api.repo.git("branch", "-D", "autonomous/run-001")
    api.repo.git("tag", "-d", *api.repo.git("tag", "-l", "autonomous/run-001/*").split())
    api.repo.git("reflog", "expire", "--expire=now", "--all")
    api.repo.git("gc", "--quiet", "--prune=now")
    [reason] = check_alone(api.repo.path, "run-001.3")["reasons"]
    assert reason.startswith("run 'run-001.2', which this one rebases: commit ")
    assert "is missing here" in reason


def test_a_patch_that_does_not_merge_names_phase_and_paths_and_changes_nothing(api: Api) -> None:
    finish(api)
    move_base(api, "src/P0.0.txt", "Somebody else wrote this.\n")
    before = refs(api)
    problem = api.refused(api.client.post("/runs/run-001/rebase", json={}), 409, "rebase_conflict")
    assert (problem["phase_id"], problem["paths"]) == ("P0.0", ["src/P0.0.txt"])
    assert refs(api) == before
    assert api.client.get("/runs/run-001.2").status_code == 404


def test_a_commit_that_todays_ruleset_refuses_is_named_and_changes_nothing(api: Api) -> None:
    finish(api)
    move_base(api)
    rules = api.client.get("/project/ruleset").json()
    protected = {**rules, "paths": {"protected": ["src/**"]}}
    assert api.client.put("/project/ruleset", json=protected).status_code == 200
    before = refs(api)
    answer = api.client.post("/runs/run-001/rebase", json={})
    problem = api.refused(answer, 409, "rebase_refused", "src/P0.0.txt is protected", "'P0.0'")
    assert problem["phase_id"] == "P0.0"
    [violation] = problem["violations"]
    assert (violation["path"], violation["rule"]) == ("src/P0.0.txt", "protected_path")
    assert refs(api) == before
    assert api.client.get("/runs/run-001.2").status_code == 404
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    assert rebase(api)["state"] == "DONE_SUCCESS"


def test_a_path_stays_open_for_the_category_of_the_phase_that_changed_it(api: Api) -> None:
    """Also in a rebase of a rebase, whose phase has no category."""
    rules = api.client.get("/project/ruleset").json()
    rules["paths"] = {"protected": ["src/**"], "opened": {"docs": ["src/**"]}}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    api.start(phase={"task_category": "docs"})
    assert api.result().json()["run_state"] == "DONE_SUCCESS"
    for number in (2, 3):
        move_base(api, f"other{number}.txt")
        earlier = "run-001" if number == 2 else "run-001.2"
        assert rebase(api, earlier)["run_id"] == f"run-001.{number}"
    rules["paths"]["opened"] = {"tests": ["src/**"]}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    move_base(api, "other4.txt")
    answer = api.client.post("/runs/run-001.3/rebase", json={})
    api.refused(answer, 409, "rebase_refused", "src/P0.0.txt")


def test_what_is_protected_through_a_link_of_todays_base_is_refused_too(api: Api) -> None:
    finish(api)
    rules = api.client.get("/project/ruleset").json()
    rules["paths"] = {"protected": ["alias/**"]}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    (api.repo.path / "alias").symlink_to("src")
    api.repo.git("add", "alias")
    api.repo.git("commit", "-qm", "Give the sources another name")
    answer = api.client.post("/runs/run-001/rebase", json={})
    api.refused(answer, 409, "rebase_refused", "src/P0.0.txt is protected")


def test_a_base_that_moves_during_the_rebase_changes_nothing(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(api)
    move_base(api)
    make_again = Repository.rebase

    def rebase_slowly(*arguments: Any) -> Any:
        result = make_again(*arguments)
        move_base(api, "late.txt")
        return result

    monkeypatch.setattr(Repository, "rebase", rebase_slowly)
    api.refused(api.client.post("/runs/run-001/rebase", json={}), 409, "base_moved", "main")
    monkeypatch.undo()
    assert api.client.get("/runs/run-001.2").status_code == 404
    assert "run-001.2" not in refs(api)
    assert rebase(api)["state"] == "DONE_SUCCESS"


def test_only_a_run_that_may_be_promoted_is_rebased_and_onto_another_base(api: Api) -> None:
    def refuse(*names: str, code: str = "not_rebasable", **choice: str) -> None:
        answer = api.client.post("/runs/run-001/rebase", json=choice)
        api.refused(answer, 409, code, *names)

    assert api.client.post("/runs/nobody/rebase", json={}).status_code == 404
    api.start(phases=2)
    refuse("only a run that is over")
    api.result()
    api.result(phase_id="P0.1", patch=EDIT)
    refuse("stands on 'main' at")
    move_base(api)
    refuse("is at", code="base_moved", base_commit="0" * 40)
    wrong = api.client.post("/runs/run-001/rebase", json={"base_commit": "main"})
    api.refused(wrong, 422, None, "base_commit")
    reason = {"to_phase": "P0.0", "reason": "no good"}
    assert api.client.post("/runs/run-001/rollback", json=reason).status_code == 200
    refuse("the branch was rolled back by hand")


def test_a_commit_whose_change_the_base_has_is_made_again_as_an_empty_one(api: Api) -> None:
    finish(api)
    api.repo.commit({"src/P0.0.txt": "This is src/P0.0.txt.\n"})
    run = rebase(api)
    assert run["state"] == "DONE_SUCCESS"
    assert show(api, "autonomous/run-001.2:src/P0.0.txt").endswith("And more.")
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []
    with api.client.app.state.context.reading() as session:  # type: ignore[attr-defined]
        rows = session.fetch(
            "SELECT difference IS NULL FROM commits WHERE kind = 'replay' ORDER BY position", ()
        )
    assert [is_empty for (is_empty,) in rows] == [True, False]


def test_a_base_that_has_all_changes_needs_no_rebase(api: Api) -> None:
    finish(api)
    tree = api.repo.git("rev-parse", f"{api.head()}^{{tree}}")
    merged = api.repo.git("commit-tree", tree, "-p", "main", "-m", "Squashed")
    api.repo.git("update-ref", "refs/heads/main", merged)
    answer = api.client.post("/runs/run-001/rebase", json={})
    api.refused(answer, 409, "not_rebasable", "has all changes of run")


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_remote(settings, tmp_path)


def judge(api: Api, verdict: str) -> JsonObject:
    body: JsonObject = {"commit_sha": api.head("run-001.2"), "verdict": verdict}
    body |= {"failing_checks": ["test_a"]} if verdict == "red" else {}
    answer = api.client.post("/runs/run-001.2/phases/rebase/ci_result", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def test_ci_judges_the_rebased_branch_and_a_builder_mends_a_red_one(api: Api) -> None:
    finish(api)
    rules = api.client.get("/project/ruleset").json()
    rules["ci"] = {"mode": "external"}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    move_base(api)
    assert rebase(api)["state"] == "CI_RUNNING"
    assert judge(api, "red")["phase_state"] == "QUEUED"
    mended = api.result("run-001.2", "rebase", api.new_file("src/mended.txt"))
    assert mended.json()["phase_state"] == "CI_RUNNING"
    assert judge(api, "green")["run_state"] == "DONE_SUCCESS"
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []
    rules["ci"] = {"mode": "none"}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    move_base(api, "third.txt")
    assert rebase(api, "run-001.2")["state"] == "DONE_SUCCESS"
    assert len(api.commits("run-001.3")) == 3, "also those that were made again before"
    assert check_alone(api.repo.path, "run-001.3")["reasons"] == []


def test_a_failed_rebase_is_not_continued_but_made_again(api: Api) -> None:
    finish(api)
    rules = api.client.get("/project/ruleset").json()
    rules["ci"] = {"mode": "external"}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    move_base(api)
    rebase(api)
    reason = {"reason": "another base comes"}
    assert api.client.post("/runs/run-001.2/cancel", json=reason).status_code == 200
    answer = api.client.post("/runs/run-001.2/continue", json={})
    api.refused(answer, 409, "not_continuable", "rebase that one again")
    assert rebase(api, run_id="run-001-again")["state"] == "CI_RUNNING"


def test_new_dependencies_of_a_rebased_run_need_the_review_again(api: Api) -> None:
    api.start()
    added = api.new_file("requirements.txt", "requests==2.31")
    assert api.result(patch=added).json()["run_state"] == "DONE_SUCCESS"
    rules = api.client.get("/project/ruleset").json()
    rules["review"]["new_dependencies"] = "required"
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    move_base(api)
    assert rebase(api)["state"] == "GATE"
    body = {"recommendation": "approve", "review_notes": "known"}
    answer = api.client.post("/runs/run-001.2/phases/rebase/auditor_result", json=body)
    assert answer.json()["phase_state"] == "COMPLETE", answer.text
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []


@pytest.mark.parametrize("what", ["original", "left_out"])
def test_the_checker_refuses_a_rebase_that_is_not_of_the_named_run(
    api: Api, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A service that was changed makes a commit of its own, or leaves one out."""
    finish(api)
    move_base(api)
    make_again = Repository.rebase

    def forge(repository: Repository, onto: str, commits: list[tuple[str, str]]) -> Any:
        made = make_again(repository, onto, commits)
        assert isinstance(made, list)
        return made

    def other_tree(repository: Repository, onto: str, commits: list[tuple[str, str]]) -> Any:
        made = forge(repository, onto, commits)
        made[1] = made[0]
        return made

    if what == "original":
        monkeypatch.setattr(Repository, "rebase", other_tree)
        told = "is not what the commit that it makes again gives on its base"
    else:
        accepted = rebasing._accepted
        monkeypatch.setattr(rebasing, "_accepted", lambda *given: accepted(*given)[:1])
        told = "of the rebased run is not made again"
    rebase(api)
    assert any(told in reason for reason in check_alone(api.repo.path, "run-001.2")["reasons"])


def test_every_view_of_a_rebased_run_answers_and_a_backtest_comes_to_the_same(api: Api) -> None:
    finish(api)
    move_base(api)
    rebase(api)
    for path in (
        "/runs/run-001.2",
        "/runs/run-001.2/phases/rebase",
        "/runs/run-001.2/phases/rebase/attempts",
        "/runs/run-001.2/timeline",
        "/runs/run-001.2/diff",
        "/runs/run-001.2/diff?phase_id=rebase",
        "/runs/run-001.2/events",
        "/runs/run-001.2/integration_status",
        "/reports/run_summary/run-001.2",
        "/dashboard/runs/run-001.2?phase=rebase",
        "/metrics/tiers/run-001.2",
        "/runs?text=rebase",
    ):
        assert api.client.get(path).status_code == 200, path
    rules = api.client.get("/project/ruleset").json()
    compared = api.client.post("/strategy/backtest", json={"ruleset": rules}).json()
    assert [run for run in compared["runs"] if run["changes"] or run["parted_at"]] == []
    shown = api.repo.git("show", "autonomous/run-001.2:.autonomous_runs/run-001.2/statement.json")
    payload = json.loads(base64.b64decode(json.loads(shown)["payload"]))
    made_of = payload["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [each["name"] for each in made_of if each["name"].startswith(("record", "commit"))] == [
        "record of run run-001",
        *(f"commit {commit}" for commit in reversed(api.commits())),
    ]


def test_a_continued_run_is_rebased_with_the_commits_of_the_run_that_failed(api: Api) -> None:
    api.start(phases=2)
    api.result()
    api.client.post("/runs/run-001/cancel", json={"reason": "enough for today"})
    assert api.client.post("/runs/run-001/continue", json={}).status_code == 201
    assert api.result("run-001.2", "P0.1", EDIT).json()["run_state"] == "DONE_SUCCESS"
    move_base(api)
    assert rebase(api, "run-001.2")["run_id"] == "run-001.3"
    assert show(api, "autonomous/run-001.3:src/P0.0.txt").endswith("And more.")
    assert check_alone(api.repo.path, "run-001.3")["reasons"] == []
    assert api.client.get("/runs/run-001.3/promotion").json()["reasons"] == []


def test_a_rebase_is_judged_as_strictly_as_the_run_was(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = api.client.get("/project/ruleset").json()
    rules["ci"] = {"mode": "external"}
    assert api.client.put("/project/ruleset", json=rules).status_code == 200
    api.start(phase={"complexity": "high"})
    api.result()
    body = {"commit_sha": api.head(), "verdict": "green"}
    answer = api.client.post("/runs/run-001/phases/P0.0/ci_result", json=body)
    assert answer.json()["run_state"] == "DONE_SUCCESS", answer.text
    move_base(api)
    assert rebase(api)["tiers"][0]["phases"][0]["ci_profile"] == "strict"
    judge(api, "green")
    assert check_alone(api.repo.path, "run-001.2")["reasons"] == []

    def lenient(*given: Any, **named: Any) -> Any:
        made = rebase_plan(*given, **named)
        phase = made.phases[0].model_copy(update={"complexity": None})
        return made.model_copy(update={"phases": (phase,)})

    monkeypatch.setattr(rebasing, "rebase_plan", lenient)
    move_base(api, "fourth.txt")
    rebase(api, run_id="run-lenient")
    body["commit_sha"] = api.head("run-lenient")
    api.client.post("/runs/run-lenient/phases/rebase/ci_result", json=body)
    told = "phase 'rebase' is not strict, and a phase of the rebased run was"
    assert check_alone(api.repo.path, "run-lenient")["reasons"] == [told]
