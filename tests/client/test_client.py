"""The typed client: one method an operation, refusals as errors, retries that do nothing twice."""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import TYPE_CHECKING

import httpx
import pytest

from autopack.client import ApiError, Autopack, ClientError, UnreachableError
from autopack.client.documents import parse_document

if TYPE_CHECKING:
    from fastapi import FastAPI

PLAN = """
run: {run_id: run-001}
tiers: [{tier_id: T1, tier_index: 0, name: First}]
phases:
  - {phase_id: P1, phase_index: 0, tier_id: T1, name: 2026-11-24, task_category: docs}
"""
PATCH = """\
diff --git a/docs/a.md b/docs/a.md
new file mode 100644
--- /dev/null
+++ b/docs/a.md
@@ -0,0 +1 @@
+Hello
"""
# What no program asks by this client.
LEFT_OUT = {("GET", "/metrics"), ("GET", "/events/stream")}


@pytest.fixture
def autopack(in_process: httpx.BaseTransport) -> Iterator[Autopack]:
    with Autopack("http://localhost", transport=in_process) as autopack:
        yield autopack


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def answering(answer: Callable[[httpx.Request], httpx.Response]) -> Autopack:
    return Autopack("http://localhost", transport=httpx.MockTransport(answer))


@pytest.mark.unit
def test_every_operation_of_the_api_has_its_method(app: FastAPI) -> None:
    asked: set[tuple[str, str]] = set()

    def note(request: httpx.Request) -> httpx.Response:
        asked.add((request.method, request.url.path))
        return httpx.Response(200, text="[]")

    client = answering(note)
    for name, method in inspect.getmembers(Autopack, inspect.isfunction):
        if name.startswith("_") or name == "close":
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        required = [each for each in parameters if each.default is inspect.Parameter.empty]
        for given in (required, parameters):
            arguments = {each.name: made_up(each) for each in given}
            with contextlib.suppress(ApiError):
                found = getattr(client, name)(**arguments)
                if inspect.isgenerator(found):
                    next(found)
    operations = {
        (verb.upper(), path) for path, verbs in app.openapi()["paths"].items() for verb in verbs
    }
    assert asked == operations - LEFT_OUT


def made_up(parameter: inspect.Parameter) -> object:
    """Return an argument; names stand for themselves, so that the path asked is the template."""
    kind = parameter.annotation.partition(" ")[0].partition("[")[0]
    is_number = kind == "int" and parameter.default is not inspect.Parameter.empty
    own = f"{{{parameter.name}}}"
    return 1 if is_number else {"Body": {}, "Mapping": {}, "Sequence": ()}.get(kind, own)


@pytest.mark.integration
def test_a_run_is_driven_from_its_plan_to_its_promotion(autopack: Autopack) -> None:
    run = autopack.start_run(PLAN)
    assert run.tiers[0].phases[0].name == "2026-11-24"
    assert autopack.start_run(PLAN).run_id == "run-001"
    assert [run.run_id for run in autopack.list_runs(status=run.state).runs] == ["run-001"]

    item = autopack.claim("builder", "tests@here", account="mine")
    assert item is not None
    assert item.lease is not None
    given_back = {"lease_token": item.lease.token, "reason": "a quota is used up"}
    assert autopack.release("run-001", "P1", given_back).phase_state == "QUEUED"
    item = autopack.claim("builder", "tests@here")
    assert item is not None
    assert item.lease is not None
    assert autopack.claim("builder", "another@here", run_id="run-001") is None
    beat = autopack.heartbeat("run-001", "P1", item.lease.token, 10, Decimal("0.01"))
    assert beat.directive == "continue"
    assert autopack.patch_check("run-001", {"patch_content": PATCH}).applies

    report = {"status": "success", "patch_content": PATCH, "lease_token": item.lease.token}
    done = autopack.submit_builder_result("run-001", "P1", report)
    assert done.run_state == "DONE_SUCCESS"
    assert autopack.diff("run-001").decode().startswith("diff --git a/docs/a.md")
    assert autopack.promotion("run-001").eligible
    sequences = [event.sequence for event in autopack.events("run-001", after=2)]
    assert sequences == list(range(3, 3 + len(sequences)))
    assert len(sequences) > 2
    assert autopack.health().status == "healthy"


@pytest.mark.integration
def test_a_refusal_is_an_error_with_its_code(autopack: Autopack) -> None:
    with pytest.raises(ApiError, match=r"nobody.*\(not_found\)") as refusal:
        autopack.get_run("nobody")
    assert refusal.value.status == 404
    assert refusal.value.problem["title"] == "Not found"
    with pytest.raises(ApiError) as odd:
        autopack.get_run("../project/ruleset")
    assert odd.value.status in (404, 422)
    ruleset = autopack.get_ruleset()
    assert autopack.put_ruleset(ruleset) == ruleset
    assert autopack.dry_run(parse_document(PLAN), ruleset).today is not None


