"""The API's description of itself: valid, complete, and its examples work."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from autopack.config import Settings
from autopack.main import OPERATIONS, create_app

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture
def schema(api: Api) -> dict[str, Any]:
    document: dict[str, Any] = api.client.get("/openapi.json").json()
    return document


def operations(schema: dict[str, Any]) -> list[Operation]:
    return [
        (method, path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_schema_is_valid_openapi_3_1(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1")
    OpenAPIV31SpecValidator(schema).validate()


def resolved(schema: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """Follow a response's reference."""
    if "$ref" not in response:
        return response
    found: dict[str, Any] = schema["components"]["responses"][response["$ref"].rpartition("/")[2]]
    return found


def test_each_refusal_is_described_once(schema: dict[str, Any]) -> None:
    shared = schema["components"]["responses"]
    assert len({each["description"] for each in shared.values()}) == len(shared)
    for method, path, operation in operations(schema):
        for code, response in operation["responses"].items():
            if code[0] in "45" and path != "/health":  # an unhealthy service answers its health
                assert list(response) == ["$ref"], f"{method} {path} {code}"


def test_a_new_application_builds_no_route_of_its_modules_again(settings: Settings) -> None:
    # To build them takes 80 ms of CPU, which the first requests would wait for.
    first, second = create_app(settings), create_app(settings)
    operations = [route for module in OPERATIONS for route in module.router.routes]
    for route in operations:
        assert any(route is served for served in first.router.routes)
        assert any(route is served for served in second.router.routes)


def test_every_operation_says_what_it_does_and_what_can_go_wrong(schema: dict[str, Any]) -> None:
    ids = set()
    for method, path, operation in operations(schema):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["tags"], where
        assert operation["operationId"] not in ids, where
        ids.add(operation["operationId"])
        refusals = {code for code in operation["responses"] if code[0] in "45"}
        assert refusals >= {"401", "403", "421"}, where
        if "{" in path:
            assert refusals >= {"404", "422"}, where
        if "requestBody" in operation:
            assert refusals >= {"413", "415", "422"}, where
        for code in refusals - {"503"}:
            content = resolved(schema, operation["responses"][code])["content"]
            assert list(content) == ["application/problem+json"], f"{where} {code}"


def test_every_body_has_an_example_and_each_works_in_its_turn(
    api: Api, schema: dict[str, Any]
) -> None:
    places = {"run_id": "docs-001", "phase_id": "P1.1"}
    tried = []
    for method, path, operation in operations(schema):
        body = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if body is None:
            continue
        assert body["examples"], f"{method} {path}"
        if path not in IN_ORDER:
            continue
        tried.append((IN_ORDER.index(path), method, path, body["examples"]))
    assert len(tried) == len(IN_ORDER)
    for _, method, path, examples in sorted(tried, key=lambda each: each[0]):
        for example in examples.values():
            response = api.client.request(method, path.format(**places), json=example["value"])
            assert response.status_code in (200, 201, 202), f"{path}: {response.text}"
    path = "/project/issues/{issue_key}"
    (place,) = schema["paths"][path]["get"]["parameters"]
    for example in place["examples"].values():
        response = api.client.get(path.format(issue_key=example["value"]))
        assert response.status_code == 200, response.text


def test_every_place_in_a_path_is_filled_in_by_swagger_ui(schema: dict[str, Any]) -> None:
    for method, path, operation in operations(schema):
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "path":  # a schema's `examples` would be shown, not filled in
                assert parameter.get("examples"), f"{method} {path} {parameter['name']}"


IN_ORDER = [
    "/runs/start",
    "/runs/{run_id}/phases/{phase_id}/update_status",
    "/runs/{run_id}/phases/{phase_id}/record_issue",
    "/runs/{run_id}/phases/{phase_id}/builder_result",
]


def test_every_documented_path_answers_as_documented(api: Api, schema: dict[str, Any]) -> None:
    api.start()
    for method, path, operation in operations(schema):
        if method != "get" or "stream" in path:
            continue
        url = path.format_map(_Places({"run_id": "run-001", "phase_id": "P0.0"}))
        response = api.client.get(url)
        assert str(response.status_code) in operation["responses"], f"{path}: {response.text}"


class _Places(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "1"


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_the_pages_load_nothing_from_elsewhere(api: Api, path: str) -> None:
    page = api.client.get(path)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert not re.search(r"""(?:src|href|url)\s*[=:(]\s*['"]?(?:https?:)?//""", page.text)
    assert "http" not in page.headers["content-security-policy"].replace("https:", "")
    for reference in re.findall(r"""(?:src|href)=["']([^"']+)["']""", page.text):
        assert reference.startswith("/")
        assert api.client.get(reference).status_code == 200
    assert api.client.get("/openapi.json").status_code == 200
