"""Two services on one database, repository and home, with one run's phases side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest
from tests.lanes import LANES, lanes
from tests.waiting import wait_until

from .conftest import Stage
from .test_parallel import all_at_once, result

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]
RUN = "/runs/run-001"
DEPTH = 2


@pytest.fixture
def services(stage: Stage, tmp_path: Path) -> Iterator[tuple[Stage, Stage]]:
    """Two started services that share all but their process."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = Stage(stage.settings, stage.repo, stage.fork_server, folder)
    other.start()
    yield stage, other
    other.stop()


def claim(service: Stage) -> Json | None:
    body = {"role": "builder", "agent": "codex", "lease_seconds": 900}
    response = service.call("POST", f"{RUN}/claim", body)
    is_over = response.status_code == 409 and response.json()["code"] == "run_over"
    assert response.status_code in (200, 204) or is_over, response.text
    return response.json() if response.status_code == 200 else None


def hand_in(service: Stage, item: Json, name: str) -> None:
    path = f"src/{item['phase_id'][0]}/{name}.txt"
    body = result(path, name) | {"lease_token": item["lease"]["token"]}
    service.must("POST", f"{RUN}/phases/{item['phase_id']}/builder_result", body)


def states(service: Stage) -> dict[str, str]:
    [tier] = service.must("GET", RUN)["tiers"]
    return {phase["phase_id"]: phase["state"] for phase in tier["phases"]}


def history(stage: Stage) -> list[list[str]]:
    """Return each commit of the branch, with its parents."""
    log = stage.repo.git("rev-list", "--parents", "main..autonomous/run-001")
    return [line.split() for line in log.splitlines()]


def patches(stage: Stage) -> Counter[str]:
    """Return how many commits of the branch are of each patch."""
    form = "--format=%(trailers:key=Autopack-Patch-SHA256,valueonly)"
    return Counter(stage.repo.git("log", form, "main..autonomous/run-001").split())


def test_lanes_through_two_services_at_once_are_one_line_of_commits_with_each_patch_once(
    services: tuple[Stage, Stage],
) -> None:
    services[0].must("POST", "/runs/start", lanes(DEPTH))
    for step in range(DEPTH):
        # Twice as many claims as there is work, each service with half of them.
        found = [
            item for item in all_at_once(6, lambda at: claim(services[at % 2])) if item is not None
        ]
        assert {item["phase_id"] for item in found} == {f"{lane}{step}" for lane in LANES}

        def give_to_the_other(at: int, found: list[Json] = found, step: int = step) -> None:
            hand_in(services[(at + step + 1) % 2], found[at], f"file{step}")

        all_at_once(len(found), give_to_the_other)
        assert states(services[0]) == states(services[1])
    assert services[1].must("GET", RUN)["state"] == "DONE_SUCCESS"
    commits = history(services[0])
    assert [len(each) for each in commits] == [2] * (len(LANES) * DEPTH + 1)  # and the record
    found_once = patches(services[0])
    assert len(found_once) == len(LANES) * DEPTH
    assert set(found_once.values()) == {1}
    services[0].assert_consistent()


@pytest.mark.parametrize("path", ["/claim", f"{RUN}/claim"])
def test_one_claim_that_two_services_get_at_once_has_one_lease_that_each_answer_proves(
    services: tuple[Stage, Stage], path: str
) -> None:
    services[0].must("POST", "/runs/start", lanes(DEPTH))
    wanted = {"role": "builder", "agent": "codex"}
    found = all_at_once(6, lambda at: services[at % 2].call("POST", path, wanted, "key"))
    assert [answer.status_code for answer in found] == [200] * 6
    marks = [answer.headers.get("Idempotency-Replayed") for answer in found]
    assert sorted(marks, key=str) == [None, *["true"] * 5]
    items = [answer.json() for answer in found]
    assert len({item["phase_id"] for item in items}) == 1
    for at, item in enumerate(items):
        beat = {"lease_token": item["lease"]["token"]}
        where = f"{RUN}/phases/{item['phase_id']}/heartbeat"
        assert services[at % 2].must("POST", where, beat)["directive"] == "continue"
    assert list(states(services[0]).values()).count("EXECUTING") == 1
    services[0].assert_consistent()


def test_ci_of_either_service_undoes_a_red_phase_while_the_other_takes_results(
    services: tuple[Stage, Stage],
) -> None:
    """Workers of both judge; the lane whose first file is bad is built a second time."""
    profile = {"command": "! test -e src/a/bad.txt", "retries": 0}
    rules = {"mode": "local", "profiles": {"normal": profile, "strict": profile}}
    services[0].must("PUT", "/project/ruleset", {"project_id": "Autopack", "ci": rules})
    services[0].must("POST", "/runs/start", lanes(DEPTH))
    names = iter(("bad", "good"))
    turns = cycle([services, services[::-1]])

    def is_over() -> bool:
        taking, giving = next(turns)
        item = claim(taking)
        if item is not None:
            phase_id = item["phase_id"]
            hand_in(giving, item, next(names) if phase_id == "a0" else f"of-{phase_id}")
        return giving.must("GET", RUN)["ended_at"] is not None

    wait_until(is_over, lambda: str(states(services[0])))
    assert claim(services[0]) is None, "the run's lock is free, so its files are written"
    assert services[1].must("GET", RUN)["state"] == "DONE_SUCCESS"
    assert set(states(services[0]).values()) == {"COMPLETE"}
    log = services[0].repo.git("log", "--format=%s", "main..autonomous/run-001").splitlines()
    assert log.count("Undo phase a0") == 1
    assert {len(each) for each in history(services[0])} == {2}
    tree = services[0].repo.git("ls-tree", "-r", "--name-only", "autonomous/run-001", "src/")
    assert "src/a/good.txt" in tree.split()
    assert "src/a/bad.txt" not in tree.split()
    services[0].assert_consistent()
