"""Phases side by side through the service: claims, commits by arrival, undoing, merging."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text
from tests.api.test_local_ci import backtest_changes, rule, take, waiting, work
from tests.checker.alone import check_alone
from tests.lanes import LANES, lanes

from autopack.domain.record_check import check_record
from autopack.domain.record_text import RecordSubject
from autopack.gitrepo import PatchEmptyError
from autopack.services import ci, patching
from autopack.services.context import AppContext

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api, Json

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@pytest.fixture
def context(agents: Agents) -> AppContext:
    context: AppContext = agents.app.state.context
    return context


def start(api: Api, depth: int = 1, **how: object) -> None:
    """Start a run of three lanes; `a1` depends on `a0`, and changes the same folder."""
    plan = {**api.plan(**how), "phases": lanes(depth)["phases"]}  # type: ignore[arg-type]
    response = api.client.post("/runs/start", json=plan)
    assert response.status_code == 201, response.text


def build(agents: Agents, item: Json, name: str = "file", **fields: object) -> Json:
    """Hand in a patch for the item's lane that must be accepted."""
    lane = str(item["phase_id"])[0]
    patch = agents.api.new_file(f"src/{lane}/{name}.txt")
    response = agents.build(item, patch=patch, **fields)
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def states(api: Api) -> dict[str, str]:
    [tier] = api.run()["tiers"]
    return {phase["phase_id"]: phase["state"] for phase in tier["phases"]}


def paths(api: Api) -> list[str]:
    names = api.repo.git("ls-tree", "-r", "--name-only", api.head(), "src/").split()
    return [name.removeprefix("src/") for name in names if name.count("/") > 1]


def judge(context: AppContext) -> None:
    """Do what workers would do with every queued run of CI, also with those that have ended."""
    for ci_run_id in waiting(context):
        with context.writing() as session:
            done = text("UPDATE procrastinate_jobs SET status = 'doing' WHERE queue_name = 'ci'")
            session.execute(done)
            session.commit()
        ci.run_ci(context, ci_run_id)
    take(context)


def test_lanes_are_claimed_at_once_and_their_results_are_commits_in_order_of_arrival(
    api: Api, agents: Agents
) -> None:
    start(api, depth=2)
    items = [agents.claim() for _ in LANES]
    assert [item["phase_id"] for item in items] == ["a0", "b0", "c0"]
    agents.nothing_for("builder")
    assert agents.reserved() == (1_500_000, 1_500_000)
    bases = {item["repository"]["base_commit"] for item in items}
    assert len(bases) == 1
    answers = [build(agents, item) for item in reversed(items)]
    assert [(each["next"]["phase_id"], each["next"]["agent"]) for each in answers] == [
        ("a0", "builder@host-1"),
        ("a0", "builder@host-1"),
        ("a1", None),
    ]
    assert states(api) | {"a1": "QUEUED"} == states(api)
    assert paths(api) == ["a/file.txt", "b/file.txt", "c/file.txt"]
    commits = api.commits()
    assert [api.repo.git("log", "-1", "--format=%s", each) for each in reversed(commits)] == [
        f"Step 0 of lane {lane}" for lane in "cba"
    ]
    items = [agents.claim() for _ in LANES]
    for item in items:
        build(agents, item, "more")
    assert api.run()["state"] == "DONE_SUCCESS"
    assert agents.reserved() == (0, 0)
    assert check_alone(api.repo.path)["reasons"] == []


def test_two_agents_that_claim_at_once_never_get_the_same_phase(api: Api, agents: Agents) -> None:
    start(api)
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: agents.ask(), range(6)))
    assert sorted(each.status_code for each in answers) == [200] * 3 + [204] * 3
    items = [each.json() for each in answers if each.status_code == 200]
    assert {item["phase_id"] for item in items} == {"a0", "b0", "c0"}
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda item: build(agents, item), items))
    assert api.run()["state"] == "DONE_SUCCESS"
    assert len(api.commits()) == 3
    assert paths(api) == ["a/file.txt", "b/file.txt", "c/file.txt"]
    assert check_alone(api.repo.path)["reasons"] == []


def test_a_claim_over_all_runs_gives_each_agent_a_lane(api: Api, agents: Agents) -> None:
    start(api)
    assert [agents.claim(run_id=None)["phase_id"] for _ in LANES] == ["a0", "b0", "c0"]
    agents.nothing_for("builder", None)


