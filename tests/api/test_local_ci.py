"""The service's own CI: commands in a checkout of the commit, and what their ends lead to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sqlalchemy import text
from tests.checker.alone import check_alone

from autopack.config import Settings
from autopack.gitrepo import Repository
from autopack.mirror import Mirror
from autopack.services import baseline, ci
from autopack.services.context import AppContext

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

NEEDS_GOOD = "test -f src/good.txt || { echo 'no good.txt'; exit 1; }"


@pytest.fixture
def context(app: FastAPI, api: Api) -> AppContext:
    context = app.state.context
    assert isinstance(context, AppContext)
    return context


def rule(api: Api, command: str, *, ci: dict[str, Any] | None = None, **profile: Any) -> None:
    each = {"command": command, "timeout_seconds": 60, "retries": 0, **profile}
    document = {
        "project_id": "Autopack",
        "ci": {"mode": "local", "profiles": {"normal": each, "strict": each}, **(ci or {})},
    }
    response = api.client.put("/project/ruleset", json=document)
    assert response.status_code == 200, response.text


def waiting(context: AppContext) -> list[int]:
    """Return the runs of CI that wait in the queue, whenever they are due."""
    with context.reading() as session:
        query = text(
            "SELECT (args->>'ci_run_id')::bigint FROM procrastinate_jobs"
            " WHERE queue_name = 'ci' AND status = 'todo' ORDER BY id"
        )
        return list(session.scalars(query))


def work(context: AppContext) -> int:
    """Do what a worker would: one queued run of CI. Return its id."""
    [ci_run_id] = waiting(context)
    with context.writing() as session:
        session.execute(text("UPDATE procrastinate_jobs SET status = 'doing'"))
        session.commit()
    ci.run_ci(context, ci_run_id)
    take(context)
    return ci_run_id


def take(context: AppContext) -> None:
    """Do what the upkeep's worker would: let runs of CI begin, and take their verdicts."""
    tasks: dict[str, Callable[..., None]] = {
        ci.BEGIN_TASK: ci.begin_ci_run,
        ci.TAKE_TASK: ci.record_ci_outcome,
        baseline.NOTE_BASE_TASK: baseline.record_base,
    }
    with context.writing() as session:
        query = text(
            "DELETE FROM procrastinate_jobs WHERE queue_name = 'upkeep'"
            " RETURNING id, task_name, args"
        )
        jobs = sorted(session.execute(query))
        session.commit()
    for _, name, arguments in jobs:
        tasks[name](context, **arguments)


def runs_of_ci(api: Api) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = api.client.get("/runs/run-001/ci").json()["ci_runs"]
    return runs


def backtest_changes(api: Api) -> list[str]:
    """Return what today's ruleset would have changed of the run: nothing, as it is the same."""
    ruleset = api.client.get("/project/ruleset").json()
    answer = api.client.post("/strategy/backtest", json={"ruleset": ruleset}).json()
    changes: list[str] = [change for run in answer["runs"] for change in run["changes"]]
    return changes


def test_the_time_of_a_command_counts_from_its_start_by_a_worker(
    api: Api, context: AppContext
) -> None:
    """Until then it may wait as long as the run may last."""

    def has_deadline() -> bool:
        with context.reading() as session:
            return bool(session.scalar(text("SELECT deadline_at IS NOT NULL FROM phases")))

    rule(api, "true")
    api.start()
    api.result()
    assert not has_deadline()
    [ci_run_id] = waiting(context)
    ci.begin_ci_run(context, ci_run_id)
    assert has_deadline()
    work(context)
    assert api.phase()["state"] == "COMPLETE"


def test_red_sends_the_phase_back_with_the_log_and_green_completes_it(
    api: Api, context: AppContext
) -> None:
    rule(api, NEEDS_GOOD)
    api.start(phase={"complexity": "high"})  # strict: without a verdict it could not be eligible
    assert api.result(patch=api.new_file("src/bad.txt")).json()["phase_state"] == "CI_RUNNING"
    work(context)
    assert api.phase()["state"] == "QUEUED"
    item = api.client.post("/runs/run-001/claim", json={"role": "builder", "agent": "a"}).json()
    assert "no good.txt" in item["history"][0]["log_tail"]
    token = item["lease"]["token"]
    api.result(patch=api.new_file("src/good.txt"), lease_token=token)
    ci_run_id = work(context)
    run = api.run()
    assert run["state"] == "DONE_SUCCESS"
    assert run["promotion_eligible_to_main"], run["promotion_reasons"]
    assert run["tiers"][0]["ci_runs_count"] == 2
    red, green = runs_of_ci(api)
    assert (red["verdict"], green["verdict"]) == ("red", "green")
    assert "no longer waits" not in f"{red['reason']} {green['reason']}"
    assert green["id"] == ci_run_id
    log = api.client.get(red["log"])
    assert log.text == "no good.txt\n"
    assert log.headers["content-type"] == "text/plain; charset=utf-8"
    assert backtest_changes(api) == []


