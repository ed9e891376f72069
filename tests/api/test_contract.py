"""What OpenAPI promises is what the service answers: every operation, refusals and streams too."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest
from openapi_schema_validator import OAS31Validator

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

Json = dict[str, Any]
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STREAM = "text/event-stream"


class Contract:
    """The document, and what it says of an answer."""

    def __init__(self, document: Json) -> None:
        self.document = document
        self.problems: list[str] = []

    def operations(self) -> list[tuple[str, str, Json]]:
        return [
            (method.upper(), path, operation)
            for path, methods in self.document["paths"].items()
            for method, operation in methods.items()
        ]

    def check(self, where: str, operation: Json, answer: Response) -> None:
        """Note what an answer does not hold: its status, its media type, its shape."""
        status, media = str(answer.status_code), answer.headers.get("content-type", "")
        media = media.partition(";")[0]
        where = f"{where} {status}"
        described = operation["responses"].get(status)
        if described is None:
            self.problems.append(f"{where} is not described: {answer.text[:200]}")
            return
        if "$ref" in described:
            name = described["$ref"].rpartition("/")[2]
            described = self.document["components"]["responses"][name]
        content = described.get("content", {})
        if not content and not answer.content:
            return
        if media not in content:
            self.problems.append(f"{where} is {media or 'empty'}, not {list(content)}")
            return
        if media.endswith("json"):
            self.fit(where, content[media].get("schema", {}), answer.json())

    def fit(self, where: str, schema: Json, value: object) -> None:
        whole = {**schema, "components": self.document["components"]}
        validator = OAS31Validator(whole)
        for error in validator.iter_errors(value):
            self.problems.append(f"{where}: {error.json_path} {error.message[:200]}")


@pytest.fixture
def contract(api: Api) -> Contract:
    return Contract(api.client.get("/openapi.json").json())


@pytest.fixture
def runs(api: Api) -> None:
    """One run that is over and one at work, with all that there is to tell of them."""
    for run_id in ("run-001", "run-002"):
        api.start(run_id, phases=3)
        assert api.result(run_id, tokens_used=10).status_code == 200
        assert api.issue(run_id=run_id, phase_id="P0.1").status_code == 201
        claim = {"role": "builder", "agent": "codex", "lease_seconds": 60}
        assert api.client.post(f"/runs/{run_id}/claim", json=claim).status_code == 200
    assert api.client.post("/runs/run-002/cancel", json={"reason": "enough"}).status_code == 200


RUN_IDS = ("run-001", "run-002", "run-unknown", "-")
WRONG_BODIES: tuple[Any, ...] = ({"unknown": 1}, [], {})
VALUES = {"phase_id": "P0.0", "issue_key": "a_failing_test", "profile": "builder"}


def url(path: str, **values: str) -> str:
    known: defaultdict[str, str] = defaultdict(lambda: "1", {**VALUES, **values})
    return path.format_map(known)


def test_every_answer_fits_its_description(api: Api, contract: Contract, runs: None) -> None:
    for method, path, operation in contract.operations():
        if path.endswith("/stream"):
            continue
        where = f"{method} {path}"
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
        bodies: list[Any] = [each["value"] for each in body.get("examples", {}).values()]
        # Twice where no run is named: to repeat a request may have another answer.
        run_ids = RUN_IDS if "{run_id}" in path else RUN_IDS[:2]
        for run_id in run_ids:
            for example in bodies or [None]:
                answer = api.client.request(method, url(path, run_id=run_id), json=example)
                contract.check(f"{where} of {run_id}", operation, answer)
        for wrong in WRONG_BODIES if bodies else ():
            answer = api.client.request(method, url(path, run_id="run-001"), json=wrong)
            contract.check(f"{where} with a wrong body", operation, answer)
        if bodies:
            for headers, content in (
                ({"content-type": "text/plain"}, b"{}"),
                ({"content-type": "application/json"}, b"{"),
                ({"content-type": "application/json"}, b"[" * 40 + b"]" * 40),
            ):
                answer = api.client.request(
                    method, url(path, run_id="run-001"), content=content, headers=headers
                )
                contract.check(f"{where} with {content[:8]!r}", operation, answer)
        for query in ("limit=0", "cursor=x", "status=x", "after=-1"):
            name = query.partition("=")[0]
            if name in {each["name"] for each in operation.get("parameters", [])}:
                answer = api.client.request(method, f"{url(path, run_id='run-001')}?{query}")
                contract.check(f"{where}?{query}", operation, answer)
        foreign = api.client.request(method, url(path), headers={"Host": "evil.example"})
        contract.check(f"{where} of another host", operation, foreign)
    assert not contract.problems, "\n".join(contract.problems)


def test_every_path_names_all_of_its_methods(api: Api, contract: Contract) -> None:
    problem = contract.document["components"]["schemas"]["Problem"]
    paths: defaultdict[str, set[str]] = defaultdict(set)
    for method, path, _ in contract.operations():
        paths[path].add(method)
    for path, served in paths.items():
        for method in {*METHODS} - served:
            answer = api.client.request(method, url(path, run_id="run-001"))
            if answer.status_code != 405:  # another path with a place fits, too
                continue
            assert {*answer.headers["allow"].split(", ")} >= served, f"{method} {path}"
            contract.fit(f"{method} {path}", problem, answer.json())
            assert all(name in answer.json()["detail"] for name in served)
    assert not contract.problems
    assert {*api.client.delete("/project/ruleset").headers["allow"].split(", ")} == {"GET", "PUT"}


def test_the_data_of_a_runs_stream_fits_its_description(
    api: Api, contract: Contract, runs: None
) -> None:
    content = contract.document["paths"]["/runs/{run_id}/events"]["get"]["responses"]["200"]
    described = content["content"][STREAM]
    schema = described["schema"]["contentSchema"]
    answer = api.client.get("/runs/run-002/events", headers={"Accept": STREAM})
    assert answer.headers["content-type"].startswith(STREAM)
    data = [
        json.loads(line.removeprefix("data: "))
        for text in (answer.text, described["example"])
        for line in text.splitlines()
        if line.startswith("data: ")
    ]
    assert len(data) > 5
    assert any("kind" not in each for each in data)  # the end
    for each in data:
        contract.fit("stream", schema, each)
    assert not contract.problems, "\n".join(contract.problems)
