"""Many callers at once: nothing is lost, nothing happens twice."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from threading import Barrier, Event
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.event import listen

from autopack.domain.debt import Closing
from autopack.domain.events import IssueRecorded
from autopack.services import building
from autopack.services.context import utc_now
from autopack.services.settling import settle
from autopack.store import issues, runs

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api

    from autopack.services.change import RunChange

pytestmark = pytest.mark.integration

REPORT = {"issue_key": "a_failing_test", "source": "test", "category": "test_failure"}
SUGGESTED: dict[str, Any] = {"suggested_issues": [REPORT]}


def at_once(calls: Sequence[Callable[[], Response]]) -> list[Response]:
    """Make calls, each in a thread of its own, all let go at the same moment."""
    barrier = Barrier(len(calls))

    def wait_and(call: Callable[[], Response]) -> Response:
        barrier.wait(60)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(wait_and, calls))


def test_thirty_reports_of_one_issue_count_thirty_and_are_one_issue(api: Api) -> None:
    api.start(phases=2)
    answers = at_once([lambda: api.issue("flaky", evidence_refs=["log"])] * 30)

    assert Counter(answer.status_code for answer in answers) == {201: 30}
    counts = [answer.json()["run_index_entry"]["occurrence_count"] for answer in answers]
    assert sorted(counts) == list(range(1, 31))

    run, phase = api.run(), api.phase()
    assert [run["minor_issues_count"], phase["minor_issues_count"]] == [1, 1]
    assert run["tiers"][0]["minor_issues_count"] == 1
    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    assert index["flaky"]["occurrence_count"] == 30
    assert backlog["flaky"]["total_occurrences"] == 30
    assert (backlog["flaky"]["age_in_runs"], backlog["flaky"]["age_in_tiers"]) == (1, 1)

    phase_file = api.document("run-001", "issues", "phase_0_P0.0_issues.json")
    assert phase_file["minor_issue_count"] == 1
    assert [issue["occurrence_count"] for issue in phase_file["issues"]] == [30]
    assert phase_file["issues"][0]["evidence_refs"] == ["log"]
    index_file = api.document("run-001", "run_issue_index.json")["issues_by_key"]
    assert index_file == index
    backlog_file = api.document("project_issue_backlog.json")["issues_by_key"]
    assert backlog_file["flaky"]["total_occurrences"] == 30


def test_two_runs_that_see_the_same_issues_in_turn_never_block_each_other(api: Api) -> None:
    api.start("run-a")
    api.start("run-b")
    keys = [f"issue-{number}" for number in range(6)]
    reports = [{"issue_key": key, "source": "s", "category": "c"} for key in keys]
    answers = at_once(
        [
            partial(
                api.result,
                run_id,
                patch="",
                status="failed",
                suggested_issues=found,
                notes=f"attempt {number}",
            )
            for number in range(3)
            for run_id, found in (("run-a", reports), ("run-b", reports[::-1]))
        ]
    )
    assert {answer.status_code for answer in answers} <= {200, 409}
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    seen = sum(answer.status_code == 200 for answer in answers)
    assert {entry["age_in_runs"] for entry in backlog.values()} == {2}
    assert sum(entry["total_occurrences"] for entry in backlog.values()) >= 12
    assert seen >= 2


@contextmanager
def before_commit(module: ModuleType, request: Callable[[], Response]) -> Iterator[None]:
    """Let a request that is settled in this module commit its change after the block."""
    is_settled, may_commit = Event(), Event()

    def settle_slowly(change: RunChange) -> None:
        settle(change)
        is_settled.set()
        assert may_commit.wait(60)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setattr(module, "settle", settle_slowly)
        slow = pool.submit(request)
        try:
            assert is_settled.wait(60)
            patch.undo()
            yield
        finally:
            may_commit.set()
        assert slow.result().status_code == 200


def test_a_report_does_not_wait_while_another_run_that_saw_the_same_issue_is_at_its_patch(
    api: Api,
) -> None:
    api.start("slow")
    api.start("quick")
    slow = partial(api.result, "slow", suggested_issues=[REPORT])
    with ThreadPoolExecutor(1) as pool, before_commit(building, slow):
        quick = pool.submit(api.issue, run_id="quick")
        assert quick.result(timeout=30).status_code == 201
    assert (backlog_entry(api)["total_occurrences"], backlog_entry(api)["age_in_runs"]) == (2, 2)


def test_an_issue_ages_when_the_report_that_makes_it_age_is_committed(api: Api) -> None:
    """A run that starts before cannot know that the issue needs cleanup, so there it is minor."""
    for run_id in ("first", "second", "slow"):
        api.start(run_id)
    for run_id in ("first", "second"):
        api.issue(run_id=run_id)
    with before_commit(building, partial(api.result, "slow", suggested_issues=[REPORT])):
        api.start("quick")
    assert backlog_entry(api)["status"] == "needs_cleanup"
    answer = api.issue(run_id="quick").json()
    assert answer["run_index_entry"]["effective_severity"] == "minor"


def test_an_entry_is_locked_in_the_round_trip_of_the_commit_alone(api: Api, app: FastAPI) -> None:
    """Else other runs that see the issue would wait for this run's Python."""
    sent: list[str] = []
    engine = app.state.context.autocommit
    listen(engine, "before_cursor_execute", lambda *call: sent.append(call[2]))
    api.start()
    for report in (api.issue, partial(api.issue, "another"), partial(api.result, **SUGGESTED)):
        sent.clear()
        report()
        (commit,) = [text for text in sent if "EXECUTE sight_" in text]
        before, after = commit.split("EXECUTE sight_")
        assert "EXECUTE update_runs_" in before
        assert re.findall("EXECUTE ([a-z_]+)_", after) == ["count_sightings"]
        assert after.endswith("; COMMIT")