def test_the_command_sees_the_commit_and_which_it_is(api: Api, context: AppContext) -> None:
    rule(api, 'echo "$CI_PROFILE $AUTOPACK_COMMIT" && git rev-parse HEAD && git status --short')
    api.start()
    api.result()
    judged = api.head()
    work(context)
    [run] = runs_of_ci(api)
    assert run["commit_sha"] == judged
    log = api.client.get(run["log"], params={"tail": 1}).text
    assert log == f"{judged}\n"
    assert api.client.get(run["log"]).text == f"normal {judged}\n{judged}\n"


def test_red_then_green_on_a_retry_is_green_flaky_and_an_issue(
    api: Api, context: AppContext
) -> None:
    rule(api, '[ "$AUTOPACK_CI_ATTEMPT" = 2 ]', retries=1)
    api.start()
    api.result()
    work(context)
    assert api.phase()["state"] == "CI_RUNNING"
    work(context)
    assert api.phase()["state"] == "COMPLETE"
    assert [run["flaky"] for run in runs_of_ci(api)] == [False, True]
    assert api.run()["tiers"][0]["ci_runs_count"] == 1
    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    assert list(index) == ["ci_flaky__profile_normal"]
    assert backtest_changes(api) == []


def test_a_retry_that_is_red_too_costs_one_try(api: Api, context: AppContext) -> None:
    rule(api, "false", retries=1)
    api.start()
    api.result()
    work(context)
    work(context)
    assert waiting(context) == []
    phase = api.phase()
    assert (phase["state"], phase["builder_attempts_used"]) == ("QUEUED", 1)


def test_a_command_that_is_not_there_is_tried_again_and_then_ends_the_run(
    api: Api, context: AppContext
) -> None:
    rule(api, "no-such-command-anywhere")
    api.start()
    api.result()
    for _ in range(3):
        assert api.run()["state"] == "CI_RUNNING"
        work(context)
    run = api.run()
    assert run["state"] == "DONE_FAILED_ENVIRONMENT"
    assert run["failure_code"] == "ci_did_not_run"
    assert "no-such-command-anywhere" in api.client.get(runs_of_ci(api)[0]["log"]).text
    assert run["tiers"][0]["ci_runs_count"] == 0
    assert {each["verdict"] for each in runs_of_ci(api)} == {"did_not_run"}
    assert backtest_changes(api) == []


def test_a_verdict_counts_once_however_many_workers_bring_it(api: Api, context: AppContext) -> None:
    rule(api, "true")
    api.start()
    api.result()
    [ci_run_id] = waiting(context)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: ci.run_ci(context, ci_run_id), range(3)))
    take(context)
    assert api.run()["state"] == "DONE_SUCCESS"
    assert api.run()["tiers"][0]["ci_runs_count"] == 1
    kinds = [event["kind"] for event in api.client.get("/runs/run-001/events").json()["events"]]
    assert kinds.count("CiVerdictReceived") == 1


def test_runs_are_judged_at_once_each_by_its_own_commit(api: Api, context: AppContext) -> None:
    rule(api, 'test -f "src/$AUTOPACK_RUN_ID.txt" && [ "$(ls src | wc -l)" = 2 ]')
    run_ids = [f"run-{number}" for number in range(4)]
    for run_id in run_ids:
        api.start(run_id)
        api.result(run_id, patch=api.new_file(f"src/{run_id}.txt"))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda ci_run_id: ci.run_ci(context, ci_run_id), waiting(context)))
    take(context)
    assert {api.run(run_id)["state"] for run_id in run_ids} == {"DONE_SUCCESS"}


