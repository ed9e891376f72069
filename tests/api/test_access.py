"""Which callers are answered, and the headers of every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from autopack.config import Settings
from autopack.main import create_app

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

STRANGERS = ["10.0.0.7", "192.168.1.2", "8.8.8.8", "::ffff:10.0.0.7", "fe80::1%eth0", "name", ""]
FORWARDING_HEADERS = [
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Forwarded-Port",
    "X-Forwarded-Server",
    "X-Forwarded",
    "X-Forwarded-Anything",
    "X-Real-IP",
    "Via",
    "CF-Connecting-IP",
    "True-Client-IP",
]


def caller(app: FastAPI, address: str, *, raise_server_exceptions: bool = True) -> TestClient:
    """Return a client that calls from an address; the application is not started for it."""
    from starlette.testclient import TestClient

    return TestClient(
        app,
        base_url="http://localhost",
        client=(address, 50_000),
        raise_server_exceptions=raise_server_exceptions,
    )


class TestLoopback:
    def test_a_caller_on_this_machine_is_answered(self, app: FastAPI) -> None:
        for address in ("127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"):
            assert caller(app, address).get("/health/live").status_code == 200

    def test_any_other_caller_is_401_with_the_setting_to_change(
        self, app: FastAPI, api: Api
    ) -> None:
        for address in STRANGERS:
            for method, path in (
                ("GET", "/"),
                ("GET", "/health/live"),
                ("GET", "/docs"),
                ("GET", "/openapi.json"),
                ("GET", "/nothing"),
                ("POST", "/runs/start"),
            ):
                response = caller(app, address).request(method, path)
                api.refused(response, 401, "not_local", "AUTOPACK_AUTH")
                assert response.headers["www-authenticate"]

    def test_a_caller_behind_a_proxy_is_not_local(self, api: Api) -> None:
        underscored = [name.replace("-", "_") for name in FORWARDING_HEADERS]
        for name in (*FORWARDING_HEADERS, *underscored):
            response = api.client.get("/runs", headers={name: "127.0.0.1"})
            api.refused(response, 401, "not_local", "proxy")

    def test_a_refused_caller_changes_nothing(self, app: FastAPI, api: Api) -> None:
        caller(app, "10.0.0.7").post("/runs/start", json=api.plan())
        assert api.client.get("/runs").json()["runs"] == []


class TestDisabled:
    def test_everybody_is_answered_but_only_under_a_known_host(
        self, settings: Settings, api: Api
    ) -> None:
        app = create_app(settings.model_copy(update={"auth": "disabled"}))
        remote = caller(app, "10.0.0.7")
        assert remote.get("/health/live", headers={"X-Forwarded-For": "8.8.8.8"}).status_code == 200
        api.refused(remote.get("/health/live", headers={"Host": "evil.example"}), 421)
        foreign = {"Origin": "https://evil.example"}
        api.refused(remote.post("/runs/start", headers=foreign), 403)


class TestHosts:
    def test_the_names_of_this_machine_are_known(self, api: Api) -> None:
        for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]", "[::1]:8000"):
            assert api.client.get("/health/live", headers={"Host": host}).status_code == 200

    def test_another_name_is_421_by_every_method(self, api: Api) -> None:
        for host in (
            "evil.example",
            "localhost.evil.example",
            "",
            "10.0.0.7",
            "[::2]",
            "localhost.",
            "a" * 9_000,
        ):
            for method, path in (("GET", "/docs"), ("GET", "/runs"), ("POST", "/runs/start")):
                response = api.client.request(method, path, headers={"Host": host})
                api.refused(response, 421, "unknown_host", "AUTOPACK_ALLOWED_HOSTS")

    def test_the_operator_may_name_others(self, settings: Settings) -> None:
        app = create_app(settings.model_copy(update={"allowed_hosts": ("build.example",)}))
        local = caller(app, "127.0.0.1")
        assert local.get("/health/live", headers={"Host": "build.example:80"}).status_code == 200
        assert local.get("/health/live").status_code == 421


class TestOrigins:
    def test_a_page_of_elsewhere_changes_nothing(self, api: Api) -> None:
        for origin in (
            "https://evil.example",
            "http://localhost:3000",
            "http://127.0.0.1",
            "null",
            "",
            "localhost",
            "file://localhost",
        ):
            for path in ("/runs/start", "/nothing"):
                response = api.client.post(path, json=api.plan(), headers={"Origin": origin})
                api.refused(response, 403, "foreign_origin")
        assert api.client.get("/runs").json()["runs"] == []

    def test_a_page_of_elsewhere_is_not_allowed_to_read(self, api: Api) -> None:
        response = api.client.get("/runs", headers={"Origin": "https://evil.example"})
        assert not [name for name in response.headers if name.startswith("access-control-")]

    def test_our_own_pages_may_change_things(self, api: Api) -> None:
        headers = {"Host": "localhost:8000", "Origin": "http://localhost:8000"}
        response = api.client.post("/runs/start", json=api.plan(), headers=headers)
        assert response.status_code == 201


def test_every_answer_carries_the_security_headers(api: Api) -> None:
    for method, path, headers in (
        ("GET", "/", {}),
        ("GET", "/runs", {}),
        ("GET", "/docs", {}),
        ("GET", "/redoc", {}),
        ("GET", "/openapi.json", {}),
        ("GET", "/nothing", {}),
        ("POST", "/runs/start", {}),
        ("PUT", "/runs", {}),
        ("GET", "/", {"Host": "evil.example"}),
        ("GET", "/", {"X-Real-IP": "8.8.8.8"}),
    ):
        answer = api.client.request(method, path, headers=headers)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy


def test_an_unexpected_error_is_a_500_with_only_its_id(
    api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr("autopack.services.runs.get_run", fail)
    lenient = caller(app, "127.0.0.1", raise_server_exceptions=False)
    response = lenient.get("/runs/run-001")
    problem = api.refused(response, 500, "internal_error")
    assert problem["correlation_id"] in problem["detail"]
    assert "hunter2" not in response.text
    assert response.headers["x-content-type-options"] == "nosniff"