def test_an_issue_is_not_closed_before_another_run_has_last_seen_it(api: Api, app: FastAPI) -> None:
    """Else that report, which the closing waited for, would pass for one that came after it."""
    api.start()
    api.issue("seen")
    seen_at = api.client.get("/project/issues/seen").json()["last_seen_at"]
    with app.state.context.writing() as session:
        run = runs.lock_run(session, "run-001")
        closing = {"seen": ("P0.0", Closing(("tests",), "it passes now"))}
        issues.count_in_backlog(session, run, [], closing, utc_now() - timedelta(minutes=1))
        session.commit()
    entry = api.client.get("/project/issues/seen").json()
    assert (entry["status"], entry["resolved_at"]) == ("resolved", seen_at)
    assert [(each["kind"], each["at"]) for each in entry["life"]] == [("closed", seen_at)]


def backlog_entry(api: Api) -> Any:
    return api.client.get("/project/issues/backlog").json()["issues_by_key"]["a_failing_test"]


def test_entries_that_a_change_counts_or_closes_are_locked_in_the_order_of_their_keys(
    api: Api, app: FastAPI
) -> None:
    api.start()
    for key in "abcd":
        api.issue(key)
    sent: list[str] = []
    with app.state.context.writing() as session:
        run = runs.lock_run(session, "run-001")
        events = [event for _, event in runs.read_events(session, run.id)]
        seen = {each.issue_key: each for each in events if isinstance(each, IssueRecorded)}
        listen(session.connection(), "before_cursor_execute", lambda *call: sent.append(call[2]))
        reports = [("T0", seen[key]) for key in "db"]
        closings = {key: ("P0.0", Closing(("tests",), "it passes now")) for key in "ca"}
        issues.count_in_backlog(session, run, reports, closings, utc_now())
        session.send()
    assert re.findall("'([abcd])'", sent[0])[:4] == ["a", "b", "c", "d"]


def test_of_twenty_starts_of_one_run_one_is_201_and_the_others_200(api: Api) -> None:
    answers = at_once([partial(start, api, api.plan())] * 20)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 19}
    assert len({answer.text for answer in answers}) == 1
    assert len(api.client.get("/runs").json()["runs"]) == 1
    assert api.head() == api.run()["head_commit"]


def start(api: Api, plan: dict[str, Any]) -> Response:
    return api.client.post("/runs/start", json=plan)


def test_of_different_plans_of_one_run_one_wins(api: Api) -> None:
    answers = at_once([partial(start, api, api.plan(phases=1 + number)) for number in range(8)])
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 7}


def test_of_different_results_of_one_phase_each_accepted_one_is_one_commit(api: Api) -> None:
    api.start(phases=2)
    patches = [api.new_file(f"by-{number}.txt") for number in range(6)]
    answers = at_once([partial(api.result, patch=patch) for patch in patches])
    accepted = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} == {200, 409}
    assert len(accepted) == 1
    for answer in answers:
        if answer.status_code == 409:
            api.refused(answer, 409, "wrong_state", "COMPLETE")
    assert api.commits() == [accepted[0].json()["commit_sha"]]
    assert api.phase()["builder_attempts_used"] == 1


def test_of_equal_results_of_one_phase_all_get_the_one_answer(api: Api) -> None:
    api.start()
    answers = at_once([api.result] * 8)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["submission_id"] for answer in answers}) == 1
    repeats = [answer.headers.get("idempotency-replayed") for answer in answers]
    assert repeats.count("true") == 7
    assert len(api.commits()) == 1


def test_eight_runs_at_once_all_land_their_patches(api: Api) -> None:
    names = [f"run-{number}" for number in range(8)]
    answers = at_once([partial(start, api, api.plan(name, phases=3)) for name in names])
    assert [answer.status_code for answer in answers] == [201] * 8
    for phase_id in ("P0.0", "P0.1", "P0.2"):
        answers = at_once([partial(api.result, name, phase_id) for name in names])
        assert [answer.status_code for answer in answers] == [200] * 8

    for name in names:
        run = api.run(name)
        assert run["state"] == "DONE_SUCCESS"
        assert api.repo.git("rev-parse", f"autonomous/{name}") == run["head_commit"]
        assert len(api.commits(name)) == 3
        assert api.repo.git("rev-list", "--min-parents=2", f"autonomous/{name}") == ""
        files = api.repo.git("ls-tree", "-r", "--name-only", f"autonomous/{name}").split()
        assert {"src/P0.0.txt", "src/P0.1.txt", "src/P0.2.txt"} <= set(files)
        assert "DONE_SUCCESS" in api.file(name, "run_summary.md")
    assert api.repo.git("fsck", "--strict", "--no-dangling") == ""


def test_readers_see_whole_states_while_results_arrive(api: Api) -> None:
    api.start(phases=6)

    def read() -> Response:
        return api.client.get("/runs/run-001")

    for index in range(6):
        answers = at_once([partial(api.result, phase_id=f"P0.{index}"), *[read] * 5])
        assert answers[0].status_code == 200
        for answer in answers[1:]:
            run = answer.json()
            done = [p for p in run["tiers"][0]["phases"] if p["state"] == "COMPLETE"]
            commits = [phase["commit"] for phase in done]
            assert run["head_commit"] == (commits[-1] if commits else run["base_commit"])
            assert len(done) in (index, index + 1)