def test_a_red_verdict_undoes_the_phase_alone_and_ci_judges_the_others_without_it(
    api: Api, agents: Agents, context: AppContext
) -> None:
    rule(api, "! test -e src/a/bad.txt")
    start(api)
    a, b, c = (agents.claim() for _ in LANES)
    build(agents, a, "bad")
    build(agents, b)
    build(agents, c)
    assert len(waiting(context)) == 1, "CI judges one commit at a time"
    work(context)
    assert states(api) == {"a0": "QUEUED", "b0": "CI_RUNNING", "c0": "CI_RUNNING"}
    assert paths(api) == ["b/file.txt", "c/file.txt"]
    assert len(api.commits()) == 6  # three patches, the undoing, two patches again
    work(context)
    work(context)
    assert states(api) == {"a0": "QUEUED", "b0": "COMPLETE", "c0": "COMPLETE"}
    [reason] = [
        event["reason"]
        for event in agents.events()
        if event["kind"] == "PhaseQueued" and event["phase_id"] == "a0"
    ]
    assert reason.startswith("CI is red")
    again = agents.claim()
    assert again["phase_id"] == "a0"
    build(agents, again, "good")
    work(context)
    assert api.run()["state"] == "DONE_SUCCESS"
    assert paths(api) == ["a/good.txt", "b/file.txt", "c/file.txt"]
    assert backtest_changes(api) == []
    assert api.run()["promotion_eligible_to_main"] is True
    assert check_alone(api.repo.path)["reasons"] == []


def test_a_phase_that_fails_for_good_is_undone_and_the_lanes_beside_it_go_on(
    api: Api, agents: Agents, context: AppContext
) -> None:
    rule(api, "! test -e src/a/bad.txt")
    start(api, run_scope="multi_tier")
    a, b, c = (agents.claim() for _ in LANES)
    build(agents, a, "bad")
    build(agents, b)
    assert api.status("FAILED", phase_id="a0").status_code == 200
    assert states(api) == {"a0": "FAILED", "b0": "CI_RUNNING", "c0": "EXECUTING"}
    assert paths(api) == ["b/file.txt"]
    judge(context)
    build(agents, c)
    judge(context)
    run = api.run()
    assert run["state"] == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    assert paths(api) == ["b/file.txt", "c/file.txt"]
    answer = api.client.post("/runs/run-001/continue", json={})
    assert answer.status_code == 201, answer.text
    new = answer.json()
    assert [phase["phase_id"] for tier in new["tiers"] for phase in tier["phases"]] == ["a0"]
    assert api.repo.git("rev-parse", "autonomous/run-001.2^{tree}") == api.repo.git(
        "rev-parse", f"{api.head()}^{{tree}}"
    )


def test_what_an_operator_ends_by_hand_while_ci_runs_is_told_or_taken_off_the_branch(
    api: Api, agents: Agents, context: AppContext
) -> None:
    """Skipped, it is undone; completed, it stays, and a later red verdict names it."""
    rule(api, "! test -e src/b/bad.txt")
    start(api)
    a, b, c = (agents.claim() for _ in LANES)
    build(agents, a)
    build(agents, b, "bad")
    build(agents, c)
    assert api.status("SKIPPED", phase_id="a0").status_code == 200
    assert paths(api) == ["b/bad.txt", "c/file.txt"]
    assert api.status("COMPLETE", phase_id="b0").status_code == 200
    judge(context)
    assert states(api) == {"a0": "SKIPPED", "b0": "COMPLETE", "c0": "QUEUED"}
    item = agents.claim()
    assert "completed by hand and that no CI has judged: 'b0'" in item["history"][-1]["log_tail"]
    assert api.status("FAILED", phase_id="c0").status_code == 200
    assert api.run()["state"] == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    assert paths(api) == ["b/bad.txt"]
    assert backtest_changes(api) == []


def test_a_review_is_pending_beside_other_phases_and_applied_by_its_approval(
    api: Api, agents: Agents
) -> None:
    start(api)
    a, b, _ = (agents.claim() for _ in LANES)
    build(agents, a, status="needs_review")
    assert states(api)["a0"] == "GATE"
    assert api.commits() == []
    build(agents, b)
    review = agents.claim("auditor")
    assert review["phase_id"] == "a0"
    assert agents.review("approve", review["lease"]["token"], phase_id="a0").status_code == 200
    assert states(api) == {"a0": "COMPLETE", "b0": "COMPLETE", "c0": "EXECUTING"}
    assert paths(api) == ["a/file.txt", "b/file.txt"]


def test_what_does_not_merge_is_a_ticket_and_no_lost_try_the_first_time(
    api: Api, agents: Agents
) -> None:
    start(api)
    a, b, _ = (agents.claim() for _ in LANES)
    build(agents, b)
    for used in (0, 1):
        patch = f"--- a/src/a/x.txt\n+++ b/src/a/x.txt\n@@ -1 +1 @@\n-old {used}\n+new\n"
        answer = agents.build(a, patch=patch)
        api.refused(answer, 409, "patch_conflict")
        assert api.phase(phase_id="a0")["builder_attempts_used"] == used
        assert states(api)["a0"] == "QUEUED"
        a = agents.claim()
        assert a["phase_id"] == "a0"
        if not used:  # the branch moves on again
            agents.api.status("FAILED", phase_id="c0")