def test_a_worker_with_its_own_clone_fetches_the_commit_and_writes_nothing(
    api: Api, context: AppContext, settings: Settings, git_repo: GitRepo, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    git_repo.git("clone", "--quiet", str(git_repo.path), str(there / "repo"))
    elsewhere = settings.model_copy(
        update={
            "repo_path": there / "repo",
            "home": there / "home",
            "autonomous_runs_dir": there / "runs",
            "git_remote": SecretStr(str(git_repo.path)),
        }
    )
    refs = git_repo.git("-C", str(there / "repo"), "show-ref")
    rule(api, "test -f src/P0.0.txt")
    api.start()
    api.result()
    [ci_run_id] = waiting(context)
    mirror = Mirror(elsewhere.autonomous_runs_dir)
    repository = Repository.open(elsewhere)
    other = AppContext(elsewhere, context.engine, context.autocommit, repository, mirror)
    ci.run_ci(other, ci_run_id)
    assert api.phase()["state"] == "CI_RUNNING"
    take(context)
    assert api.run()["state"] == "DONE_SUCCESS"
    assert "phase-P0.0" in git_repo.git("tag", "--list")
    assert git_repo.git("-C", str(there / "repo"), "show-ref") == refs
    assert not elsewhere.autonomous_runs_dir.exists()


def test_the_end_of_a_run_stops_its_ci(api: Api, context: AppContext) -> None:
    rule(api, "sleep 60")
    api.start()
    api.result()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(work, context)
        while not runs_of_ci(api)[0]["started_at"]:
            pass
        cancelled = api.client.post("/runs/run-001/cancel", json={"reason": "enough"})
        assert cancelled.status_code == 200, cancelled.text
        working.result(timeout=60)
    [run] = runs_of_ci(api)
    assert (run["verdict"], run["reason"]) == (None, "the phase no longer waits for it")
    assert run["ended_at"]


def test_a_verdict_from_outside_is_refused(api: Api, context: AppContext) -> None:
    rule(api, "true")
    api.start()
    api.result()
    body = {"commit_sha": api.head(), "verdict": "green"}
    answer = api.client.post("/runs/run-001/phases/P0.0/ci_result", json=body)
    api.refused(answer, 409, "ci_is_local")
    assert api.phase()["state"] == "CI_RUNNING"


def test_what_judges_a_patch_is_no_patch_s_to_change(api: Api, git_repo: GitRepo) -> None:
    git_repo.commit({"scripts/gate.sh": "false\n", "check": "false\n", "data.txt": "a\n"})
    rule(api, "A=b timeout 5 bash -e ./scripts/gate.sh data.txt && sh -c 'check' | tee data.txt")
    api.start()
    for path in ("scripts/gate.sh", "check"):
        patch = f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-false\n+true\n"
        checked = api.client.post("/runs/run-001/patch_check", json={"patch_content": patch})
        assert "protected" in checked.text, checked.text
    patch = "--- a/data.txt\n+++ b/data.txt\n@@ -1 +1 @@\n-a\n+b\n"
    checked = api.client.post("/runs/run-001/patch_check", json={"patch_content": patch})
    assert "protected" not in checked.text, checked.text


def test_a_log_that_is_not_there_is_named(api: Api, context: AppContext) -> None:
    rule(api, "true")
    api.start()
    api.result()
    [run] = runs_of_ci(api)
    assert run["log"] is None
    api.refused(api.client.get(f"/runs/run-001/ci/{run['id']}/log"), 404, "not_found", "not done")
    api.refused(api.client.get("/runs/run-001/ci/999/log"), 404, "not_found", "999")


def test_a_credential_that_a_command_prints_is_kept_nowhere(api: Api, context: AppContext) -> None:
    body = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"
    rule(api, f"echo 'with ghp_''{body} it failed'; exit 1")
    api.start()
    api.result()
    work(context)
    [run] = runs_of_ci(api)
    log = api.client.get(run["log"]).text
    assert "with [redacted: github token] it failed" in log
    kept = [path.read_text() for path in api.runs_dir.rglob("run-001/**/*") if path.is_file()]
    assert not any(f"ghp_{body}" in content for content in kept)


def test_whatever_a_command_prints_is_kept_as_it_is_and_harms_nothing(
    api: Api, context: AppContext
) -> None:
    rule(api, r"printf 'a\000b\033[31m\377\n'; head -c 300000 /dev/zero | tr '\0' x; exit 1")
    api.start()
    api.result()
    work(context)
    [run] = runs_of_ci(api)
    assert run["verdict"] == "red"
    log = api.client.get(run["log"]).content
    assert log == b"a\0b\x1b[31m\xff\n" + 300_000 * b"x"
    item = api.client.get("/runs/run-001/next_phase").json()
    assert item["history"][0]["log_tail"] == 4_000 * "x"
    with context.engine.connect() as connection:
        assert connection.scalar(text("SELECT length(log_tail) FROM ci_runs")) == 4_000
    assert "\x1b" not in api.file("run-001", "phases", "phase_0_P0.0.md")


@pytest.mark.parametrize("is_required", [False, True])
def test_a_green_verdict_without_a_sandbox_is_shown_everywhere_and_may_be_refused(
    api: Api, context: AppContext, is_required: bool
) -> None:
    rule(api, "true", ci={"require_sandbox": is_required})
    api.start(phase={"complexity": "high"})
    api.result()
    work(replace(context, settings=context.settings.model_copy(update={"ci_sandbox": "none"})))
    assert api.phase()["sandbox"] == runs_of_ci(api)[0]["sandbox"] == "none"
    told = api.client.get("/runs/run-001/promotion").json()
    [word] = told["reasons"] if is_required else told["warnings"]
    assert word.startswith("the green verdict of phase 'P0.0' was")
    assert told["eligible"] is not is_required
    folder = context.settings.autonomous_runs_dir / "run-001"
    [event] = [
        event
        for event in api.client.get("/runs/run-001/events").json()["events"]
        if event["kind"] == "CiVerdictReceived"
    ]
    assert event["data"]["sandbox"] == "none"
    page = (folder / "phases" / "phase_0_P0.0.md").read_text()
    assert "green, without a sandbox" in page
    found = check_alone(api.repo.path)
    assert (found["reasons"], found["warnings"]) == (told["reasons"], told["warnings"])


def test_a_sandbox_of_ours_cannot_be_required_of_ci_elsewhere(api: Api) -> None:
    document = {"project_id": "Autopack", "ci": {"mode": "external", "require_sandbox": True}}
    answer = api.client.put("/project/ruleset", json=document)
    assert answer.status_code == 422
    assert "require_sandbox needs mode local" in answer.text