@pytest.mark.unit
def test_what_may_be_sent_twice_is_sent_again_with_one_key(pauses: list[float]) -> None:
    keys: list[str] = []
    audit = {"message": "", "audit_id": 1, "review_focus": None, "auditor_profile": None}

    def fail_twice(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadError("cut off")
        if len(keys) == 2:
            return httpx.Response(503, json={"code": "database_unavailable", "detail": "away"})
        return httpx.Response(202, json=audit)

    assert answering(fail_twice).request_audit("run-001", "P1").audit_id == 1
    assert len(set(keys)) == 1
    assert pauses == [0.25, 0.5]


@pytest.mark.unit
@pytest.mark.parametrize("run_id", ["run-001", None])
def test_a_claim_is_sent_again_with_its_key_and_each_claim_has_another(
    pauses: list[float], run_id: str | None
) -> None:
    keys: list[str] = []

    def cut_off_once(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Idempotency-Key"])
        if len(keys) == 1:
            raise httpx.ReadError("cut off")
        return httpx.Response(204)

    client = answering(cut_off_once)
    assert client.claim("builder", "me", run_id=run_id) is None
    assert client.claim("builder", "me", run_id=run_id) is None
    assert client.claim("builder", "me", run_id=run_id, idempotency_key="mine") is None
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == "mine"


def of_proxy(status: int) -> httpx.Response:
    """Return the page of a proxy whose replica has ended within the request, or is silent."""
    return httpx.Response(status, html="<html>\r\n<head><title>Bad Gateway</title></head></html>")


@pytest.mark.unit
@pytest.mark.parametrize("status", [502, 504])
def test_what_a_proxy_got_no_answer_for_is_sent_again_only_if_it_may_be(
    status: int, pauses: list[float]
) -> None:
    asked: list[str] = []

    def fail(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        return of_proxy(status)

    with pytest.raises(ApiError, match="a proxy before the service answered") as refusal:
        answering(fail).request_audit("run-001", "P1")
    assert (refusal.value.status, len(asked)) == (status, 4)
    asked.clear()
    with pytest.raises(ApiError):
        answering(fail).cancel("run-001", "changed our mind")
    assert len(asked) == 1


@pytest.mark.unit
def test_a_stream_that_breaks_goes_on_where_it_was(pauses: list[float]) -> None:
    def message(sequence: int) -> str:
        event = {"sequence": sequence, "at": "2026-11-24T19:00:00Z", "kind": "K", "data": {}}
        names = ("phase_id", "tier_id", "from_state", "to_state", "reason")
        words = ("actor", "previous_hash", "hash", "sentence")
        event |= {"outcome": "good"}
        event |= dict.fromkeys(names) | dict.fromkeys(words, "")
        return f"id: {sequence}\ndata: {json.dumps(event)}\n\n"

    asked = []

    def stream(request: httpx.Request) -> httpx.Response:
        assert request.headers["Accept"] == "text/event-stream"
        asked.append(request.headers["Last-Event-ID"])
        if len(asked) == 2:
            raise httpx.ReadError("cut off")
        if len(asked) == 3:
            return of_proxy(502)
        whole = {1: message(1) + ": ping\n\n" + message(2) + "data: half", 4: message(3)}
        end = "event: end\ndata: {}\n\n" if len(asked) == 4 else ""
        headers = {"Content-Type": "text/event-stream; charset=utf-8"}
        return httpx.Response(200, headers=headers, text=whole[len(asked)] + end)

    events = answering(stream).follow("run-001")
    assert [event.sequence for event in events] == [1, 2, 3]
    assert asked == ["0", "2", "2", "2"]
    assert pauses == [0.5, 1.0]


@pytest.mark.unit
def test_what_may_have_arrived_and_has_no_key_is_not_sent_again() -> None:
    asked: list[httpx.Request] = []

    def cut_off(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        raise httpx.ReadError("cut off")

    with pytest.raises(UnreachableError, match="cut off"):
        answering(cut_off).cancel("run-001", "changed our mind")
    assert len(asked) == 1


@pytest.mark.unit
@pytest.mark.parametrize("status", [409, 500])
def test_an_answer_that_is_not_for_want_of_a_moment_is_not_asked_for_again(
    status: int, pauses: list[float]
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(status, json={"code": "some_code", "detail": "no"})

    with pytest.raises(ApiError) as refused:
        answering(answer).get_run("run-001")
    assert (refused.value.status, len(asked), pauses) == (status, 1, [])


@pytest.mark.unit
def test_a_missing_service_is_reported_with_what_to_do(pauses: list[float]) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("Connection refused")

    client = Autopack("http://me:secret@far:1", transport=httpx.MockTransport(refuse))
    with pytest.raises(UnreachableError, match=r"http://far:1 .*autopack serve") as away:
        client.claim("builder", "me")
    assert "secret" not in str(away.value)
    assert len(pauses) == 3


@pytest.mark.unit
@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (httpx.Response(502, text="<b>Bad\nGateway</b>"), "<b>Bad Gateway</b> (502)"),
        (httpx.Response(500, json={"code": 7}), "(500)"),
        (httpx.Response(200, text="<html>"), "no JSON (unreadable_answer)"),
        (httpx.Response(200, json={"status": "well"}), "not a LiveAnswer"),
        (httpx.Response(307, headers={"Location": "http://elsewhere"}), "(307)"),
    ],
)
def test_an_answer_of_something_else_is_an_error(answer: httpx.Response, told: str) -> None:
    with pytest.raises(ApiError) as error:
        answering(lambda _: answer).live()
    assert told in str(error.value)


@pytest.mark.unit
def test_the_key_goes_into_the_header_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPACK_API_KEY", "ap_key")

    def live(request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"] == "Bearer ap_key"
        assert "ap_key" not in str(request.url)
        return httpx.Response(200, json={"status": "alive"})

    assert answering(live).live().status == "alive"
    with pytest.raises(ClientError, match="header"):
        Autopack(api_key="a\nb")
    with pytest.raises(ClientError, match="not an address") as odd:
        Autopack("ftp://me:secret@there")
    assert "secret" not in str(odd.value)