def test_one_phase_that_passes_the_runs_cap_ends_the_others_too(api: Api, agents: Agents) -> None:
    start(api, token_cap=1_000)
    a = agents.claim()
    agents.nothing_for()  # the first claim has reserved all that the run has
    assert agents.beat(a, tokens_used=10)["directive"] == "continue"
    build(agents, a, tokens_used=10)
    b = agents.claim()
    agents.build(b, tokens_used=2_000)
    run = api.run()
    assert run["state"] == "DONE_FAILED_BUDGET_EXHAUSTED"
    assert states(api) == {"a0": "COMPLETE", "b0": "SKIPPED", "c0": "SKIPPED"}


def test_without_the_rulesets_leave_the_plan_is_built_in_its_order(
    api: Api, agents: Agents
) -> None:
    document = {"project_id": "Autopack", "parallel": False}
    assert api.client.put("/project/ruleset", json=document).status_code == 200
    start(api)
    first = agents.claim()
    agents.nothing_for()
    api.refused(api.result(phase_id="b0"), 409, "phase_not_next", "'a0'")
    build(agents, first)
    assert agents.claim()["phase_id"] == "b0"


def test_the_checker_expects_phases_to_start_in_the_order_of_the_graph(
    api: Api, agents: Agents
) -> None:
    start(api)
    for item in [agents.claim() for _ in LANES]:
        build(agents, item)
    data = api.repo.git("show", "autonomous/run-001:.autonomous_runs/run-001/run.json")
    record = json.loads(data)
    assert record["is_parallel"] is True
    assert check(record) == []
    record["phases"][1]["depends_on"] = ["a0"]
    assert any("starts phase 'b0' before phase 'a0'" in reason for reason in check(record))


def check(record: Json) -> list[str]:
    data = json.dumps(record).encode()
    message = f"Record\n\nAutopack-Record-SHA256: {sha256(data).hexdigest()}\n"
    subject = RecordSubject(
        run_id="run-001", branch="autonomous/run-001", base_branch=record["base_branch"]
    )
    return list(check_record(data, message, subject).reasons)


def test_the_same_result_twice_is_one_commit_though_others_came_between(
    api: Api, agents: Agents
) -> None:
    start(api)
    a, b, _ = (agents.claim() for _ in LANES)
    first = build(agents, a)
    build(agents, b)
    patch = api.new_file("src/a/file.txt")
    again = agents.build(a, patch=patch)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json() == first
    assert len(api.commits()) == 2


def test_the_operator_cancels_one_phase_while_others_are_under_way(
    api: Api, agents: Agents
) -> None:
    start(api, depth=2)
    a, b, c = (agents.claim() for _ in LANES)
    assert api.status("QUEUED", phase_id="a0").status_code == 200
    api.refused(agents.build(a), 409, "lease_lost")
    assert api.status("FAILED", phase_id="b0").status_code == 200
    assert agents.beat(b)["directive"] == "stop"
    build(agents, c)
    assert agents.claim()["phase_id"] == "a0"


def test_a_lapse_of_one_lane_takes_nothing_from_the_others(api: Api, agents: Agents) -> None:
    start(api)
    a = agents.claim(lease_seconds=60)
    b = agents.claim()
    agents.wait(seconds=61)
    agents.upkeep()
    assert states(api) == {"a0": "QUEUED", "b0": "EXECUTING", "c0": "QUEUED"}
    api.refused(agents.build(a), 409, "lease_lost")
    build(agents, b)
    assert agents.reserved() == (0, 0)


def test_a_run_with_an_undone_phase_is_rebased_by_what_is_on_its_branch(
    api: Api, agents: Agents, context: AppContext
) -> None:
    rule(api, "! test -e src/a/bad.txt")
    start(api)
    a, b, c = (agents.claim() for _ in LANES)
    build(agents, a, "bad")
    build(agents, b)
    build(agents, c)
    for _ in LANES:
        work(context)
    build(agents, agents.claim(), "good")
    work(context)
    tree = api.repo.git("rev-parse", f"{api.head()}^{{tree}}")
    empty = api.repo.git("commit-tree", "main^{tree}", "-p", "main", "-m", "Another's work")
    api.repo.git("update-ref", "refs/heads/main", empty)
    answer = api.client.post("/runs/run-001/rebase", json={})
    assert answer.status_code == 201, answer.text
    assert len(api.commits("run-001.2")) == 3
    assert api.repo.git("rev-parse", f"{api.head('run-001.2')}^{{tree}}") == tree


def test_a_patch_that_does_not_apply_without_the_undone_one_ends_the_run_and_names_both(
    api: Api, agents: Agents, context: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths that cannot overlap exclude it; a fault of that rule would lead here."""

    def refuse(*_: object) -> None:
        raise PatchEmptyError("nothing of it is left")

    rule(api, "! test -e src/a/bad.txt")
    start(api)
    a, b, _ = (agents.claim() for _ in LANES)
    build(agents, a, "bad")
    build(agents, b)
    head = api.head()
    monkeypatch.setattr(patching, "apply_again", refuse)
    work(context)
    run = api.run()
    assert run["state"] == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    assert run["failure_reason"].startswith("phases 'a0' and 'b0' are entangled")
    assert api.head() == head, "nothing is half done"
    assert set(states(api).values()) == {"SKIPPED"}
