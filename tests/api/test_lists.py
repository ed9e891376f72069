"""Pages: each item exactly once, and no invented cursor."""

from __future__ import annotations

import base64
import json
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration


def forged(*position: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


FORGED_CURSORS = [
    "",
    "abc",
    "\N{GRINNING FACE}",
    "x" * 600,
    forged(),
    forged(1),
    forged(1, 2, 3),
    forged("1", "2"),
    forged(-1, 1),
    forged(1, -1),
    forged(2**53, 1),
    forged(1, 10**40),
    forged(1.5, 1),
    forged(True, True),
    forged(None, None),
    forged("2026-01-01T00:00:00+23:59", 1),
    base64.urlsafe_b64encode(b"[" * 300).decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
]


def pages(api: Api, path: str, **params: Any) -> list[dict[str, Any]]:
    found = []
    cursor: str | None = None
    while True:
        query = params | ({"cursor": cursor} if cursor else {})
        response = api.client.get(path, params=query)
        assert response.status_code == 200, response.text
        found.append(response.json())
        cursor = found[-1]["next_cursor"]
        if cursor is None:
            return found


def test_runs_come_newest_first_each_once_whatever_the_page(api: Api) -> None:
    names = [f"run-{number}" for number in range(7)]
    for name in names:
        api.start(name)
    for limit in (1, 2, 3, 7, 100):
        found = pages(api, "/runs", limit=limit)
        assert [run["run_id"] for page in found for run in page["runs"]] == names[::-1]
        assert all(len(page["runs"]) <= limit for page in found)


def test_a_run_started_between_two_pages_moves_nothing(api: Api) -> None:
    for number in range(4):
        api.start(f"run-{number}")
    first = api.client.get("/runs", params={"limit": 2}).json()
    api.start("late")
    rest = api.client.get("/runs", params={"limit": 9, "cursor": first["next_cursor"]}).json()
    assert [run["run_id"] for run in rest["runs"]] == ["run-1", "run-0"]


def test_filters_narrow_the_list(api: Api) -> None:
    for name in ("alpha", "alpine", "beta_1", "beta21"):
        api.start(name)
    api.result("alpha")

    def found(**params: str) -> set[str]:
        return {run["run_id"] for run in api.client.get("/runs", params=params).json()["runs"]}

    assert found(status="DONE_SUCCESS") == {"alpha"}
    assert found(status="RUN_CREATED") == {"alpine", "beta_1", "beta21"}
    assert found(text="ALP") == {"alpha", "alpine"}
    assert found(text="beta_1") == {"beta_1"}  # no wildcard
    assert found(text="%") == set()
    assert found(text="ALP", status="RUN_CREATED") == {"alpine"}
    assert found(project_id="Autopack") == {"alpha", "alpine", "beta_1", "beta21"}
    assert found(project_id="Other") == set()


def give_up(api: Api, run_id: str = "run-001", phase_id: str = "P0.0") -> None:
    api.status("EXECUTING", run_id, phase_id)
    assert api.status("FAILED", run_id, phase_id).status_code == 200


def test_runs_are_told_live_from_ended_and_cancelled_from_failed(api: Api, agents: Agents) -> None:
    for name in ("live", "done", "cancelled", "failed"):
        api.start(name)
    assert agents.build(agents.claim(run_id="done")).status_code == 200
    agents.wait(minutes=5)
    between = agents.now.isoformat()
    api.client.post("/runs/cancelled/cancel", json={"reason": "enough"})
    give_up(api, "failed")

    def found(**params: str) -> set[str]:
        return {run["run_id"] for run in api.client.get("/runs", params=params).json()["runs"]}

    assert found(live="true") == {"live"}
    assert found(live="false") == {"done", "cancelled", "failed"}
    assert found(ended_since=between) == {"cancelled", "failed"}
    assert found(failure_code="cancelled") == {"cancelled"}
    assert found(failure_code="phase_failed", live="false") == {"failed"}
    assert found(promotion="undecided") == {"live"}
    assert found(promotion="eligible") == {"done"}
    assert found(promotion="blocked") == set()
    assert found(promotion="never") == {"cancelled", "failed"}


def test_a_text_is_found_in_phases_and_issues_too(api: Api) -> None:
    for name in ("one", "two", "three"):
        api.start(name, phase={"name": f"The phase of {name}_%"})
    api.issue("a_needle__of_two", "two")
    for text, runs in (("P0.", 3), ("of one_%", 1), ("needle__", 1), ("of_", 1), ("nothing", 0)):
        page = api.client.get("/runs", params={"text": text}).json()["runs"]
        assert len(page) == runs, text


def test_a_list_says_what_each_run_is_at(api: Api, agents: Agents) -> None:
    api.start("run-001", tiers=2, phases=2, run_scope="multi_tier")
    api.start("waiting")
    assert api.result(phase_id="P0.0").status_code == 200
    api.repo.commit({"main.txt": "main went on"}, "Go on")
    give_up(api, phase_id="P0.1")
    item = agents.claim()
    agents.wait(minutes=1)
    agents.beat(item, tokens_used=250)
    waiting, run = api.client.get("/runs").json()["runs"]

    assert [tier["tier_id"] for tier in run["tiers"]] == ["T0", "T1"]
    assert [[phase["state"] for phase in tier["phases"]] for tier in run["tiers"]] == [
        ["COMPLETE", "FAILED"],
        ["EXECUTING", "QUEUED"],
    ]
    assert (run["phases_complete"], run["phases_total"]) == (1, 4)
    assert run["current_phase"] == {
        "phase_id": "P1.0",
        "tier_id": "T1",
        "name": "Phase 0 of tier 1",
        "state": "EXECUTING",
    }
    (held,) = run["leases"]
    assert held["agent"] == "builder@host-1"
    assert held["heartbeat_at"] > api.run()["tiers"][1]["phases"][0]["started_at"]
    assert held["tokens_reported"] == 250
    assert held["tokens_reserved"] == item["lease"]["tokens_reserved"] == run["tokens_reserved"]
    assert "token" not in held
    assert run["next"]["action"] == "build"
    assert run["next"]["agent"] == "builder@host-1"
    assert run["next"]["until"] == held["expires_at"]
    assert run["next"]["will_fail"] is True
    assert run["next"]["detail"] == (
        "builder@host-1 builds phase 'P1.0'; the run will end as failed, since phase 'P0.1' failed"
    )
    assert (run["commits_ahead"], run["commits_behind"]) == (1, 1)
    assert run["promotion"] == "undecided"
    for name in ("next", "leases", "promotion", "tokens_reserved"):
        assert api.run()[name] == run[name]

    assert waiting["leases"] == []
    assert waiting["next"]["detail"] == "phase 'P0.0' waits for a Builder"
    assert waiting["next"]["until"] == waiting["deadline_at"]
    assert (waiting["commits_ahead"], waiting["commits_behind"]) == (0, 1)


def test_a_text_is_found_page_by_page_however_rare(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopack.store.runs.RUNS_SEARCHED", 2)
    for name in ("needle-1", "hay-1", "hay-2", "hay-3", "needle-2", "needle-3", "hay-4"):
        api.start(name)
    found = pages(api, "/runs", text="needle", limit=1)
    names = [[run["run_id"] for run in page["runs"]] for page in found]
    assert [name for page in names for name in page] == ["needle-3", "needle-2", "needle-1"]
    assert [] in names[:-1]


def test_events_come_after_the_one_that_is_named_each_once_whatever_the_page(api: Api) -> None:
    api.start()
    api.result()
    path = "/runs/run-001/events"
    (whole,) = pages(api, path, limit=1000)
    numbers = [event["sequence"] for event in whole["events"]]
    assert numbers == list(range(1, len(numbers) + 1))
    for after in (0, 1, len(numbers) - 1, len(numbers)):
        for limit in (1, 3, 1000):
            found = pages(api, path, after=after, limit=limit)
            told = [event["sequence"] for page in found for event in page["events"]]
            assert told == numbers[after:]


def test_the_backlog_comes_in_pages_and_filters(api: Api) -> None:
    api.start()
    for number in range(5):
        severity = "major" if number == 3 else "minor"
        api.issue(f"issue-{number}", severity=severity, category=f"c{number % 2}")
    for limit in (1, 2, 5):
        found = pages(api, "/project/issues/backlog", limit=limit)
        keys = [key for page in found for key in page["issues_by_key"]]
        assert keys == [f"issue-{number}" for number in range(5)]

    def found_keys(**params: str) -> set[str]:
        response = api.client.get("/project/issues/backlog", params=params)
        return set(response.json()["issues_by_key"])

    assert found_keys(severity="major") == {"issue-3"}
    assert found_keys(category="c0") == {"issue-0", "issue-2", "issue-4"}
    assert found_keys(status="resolved") == set()


def test_the_backlog_comes_in_each_order_page_by_page(api: Api) -> None:
    api.start()
    for key, severity, times in (("a", "minor", 1), ("b", "major", 1), ("c%_", "minor", 3)):
        for number in range(times):
            words: dict[str, Any] = {
                "description": f"{key} was seen",
                "evidence_refs": [f"log:{number}"],
            }
            api.issue(key, severity=severity, key=f"{key}{number}", **words)

    def found(**params: str) -> list[str]:
        read = pages(api, "/project/issues/backlog", limit=1, **params)
        return [key for page in read for key in page["issues_by_key"]]

    assert found() == found(order="first_seen") == ["a", "b", "c%_"]
    assert found(order="pressing") == ["b", "c%_", "a"]
    assert found(order="last_seen") == ["c%_", "b", "a"]
    assert found(order="often") == ["c%_", "b", "a"]
    assert found(text="%_") == ["c%_"]
    assert found(text="C") == ["c%_"]
    (page,) = pages(api, "/project/issues/backlog", text="c%_")
    assert page["thresholds"] == {"after_runs": 3, "after_tiers": 2}
    entry = page["issues_by_key"]["c%_"]
    assert (entry["description"], entry["effective_severity"]) == ("c%_ was seen", "minor")
    assert entry["evidence_refs"]


def test_a_forged_cursor_is_422(api: Api) -> None:
    for cursor in FORGED_CURSORS:
        for path in ("/runs", "/project/issues/backlog"):
            response = api.client.get(path, params={"cursor": cursor})
            if path.endswith("backlog") and cursor in ("", forged(1)):
                continue
            api.refused(response, 422, None, "cursor")


def test_a_wrong_filter_or_limit_is_422_naming_it(api: Api) -> None:
    for path, params in (
        ("/runs", {"limit": "0"}),
        ("/runs", {"limit": "1001"}),
        ("/runs", {"limit": "many"}),
        ("/runs", {"limit": "9" * 30}),
        ("/runs", {"limit": "9" * 5_000}),
        ("/runs", {"status": "DONE"}),
        ("/runs", {"status": "\0"}),
        ("/runs", {"failure_code": "bored"}),
        ("/runs", {"promotion": "maybe"}),
        ("/runs", {"live": "perhaps"}),
        ("/runs", {"ended_since": "yesterday"}),
        ("/runs", {"ended_since": "2026-11-26T10:00:00"}),
        ("/runs", {"project_id": "--x"}),
        ("/runs", {"text": "a\0b"}),
        ("/runs", {"text": "x" * 65}),
        ("/project/issues/backlog", {"category": "\0"}),
        ("/project/issues/backlog", {"severity": "huge"}),
        ("/project/issues/backlog", {"status": "closed"}),
        ("/project/issues/backlog", {"order": "random"}),
        ("/project/issues/backlog", {"text": "x" * 65}),
    ):
        problem = api.refused(api.client.get(path, params=params), 422)
        assert problem["detail"].startswith(next(iter(params)))
