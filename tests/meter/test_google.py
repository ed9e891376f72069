"""Google's wire format at the gateway: the model and the way to answer are in the path.

(docs/worker.md, Measured spend)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from autopack.meter.wire import Format, Reading, Usage, read_request

from .conftest import MODEL, REAL_KEY, Json, sse, stream

if TYPE_CHECKING:
    from .conftest import Benches

pytestmark = pytest.mark.integration

ASKED: Json = {"contents": [], "generationConfig": {"maxOutputTokens": 50}}
USAGE = {
    "promptTokenCount": 120,
    "cachedContentTokenCount": 20,
    "candidatesTokenCount": 23,
    "thoughtsTokenCount": 7,
    "totalTokenCount": 150,
}
SPENT = Usage(input_tokens=100, output_tokens=30, cached_tokens=20, reasoning_tokens=7)
WHOLE = f"/v1beta/models/{MODEL}:generateContent"
STREAM = f"/v1beta/models/{MODEL}:streamGenerateContent?alt=sse"
ADDRESS = "https://generativelanguage.googleapis.com"


def says(text: str, **more: Any) -> Json:
    return {"candidates": [{"content": {"parts": [{"text": text}]}, **more}]}


def test_cached_tokens_are_a_part_of_the_prompt_however_few_it_tells() -> None:
    told = {"promptTokenCount": 5, "cachedContentTokenCount": 20, "candidatesTokenCount": 1}
    reading = Reading(read_request(Format.GENERATE, json.dumps(ASKED).encode(), model=MODEL))
    reading.document(json.dumps({"usageMetadata": told}).encode())
    assert reading.usage == Usage(input_tokens=0, output_tokens=1, cached_tokens=20)


def test_an_answer_is_passed_on_and_measured(bench: Benches) -> None:
    it = bench()
    document = says("Hello", finishReason="STOP") | {"usageMetadata": USAGE}
    it.provider.answer = lambda request: httpx.Response(200, json=document)
    headers = {"authorization": "", "x-goog-api-key": it.token}
    answer = it.post(f"{WHOLE}?key=mine&fields=x", ASKED, headers=headers)
    assert answer.json() == document
    (request,) = it.provider.requests
    assert str(request.url) == ADDRESS + WHOLE
    assert json.loads(request.content) == ASKED
    assert request.headers["x-goog-api-key"] == REAL_KEY
    assert it.token not in str(request.headers)
    assert it.account.spent.usage == SPENT
    assert it.account.spent.model == MODEL
    assert it.account.spent.unpriced == ()


def test_a_stream_is_measured_by_its_last_event(bench: Benches) -> None:
    it = bench()
    events = sse(
        says("He") | {"usageMetadata": USAGE | {"candidatesTokenCount": 1}},
        says("llo", finishReason="STOP") | {"usageMetadata": USAGE},
    )
    it.provider.answer = lambda request: stream(*events)
    assert it.post(STREAM, ASKED).content == b"".join(events)
    assert str(it.provider.requests[0].url) == ADDRESS + STREAM
    assert it.account.spent.usage == SPENT
    assert it.account.spent.estimated == 0


def test_a_stream_that_breaks_off_is_estimated_by_what_it_told(bench: Benches) -> None:
    it = bench()
    events = sse(says("Hello") | {"usageMetadata": USAGE | {"candidatesTokenCount": 1}})
    it.provider.answer = lambda request: stream(*events, then=httpx.ReadError("gone"))
    answer = it.post(STREAM, ASKED)
    assert json.loads(answer.text.splitlines()[-2][6:])["error"]["code"] == 502
    assert it.account.spent.estimated == 1
    assert it.account.spent.usage == Usage(100, 8, 20)


def test_at_the_cap_a_request_gets_the_providers_own_error(bench: Benches) -> None:
    it = bench(tokens=150)
    it.provider.answer = lambda request: httpx.Response(200, json={"usageMetadata": USAGE})
    assert it.post(WHOLE, ASKED).status_code == 200
    refused = it.post(WHOLE, ASKED)
    assert refused.status_code == 429
    error = refused.json()["error"]
    assert (error["code"], error["status"]) == (429, "RESOURCE_EXHAUSTED")
    assert "The budget of this task is used up" in error["message"]
    assert "PerDay" in error["details"][0]["violations"][0]["quotaId"]


@pytest.mark.parametrize(
    ("asked", "fits"),
    [
        (ASKED, True),
        (ASKED | {"generationConfig": {"maxOutputTokens": 50, "candidateCount": 20}}, False),
        (ASKED | {"cachedContent": "cachedContents/x"}, False),
        ({"contents": [], "maxOutputTokens": 50}, False),
    ],
)
def test_a_request_is_bounded_by_its_own_limit(bench: Benches, asked: Json, fits: bool) -> None:
    it = bench(tokens=500)
    account = it.account
    held: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        held.append(account._held.tokens)
        return httpx.Response(200, json={"usageMetadata": USAGE})

    it.provider.answer = answer
    it.post(WHOLE, asked)
    assert (held[0] < 500) is fits


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/v1beta/models/{MODEL}:streamGenerateContent", 400),  # one document, in parts
        (f"/v1beta/models/{MODEL}:batchGenerateContent", 404),
        (f"/v1beta/models/{MODEL}:embedContent", 404),
        ("/v1beta/cachedContents", 404),
        ("/v1beta/models/../x:generateContent", 404),
        (f"/v1beta/tunedModels/{MODEL}:generateContent", 404),
    ],
)
def test_other_paths_are_refused(bench: Benches, path: str, status: int) -> None:
    it = bench()
    assert it.post(path, ASKED).status_code == status
    assert it.provider.requests == []


def test_counting_and_listing_are_free(bench: Benches) -> None:
    it = bench(tokens=0)
    assert it.post(f"/v1beta/models/{MODEL}:countTokens", ASKED).status_code == 200
    assert it.client.get("/v1beta/models").status_code == 200
    assert it.account.spent.requests == 0
