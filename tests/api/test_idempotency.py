"""The same request sent twice has one effect and one answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


def is_replay(response: Response) -> bool:
    return response.headers.get("idempotency-replayed") == "true"


def test_the_same_result_again_is_answered_again_and_is_no_second_attempt(api: Api) -> None:
    api.start(phases=2)
    first = api.result(tokens_used=100)
    again = api.result(tokens_used=100)

    assert (first.status_code, is_replay(first)) == (200, False)
    assert (again.status_code, is_replay(again)) == (200, True)
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
        assert (first.status_code, is_replay(first)) == (status, False)
        assert (again.status_code, is_replay(again)) == (status, True)
        assert again.json() == first.json()
        assert again.headers["content-type"] == "application/problem+json"
        assert api.phase()["builder_attempts_used"] == attempts


def test_the_same_patch_after_another_attempt_is_an_attempt_of_its_own(api: Api) -> None:
    api.start()
    api.result(patch="broken")
    api.result(patch="", status="failed")
    assert not is_replay(api.result(patch="broken"))
    assert api.phase()["builder_attempts_used"] == 3


def test_a_key_stands_for_one_request(api: Api) -> None:
    api.start(phases=2)
    first = api.result(key="try-1")
    again = api.result(key="try-1")
    assert (again.status_code, is_replay(again), again.json()) == (200, True, first.json())

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
    assert (again.status_code, is_replay(again)) == (422, True)
    assert again.json() == first.json()
    assert api.phase()["builder_attempts_used"] == 2


def test_keys_of_two_runs_do_not_meet(api: Api) -> None:
    for run_id in ("run-a", "run-b"):
        api.start(run_id)
        response = api.result(run_id, key="same-key")
        assert (response.status_code, is_replay(response)) == (200, False)


def test_an_issue_with_a_key_counts_once_and_without_one_twice(api: Api) -> None:
    api.start()
    first = api.issue("with", key="sighting-1")
    again = api.issue("with", key="sighting-1")
    assert (again.status_code, is_replay(again), again.json()) == (201, True, first.json())
    for _ in range(2):
        assert not is_replay(api.issue("without"))

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
