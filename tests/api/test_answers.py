"""The examples of answers in OpenAPI: those of a real service, and as it answers today."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openapi_schema_validator import OAS31Validator
from tests.api.conftest import with_remote

from autopack.api import examples
from autopack.api.answers import FILE, recorded_answers
from autopack.config import Settings

if TYPE_CHECKING:
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

Json = dict[str, Any]
WRITE = "AUTOPACK_TEST_WRITE_ANSWERS"
RUN = "/runs/{run_id}"
PLAIN = {"Content-Type": "text/plain"}
PHASE = f"{RUN}/phases/{{phase_id}}"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A service with a remote, which an external CI needs."""
    return with_remote(settings, tmp_path)


class Recorder:
    """Sends the documented requests, and keeps what is answered."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.answers: dict[str, dict[str, Any]] = {"": {}}

    def send(self, method: str, path: str, body: Json | None = None, **how: Any) -> Json:
        """Send a request that must succeed, and keep its answer for the operation."""
        response = self._send(method, path, body, **how)
        assert response.is_success, f"{method} {path}: {response.text}"
        kept = self._kept(response)
        self.answers.setdefault(f"{method} {path}", {})[str(response.status_code)] = kept
        answer: Json = response.json()
        return answer

    def refuse(self, status: int, method: str, path: str, **how: Any) -> None:
        """Send a request that must be refused, and keep the problem."""
        response = self._send(method, path, **how)
        assert response.status_code == status, response.text
        self.answers[""][str(status)] = self._kept(response)

    def _send(
        self, method: str, path: str, body: Json | None = None, run_id: str = "docs-001", **how: Any
    ) -> Response:
        url = path.format(run_id=run_id, phase_id="P1.1")
        return self._api.client.request(method, url, json=body, **how)

    def _kept(self, response: Response) -> Json:
        text = response.text
        for place, shown in (
            (self._api.repo.path, "/srv/project"),
            (self._api.runs_dir, "/srv/project/.autonomous_runs"),
            (f'"{socket.gethostname()}:', '"host-1:'),
            (self._api.repo.path.parent / "remote.git", "https://git.example.org/project.git"),
        ):
            text = text.replace(str(place), shown)
        answer: Json = json.loads(text)
        if answer.get("lease"):  # as in the examples of what is sent with it
            answer["lease"]["token"] = examples.HEARTBEAT["lease_token"]
        return answer


def record(api: Api) -> dict[str, dict[str, Any]]:
    """Walk the guide's way with the documented requests."""
    ruleset = {"project_id": "Autopack", "ci": {"mode": "external"}}
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200
    recorder = Recorder(api)
    send = recorder.send
    send("POST", "/runs/start", examples.PLAN)
    send("POST", "/runs/start", examples.PLAN)
    lease = send("POST", f"{RUN}/claim", examples.CLAIM)["lease"]["token"]
    send("POST", f"{PHASE}/update_status", examples.STATUS)
    send("POST", f"{PHASE}/record_issue", examples.ISSUE)
    send("POST", f"{PHASE}/auditor_request", examples.AUDITOR_REQUEST)
    result = {**examples.BUILDER_RESULT, "lease_token": lease, "model": "gpt-5", "cost_usd": 0.21}
    send("POST", f"{PHASE}/builder_result", result)
    send("GET", RUN)
    send("POST", f"{PHASE}/auditor_result", examples.AUDITOR_RESULT)
    verdict = {**examples.CI_RESULT, "commit_sha": api.head("docs-001")}
    send("POST", f"{PHASE}/ci_result", verdict)
    for path in (f"{RUN}/promotion", "/metrics/costs", "/attention", "/nodes"):
        send("GET", path)
    recorder.refuse(404, "GET", RUN, run_id="docs-002")
    recorder.refuse(409, "POST", f"{PHASE}/update_status", body=examples.STATUS)
    recorder.refuse(415, "POST", "/runs/start", content=b"{}", headers=PLAIN)
    recorder.refuse(421, "GET", "/runs", headers={"Host": "elsewhere.example"})
    recorder.refuse(422, "POST", "/runs/start", body={})
    return recorder.answers


def shape(value: object) -> object:
    """Return the names and kinds of a value; a list has those of its items, each once."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    if isinstance(value, list):
        shapes = [shape(each) for each in value]
        return [each for number, each in enumerate(shapes) if each not in shapes[:number]]
    return "number" if isinstance(value, int | float) else type(value).__name__


def test_the_examples_are_what_the_service_answers(api: Api) -> None:
    answers = record(api)
    if os.environ.get(WRITE):
        FILE.write_text(json.dumps(answers, indent=1) + "\n")
        recorded_answers.cache_clear()
    assert shape(recorded_answers()) == shape(
        answers
    ), f"run this test with {WRITE}=1, and commit the file that it writes"
    assert tempfile.gettempdir() not in FILE.read_text()  # no folder of a test


def test_each_example_fits_its_schema_and_is_shown(api: Api) -> None:
    document = api.client.get("/openapi.json").json()
    shown = 0
    for name, answers in recorded_answers().items():
        method, _, path = name.partition(" ")
        for status, answer in answers.items():
            if name:
                response = document["paths"][path][method.lower()]["responses"][status]
                content = response["content"]["application/json"]
            else:
                [content] = [
                    each["content"]["application/problem+json"]
                    for each in document["components"]["responses"].values()
                    if each["description"] == answer["title"]
                ]
            assert content["example"] == answer
            schema = {**content["schema"], "components": document["components"]}
            errors = [f"{name}: {e.message}" for e in OAS31Validator(schema).iter_errors(answer)]
            assert not errors
            shown += 1
    assert shown > 15
