"""The same request sent twice has one effect and one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from autopack.domain.errors import AutopackError, ConflictError, UnavailableError
from autopack.services.replies import changing_once, key_scope, once

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


def is_repeat(response: Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


def test_the_same_result_again_is_answered_again_and_is_no_second_attempt(api: Api) -> None:
    api.start(phases=2)
    first = api.result(tokens_used=100)
    again = api.result(tokens_used=100)

    assert (first.status_code, is_repeat(first)) == (200, False)
    assert (again.status_code, is_repeat(again)) == (200, True)
    assert again.json() == first.json()
    assert len(api.commits()) == 1
    phase = api.phase()
    assert (phase["builder_attempts_used"], phase["tokens_used"]) == (1, 100)


def test_a_result_is_answered_again_when_its_run_is_long_over(api: Api) -> None:
    api.start()
    first = api.result()
    assert api.run()["state"] == "DONE_SUCCESS"
    again = api.result()
    assert (again.status_code, again.json()) == (200, first.json())
    api.refused(api.result(patch=api.new_file("other.txt")), 409, "run_over")


def test_a_refusal_is_given_again_and_uses_no_second_try(api: Api) -> None:
    api.start()
    conflicting = (
        "diff --git a/src/app.py b/src/app.py\n--- a/src/app.py\n+++ b/src/app.py\n"
        "@@ -1 +1 @@\n-VALUE = 7\n+VALUE = 8\n"
    )
    for attempts, patch, status in ((1, conflicting, 409), (2, "no patch at all", 422)):
        first = api.result(patch=patch)
        again = api.result(patch=patch)
        assert (first.status_code, is_repeat(first)) == (status, False)
        assert (again.status_code, is_repeat(again)) == (status, True)
        assert again.json() == first.json()
        assert again.headers["content-type"] == "application/problem+json"
        assert api.phase()["builder_attempts_used"] == attempts


def test_the_same_patch_after_another_attempt_is_a_new_attempt(api: Api) -> None:
    api.start()
    api.result(patch="broken")
    api.result(patch="", status="failed")
    assert not is_repeat(api.result(patch="broken"))
    assert api.phase()["builder_attempts_used"] == 3


def test_a_key_identifies_one_request(api: Api) -> None:
    api.start(phases=2)
    first = api.result(key="try-1")
    again = api.result(key="try-1")
    assert (again.status_code, is_repeat(again), again.json()) == (200, True, first.json())

    other = api.result(key="try-1", notes="not the same")
    api.refused(other, 422, "idempotency_key_reused", "try-1")
    other = api.issue(key="try-1")
    api.refused(other, 422, "idempotency_key_reused", "try-1")
    other = api.result(phase_id="P0.1", key="try-1")
    api.refused(other, 422, "idempotency_key_reused", "try-1")
    assert len(api.commits()) == 1


def test_a_key_outlives_later_attempts(api: Api) -> None:
    api.start()
    first = api.result(patch="broken", key="try-1")
    api.result(patch="", status="failed")
    again = api.result(patch="broken", key="try-1")
    assert (again.status_code, is_repeat(again)) == (422, True)
    assert again.json() == first.json()
    assert api.phase()["builder_attempts_used"] == 2


def test_a_new_key_is_a_new_request_even_with_an_equal_body(api: Api) -> None:
    api.start(phase={"task_category": "schema_change"})
    path = "/runs/run-001/phases/P0.0/auditor_result"
    review = {"recommendation": "revise", "review_notes": "again"}
    for number in range(2):
        api.result(patch=api.new_file(f"src/{number}.txt"))
        sent = api.client.post(path, json=review, headers={"Idempotency-Key": f"review-{number}"})
        assert (sent.status_code, is_repeat(sent)) == (200, False)
    phase = api.phase()
    assert (phase["builder_attempts_used"], phase["auditor_attempts_used"]) == (2, 2)


def test_a_new_lease_is_a_new_request_even_with_an_equal_body(api: Api) -> None:
    api.start()
    for attempt in range(2):
        claim = {"role": "builder", "agent": "one"}
        token = api.client.post("/runs/run-001/claim", json=claim).json()["lease"]["token"]
        first = api.result(patch="", status="failed", lease_token=token)
        again = api.result(patch="", status="failed", lease_token=token)
        assert (first.status_code, is_repeat(first), is_repeat(again)) == (200, False, True)
        api.refused(api.result(lease_token=token, patch="other"), 409, "lease_lost")
        assert api.phase()["builder_attempts_used"] == attempt + 1


def test_a_result_with_a_key_is_known_by_its_body_when_sent_again_without_one(api: Api) -> None:
    api.start()
    first = api.result(patch="", status="failed", key="try-1")
    again = api.result(patch="", status="failed")
    assert (is_repeat(first), is_repeat(again), again.json()) == (False, True, first.json())


def test_a_key_gets_its_refusal_again_when_state_and_lease_have_moved_on(api: Api) -> None:
    """A refusal that changed nothing is an answer too: only a new key asks anew."""
    api.start(phases=2)
    early = api.result(phase_id="P0.1", key="early")
    problem = api.refused(early, 409, "phase_not_next")
    assert not is_repeat(early)
    api.result()
    again = api.result(phase_id="P0.1", key="early")
    assert (again.status_code, is_repeat(again), again.json()) == (409, True, problem)
    assert api.result(phase_id="P0.1", key="anew").status_code == 200
    again = api.result(phase_id="P0.1", key="early")
    assert (again.status_code, is_repeat(again), again.json()) == (409, True, problem)


def test_a_key_keeps_a_refusal_and_no_want_of_a_moment(api: Api, app: FastAPI) -> None:
    """What is unavailable now may be there when the request is sent again with its key."""
    api.start()
    asked = once("a test", {}, [key_scope("one")])

    def ask(refusal: AutopackError | None) -> bool:
        with changing_once(app.state.context, "run-001", asked) as turn:
            if refusal is not None:
                raise refusal
            return turn.is_new

    with pytest.raises(UnavailableError, match="a moment"):
        ask(UnavailableError("a moment"))
    with pytest.raises(ConflictError, match="never"):
        ask(ConflictError("never"))
    with pytest.raises(AutopackError, match="never") as again:
        ask(None)
    assert again.value.is_repeat


def test_a_refused_request_changes_nothing_but_its_own_key(api: Api) -> None:
    api.start(phases=2)
    before = api.run()
    api.refused(api.result(phase_id="P0.1", key="early", suggested_issues=[]), 409)
    other = api.result(phase_id="P0.1", key="early", notes="another body")
    api.refused(other, 422, "idempotency_key_reused", "early")
    assert api.run() == before


def test_a_rollback_for_another_reason_is_another_request(api: Api) -> None:
    api.start()
    api.result()
    for reason, status in (("no good", 200), ("no good", 200), ("worse", 422)):
        body = {"to_phase": "P0.0", "reason": reason}
        path = "/runs/run-001/rollback"
        sent = api.client.post(path, json=body, headers={"Idempotency-Key": "back"})
        assert sent.status_code == status, sent.text


def test_keys_of_two_runs_do_not_meet(api: Api) -> None:
    for run_id in ("run-a", "run-b"):
        api.start(run_id)
        response = api.result(run_id, key="same-key")
        assert (response.status_code, is_repeat(response)) == (200, False)


def test_an_issue_with_a_key_counts_once_and_without_one_twice(api: Api) -> None:
    api.start()
    first = api.issue("with", key="sighting-1")
    again = api.issue("with", key="sighting-1")
    assert (again.status_code, is_repeat(again), again.json()) == (201, True, first.json())
    for _ in range(2):
        assert not is_repeat(api.issue("without"))

    index = api.client.get("/runs/run-001/issues/index").json()["issues_by_key"]
    backlog = api.client.get("/project/issues/backlog").json()["issues_by_key"]
    for key, count in (("with", 1), ("without", 2)):
        assert index[key]["occurrence_count"] == count
        assert backlog[key]["total_occurrences"] == count


def test_a_key_that_is_no_printable_word_is_422(api: Api) -> None:
    api.start()
    for key in (" ", "a b", "x" * 201, "\x7f"):
        api.refused(api.issue(key=key), 422, None, "Idempotency-Key")
    assert api.client.get("/runs/run-001/issues/index").json()["issues_by_key"] == {}
