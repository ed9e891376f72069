"""A claim that is sent again with its Idempotency-Key gets its lease again. (rules §5.1)"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from tests.api.test_claims import NEEDS_APPROVAL, SECONDS, dump, moment
from tests.api.test_concurrency import at_once
from tests.api.test_idempotency import is_repeat

from autopack.store.leases import MOST_FURTHER_TOKENS

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Agents, Api

pytestmark = pytest.mark.integration

Json = dict[str, Any]
# By a claim of the run, and by one over all runs.
RUNS = pytest.mark.parametrize("run_id", ["run-001", None])


def without_token(response: Response) -> Json:
    """Return the work item of a claim without what differs from one answer to the next."""
    assert response.status_code == 200, response.text
    item: Json = response.json()
    del item["lease"]["token"], item["left"]["minutes"]
    return item


def count(agents: Agents, query: str) -> int:
    with agents.app.state.context.engine.connect() as connection:
        return int(connection.scalar(text(query)) or 0)


@RUNS
def test_a_claim_whose_answer_was_lost_gets_the_same_lease_again(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    for name in ("run-001", "run-002"):
        api.start(name, phases=2)
    lost = agents.ask(run_id=run_id, key="one")
    before = api.run(), agents.events()
    again = agents.ask(run_id=run_id, key="one")
    assert (is_repeat(lost), is_repeat(again)) == (False, True)
    assert without_token(again) == without_token(lost)
    assert (api.run(), agents.events()) == before
    assert count(agents, "SELECT count(*) FROM leases") == 1
    assert agents.build(again.json()).status_code == 200
    assert api.phase()["builder_attempts_used"] == 1


@RUNS
def test_each_answer_of_a_claim_proves_the_lease_whichever_arrives(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    api.start()
    items = [agents.claim(run_id=run_id, key="one") for _ in range(3)]
    assert len(set(agents.tokens)) == 3
    for item in items:
        assert agents.beat(item)["directive"] == "continue"
    assert agents.build(items[1]).status_code == 200
    for item in items:
        assert agents.beat(item)["directive"] == "stop"
    api.refused(agents.build(items[0]), 409, "run_over")


def test_of_many_answers_the_first_and_the_latest_prove_the_lease(api: Api, agents: Agents) -> None:
    api.start()
    items = [agents.claim(key="one") for _ in range(MOST_FURTHER_TOKENS + 2)]
    told = [agents.beat(item)["directive"] for item in items]
    assert told == ["continue", "stop"] + ["continue"] * MOST_FURTHER_TOKENS


@RUNS
def test_an_answer_that_is_given_again_says_how_long_the_lease_lasts_now(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    api.start()
    item = agents.claim(run_id=run_id, key="one")
    agents.wait(seconds=100)
    until = agents.beat(item)["expires_at"]
    agents.wait(seconds=SECONDS - 10)
    again = agents.claim(run_id=run_id, key="one")
    assert again["lease"]["expires_at"] == until
    assert moment(until) > agents.now


@RUNS
@pytest.mark.parametrize("end", ["lapse", "result", "release", "operator", "cancel"])
def test_a_lease_that_has_ended_is_not_given_again_and_nothing_else_is(
    api: Api, agents: Agents, run_id: str | None, end: str
) -> None:
    api.start(phases=2)
    item = agents.claim(run_id=run_id, key="one")
    lease = {"lease_token": item["lease"]["token"]}
    match end:
        case "lapse":
            agents.wait(seconds=SECONDS)
        case "result":
            agents.build(item)
        case "release":
            api.client.post("/runs/run-001/phases/P0.0/release", json=lease)
        case "operator":
            api.status("QUEUED")
        case "cancel":
            api.client.post("/runs/run-001/cancel", json={})
    for _ in range(2):
        late = agents.ask(run_id=run_id, key="one")
        api.refused(late, 409, "lease_lost", "P0.0", "new Idempotency-Key")
        assert not is_repeat(late)
    assert count(agents, "SELECT count(*) FROM leases WHERE ended_at IS NULL") == 0
    anew = agents.ask(run_id=run_id, key="two")
    if end == "cancel":
        assert anew.status_code == (409 if run_id else 204)
    else:
        assert anew.json()["lease"]["fence"] > 0


@RUNS
def test_a_key_that_found_nothing_may_ask_again(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    api.start(phase=NEEDS_APPROVAL)
    for _ in range(2):
        assert agents.ask("auditor", run_id, key="one").status_code == 204
    agents.build(agents.claim())
    found = agents.ask("auditor", run_id, key="one")
    assert (found.status_code, is_repeat(found)) == (200, False)
    again = agents.ask("auditor", run_id, key="one")
    assert is_repeat(again)
    assert without_token(again) == without_token(found)
    assert agents.review(token=again.json()["lease"]["token"]).status_code == 200


@RUNS
def test_a_claims_key_comes_with_one_body(api: Api, agents: Agents, run_id: str | None) -> None:
    api.start(phases=2)
    agents.claim(run_id=run_id, key="one")
    others: list[Json] = [{"agent": "other"}, {"lease_seconds": 5}, {"model": "m"}]
    for other in (*others, {"role": "auditor"}):
        refused = agents.ask(run_id=run_id, key="one", **other)
        api.refused(refused, 422, "idempotency_key_reused", "one")
    assert is_repeat(agents.ask(run_id=run_id, key="one"))


def test_keys_of_a_run_are_for_claims_and_other_requests_together(api: Api, agents: Agents) -> None:
    api.start(phases=2)
    agents.claim(key="claim")
    api.refused(api.issue(key="claim"), 422, "idempotency_key_reused", "claim")
    api.issue(key="issue")
    api.refused(agents.ask(key="issue"), 422, "idempotency_key_reused", "issue")


def test_a_key_of_a_claim_over_all_runs_finds_its_run_and_leaves_the_keys_of_runs_alone(
    api: Api, agents: Agents
) -> None:
    for name in ("run-001", "run-002", "run-003"):
        api.start(name)
    agents.claim(run_id="run-001")
    assert agents.claim(run_id=None, key="one")["run_id"] == "run-002"
    api.status("QUEUED")  # the oldest run has work again
    assert agents.claim(run_id=None, key="one")["run_id"] == "run-002"
    assert api.issue(run_id="run-002", key="one").status_code == 201
    assert agents.claim(run_id="run-003", key="one")["run_id"] == "run-003"
    assert agents.claim(run_id=None, key="one")["run_id"] == "run-002"
    assert agents.claim(run_id=None, key="two")["run_id"] == "run-001"


@RUNS
def test_of_claims_at_once_with_one_key_all_get_one_lease(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    for name in ("run-001", "run-002"):
        api.start(name)
    answers = at_once([partial(agents.ask, run_id=run_id, key="one")] * 6)
    assert Counter(answer.status_code for answer in answers) == {200: 6}
    assert Counter(map(is_repeat, answers)) == {False: 1, True: 5}
    assert len({(each.json()["run_id"], each.json()["phase_id"]) for each in answers}) == 1
    assert count(agents, "SELECT count(*) FROM leases") == 1
    for answer in answers:
        assert agents.beat(answer.json())["directive"] == "continue"


def test_without_a_key_each_claim_is_a_new_one(api: Api, agents: Agents) -> None:
    for name in ("run-001", "run-002"):
        api.start(name)
    assert [agents.claim(run_id=None)["run_id"] for _ in range(2)] == ["run-001", "run-002"]
    agents.nothing_for()
    assert count(agents, "SELECT count(*) FROM replies") == 0


@RUNS
def test_no_token_of_a_claim_with_a_key_is_stored(
    api: Api, agents: Agents, run_id: str | None
) -> None:
    api.start()
    for _ in range(3):
        agents.claim(run_id=run_id, key="one")
    rows = dump(agents.app.state.context.engine)
    assert len(set(agents.tokens)) == 3
    for token in agents.tokens:
        assert not [row for row in rows if token in row]


def test_openapi_promises_no_equal_answer_for_the_key_of_a_claim(api: Api) -> None:
    """The answer to a claim that is sent again has another token, or is a refusal."""
    paths = api.client.get("/openapi.json").json()["paths"]
    told = {
        path: parameter["description"]
        for path, operations in paths.items()
        for parameter in operations.get("post", {}).get("parameters", [])
        if parameter["name"] == "Idempotency-Key"
    }
    claims = {path for path, meaning in told.items() if "one answer" not in meaning}
    assert claims == {"/claim", "/runs/{run_id}/claim"}
    assert all("lease again" in told[path] for path in claims)
