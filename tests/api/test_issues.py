"""Reports of issues over the API: what each level keeps of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from autopack.store import issues

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api, Json
    from tests.conftest import Explain

    from autopack.store.rows import Prepared

pytestmark = pytest.mark.integration

ADD_KEYS = (
    "INSERT INTO backlog (project_id, issue_key, category, base_severity, status,"
    " age_in_runs, age_in_tiers, total_occurrences, first_seen_run, last_seen_run,"
    " last_seen_at, tiers) SELECT 'p', 'key-' || n, 'c', 'minor', 'needs_cleanup', 1, 1, 1,"
    " 'r', 'r', now(), '[]' FROM generate_series(1, 2000) n"
)


def test_an_issue_was_last_seen_at_its_latest_report_in_any_order_of_commits(
    api: Api, agents: Agents
) -> None:
    def last_seen(run_id: str) -> tuple[str, str]:
        phase = api.document(run_id, "issues", "phase_0_P0.0_issues.json")["issues"][0]
        backlog = api.document("project_issue_backlog.json")["issues_by_key"]["a_failing_test"]
        return phase["last_seen_at"], backlog["last_seen_at"]

    api.start("early")
    api.start("late")
    api.issue(run_id="early")
    first = last_seen("early")
    agents.wait(minutes=5)
    api.issue(run_id="early")
    second = last_seen("early")
    assert second > first
    agents.wait(hours=1)
    api.issue(run_id="late")
    latest = last_seen("late")[1]
    agents.wait(minutes=-30)
    api.issue(run_id="early")
    of_phase, of_project = last_seen("early")
    assert second[0] < of_phase < latest
    assert of_project == latest


def seen(api: Api, key: str = "a_failing_test") -> Json:
    response = api.client.get(f"/project/issues/{quote(key, safe='')}")
    assert response.status_code == 200, response.text
    found: Json = response.json()
    return found


def test_an_issue_shows_its_latest_report_and_its_phases_newest_first(
    api: Api, agents: Agents
) -> None:
    api.start("early", phases=2)
    api.issue(run_id="early", phase_id="P0.1", description="It fails.", evidence_refs=["a::b"])
    agents.wait(minutes=1)
    api.issue(run_id="early", description="It hangs.", severity="major")
    agents.wait(minutes=1)
    api.start("late")
    api.issue(run_id="late")
    api.issue("another", run_id="late", description="Another's.", evidence_refs=["c"])
    api.client.post("/runs/late/cancel", json={"reason": "enough"}).raise_for_status()

    issue = seen(api)
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    assert issue.items() >= backlog["a_failing_test"].items()
    assert issue["description"] == "It hangs."
    assert issue["evidence_refs"] == ["a::b"]
    assert issue["needs_cleanup_at"] is issue["resolved_at"] is None
    names = ("run_id", "phase_id", "run_state", "phase_state", "status", "severity")
    cancelled = "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    assert [tuple(place[name] for name in names) for place in issue["places"]] == [
        ("late", "P0.0", cancelled, api.phase("late")["state"], "open", "minor"),
        ("early", "P0.0", api.run("early")["state"], "QUEUED", "open", "major"),
        ("early", "P0.1", api.run("early")["state"], "QUEUED", "open", "minor"),
    ]
    agents.wait(minutes=1)
    api.issue(run_id="early", phase_id="P0.1")
    again = seen(api)["places"][0]
    assert (again["run_id"], again["phase_id"], again["occurrence_count"]) == ("early", "P0.1", 2)
    api.client.post("/project/issues/a_failing_test/resolve").raise_for_status()
    assert seen(api)["resolved_at"] is not None
    api.issue(run_id="early", phase_id="P0.1")
    assert (seen(api)["status"], seen(api)["resolved_at"]) == ("open", None)
    for act in ("resolve", "reopen"):
        api.client.post(f"/project/issues/a_failing_test/{act}").raise_for_status()
    assert (seen(api)["status"], seen(api)["resolved_at"]) == ("open", None)


def test_an_issue_keeps_the_newest_evidence(api: Api) -> None:
    api.start(phases=2)
    for first in (0, 60):
        api.issue(evidence_refs=[f"test_{number}" for number in range(first, first + 60)])
    issue = seen(api)
    assert issue["evidence_refs"] == [f"test_{number}" for number in range(20, 120)]
    assert issue["places"][0]["occurrence_count"] == 2


def test_an_issue_shows_at_most_twenty_phases_and_none_that_expected_it(api: Api) -> None:
    api.start(phases=22, phase={"expected_issues": ["a_failing_test"]})
    for index in range(22):
        api.issue(phase_id=f"P0.{index}", expected_fail=index == 21, description=f"{index}")
    issue = seen(api)
    assert [place["phase_id"] for place in issue["places"]] == [
        f"P0.{index}" for index in range(20, 0, -1)
    ]
    assert issue["description"] == "20"


def test_an_issue_is_found_by_any_key(api: Api) -> None:
    api.start()
    for key in ("a/b", "/", "a b", "50%", "x/resolve", "backlog/x", "ä?#&"):
        assert api.issue(key).status_code == 201
        assert seen(api, key)["issue_key"] == key


def test_an_unknown_issue_is_404_by_its_name(api: Api) -> None:
    api.start(phase={"expected_issues": ["expected"]})
    api.issue("expected", expected_fail=True)
    for key in ("never", "a/b", "expected"):
        path = f"/project/issues/{quote(key, safe='')}"
        api.refused(api.client.get(path), 404, "not_found", repr(key))


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        (issues._OF_RUN, "NULL, NULL, '{}', '{a}', 'p'"),
        (issues._COUNT_SIGHTINGS, "'{a}', '{T0}', 'p', NULL"),
        (issues._GIVEN_ENTRIES, "'{a}', 'p'"),
    ],
    ids=["what is known", "the count", "what was counted"],
)
def test_a_report_finds_its_keys_by_their_index_and_not_among_all_of_the_backlog(
    explain: Explain, statement: Prepared, values: str
) -> None:
    """Also before Postgres has statistics of the rows."""
    plan = explain(
        f"EXECUTE looked_up ({values})",
        before=[ADD_KEYS, f"PREPARE looked_up AS {statement.text}"],
        without=["seqscan"],
    )
    assert set(re.findall(r"\w+_backlog_\w+", plan)) == {"uq_backlog_project_id_issue_key"}
