"""`AUTOPACK_AUTH=required`: who is let in, as what, and what is told of keys."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import text
from starlette.testclient import TestClient
from tests.conftest import LiveServer, serve_here, start_server, stop_server
from tests.processes import ForkServer

from autopack.config import Settings
from autopack.contexts import create_key, first_broken_entry, revoke_key
from autopack.domain.access import PUBLIC, ROLES_OF, AccessRole, Caller
from autopack.domain.keys import NewKey, make_key
from autopack.main import create_app
from autopack.services import keys as key_services
from autopack.store import keys as store

if TYPE_CHECKING:
    from pathlib import Path

    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

Json = dict[str, Any]
STREAM = "/events/stream"
AGENT = {"role": "builder", "agent": "codex@host"}


@dataclass
class Team:
    """A service that asks for keys, and keys by their names."""

    client: TestClient
    app: FastAPI
    secrets: dict[str, str]

    def make(self, name: str, *roles: AccessRole, **fields: Any) -> str:
        """Make a key beside the database, as `autopack keys create` does."""
        context = self.app.state.context.for_caller(Caller(name="ada@host"))
        made = create_key(context, NewKey(name=name, roles=roles, **fields))
        self.secrets[name] = made.api_key
        return made.api_key

    def ask(self, method: str, path: str, key: str | None = None, **given: Any) -> Response:
        """Send a request with the key of this name, or with a key as it is."""
        headers = {**given.pop("headers", {})}
        if key is not None:
            headers["Authorization"] = f"Bearer {self.secrets.get(key, key)}"
        return self.client.request(method, path, headers=headers, **given)


@pytest.fixture
def team(settings: Settings) -> Iterator[Team]:
    app = create_app(settings.model_copy(update={"auth": "required"}))
    caller = ("10.0.0.7", 50_000)  # a key is enough, wherever its caller is
    with TestClient(app, base_url="http://localhost", client=caller) as client:
        team = Team(client, app, {})
        for role in AccessRole:
            team.make(role, role)
        yield team


@pytest.fixture
def api(team: Team, git_repo: GitRepo, settings: Settings) -> Api:
    """The operator, for what is not the point of a test."""
    from tests.api.conftest import Api

    team.client.headers["X-API-Key"] = team.secrets["operator"]
    api = Api(team.client, git_repo, settings.autonomous_runs_dir)
    api.start()
    del team.client.headers["X-API-Key"]
    return api


def operations(app: FastAPI) -> list[tuple[str, str]]:
    return [
        (method.upper(), path)
        for path, methods in app.openapi()["paths"].items()
        for method in methods
    ]


def filled(path: str) -> str:
    class Places(dict[str, str]):
        def __missing__(self, key: str) -> str:
            return "1"

    return path.format_map(Places(run_id="run-001", phase_id="P0.0", name="nobody"))


class TestEveryOperation:
    def test_has_its_roles_in_the_one_table_and_in_openapi(self, team: Team) -> None:
        schema = team.app.openapi()
        named = {f"{method} {path}" for method, path in operations(team.app)}
        assert named == ROLES_OF.keys() | PUBLIC
        schemes = schema["components"]["securitySchemes"]
        assert schemes["bearer"]["scheme"] == "bearer"
        assert schemes["header"]["name"] == "X-API-Key"
        for method, path in operations(team.app):
            told = schema["paths"][path][method.lower()]["security"]
            roles = ROLES_OF.get(f"{method} {path}", ())
            assert {scheme: [] for entry in told for scheme in entry} == (
                {scheme: [] for scheme in schemes} if roles else {}
            )
            assert [role for entry in told for role in entry.get("bearer", [])] == list(roles)

    def test_lets_in_who_has_a_role_for_it_and_names_the_role_to_others(
        self, team: Team, api: Api
    ) -> None:
        """Walks every operation as every role. What is let in may be refused for its content."""
        for method, path in operations(team.app):
            if f"{method} {path}" in PUBLIC or path == STREAM:
                continue
            for role in AccessRole:
                response = team.ask(
                    method, filled(path), role, json={} if method != "GET" else None
                )
                if role in ROLES_OF[f"{method} {path}"]:
                    assert response.status_code not in (401, 403), f"{role}: {method} {path}"
                else:
                    problem = api.refused(response, 403, "missing_role", f"key '{role}' has {role}")
                    assert problem["allowed"] == list(ROLES_OF[f"{method} {path}"])

    def test_is_closed_without_a_key(self, team: Team, api: Api) -> None:
        for method, path in operations(team.app):
            if f"{method} {path}" not in PUBLIC:
                api.refused(team.ask(method, filled(path)), 401, "key_required", "keys create")
        for method, path in (("POST", "/mcp"), ("GET", "/nothing"), ("DELETE", "/runs")):
            api.refused(team.ask(method, path), 401, "key_required")
        for path in ("/health/live", "/docs", "/openapi.json", "/docs/static/swagger-ui.css"):
            assert team.ask("GET", path).status_code == 200

    def test_is_refused_before_its_body_is_read(self, team: Team, api: Api) -> None:
        """A caller without the role learns nothing of limits, and costs no parsing."""
        headers = {"Content-Type": "text/plain"}
        response = team.ask("POST", "/runs/start", "viewer", content=b"{" * 1_000, headers=headers)
        api.refused(response, 403, "missing_role", "operator")

    def test_asks_a_claim_for_the_role_that_its_body_names(self, team: Team, api: Api) -> None:
        for path in ("/claim", "/runs/run-001/claim"):
            for role in ("builder", "auditor"):
                other = "auditor" if role == "builder" else "builder"
                wanted = {"role": other, "agent": "codex@host"}
                refused = team.ask("POST", path, role, json=wanted)
                api.refused(refused, 403, "missing_role", f"a claim as {other}")
        assert team.ask("POST", "/claim", "builder", json=AGENT).status_code == 200
        assert team.ask("POST", "/claim", "auditor", json={**AGENT, "role": "auditor"}).is_success


class TestMcp:
    def test_each_tool_takes_the_roles_of_its_operation(self, team: Team, api: Api) -> None:
        from autopack.api.mcp.tools import TOOLS

        for name, tool in TOOLS.items():
            for role in AccessRole:
                result = call_tool(team, role, name, {})
                problem = result["structuredContent"]
                assert result["isError"] or role in ROLES_OF[tool.operation]
                if role in ROLES_OF[tool.operation]:
                    assert problem.get("code") != "missing_role", f"{role}: {name}"
                else:
                    assert problem["code"] == "missing_role", f"{role}: {name}"
                    assert problem["allowed"] == list(ROLES_OF[tool.operation])

    def test_a_claim_asks_for_the_role_that_it_is_for(self, team: Team, api: Api) -> None:
        refused = call_tool(team, "auditor", "claim_work", AGENT)
        assert refused["structuredContent"]["code"] == "missing_role"
        assert call_tool(team, "builder", "claim_work", AGENT)["structuredContent"]["work"]

    def test_every_message_is_judged_by_its_own_key(self, team: Team, api: Api) -> None:
        assert not call_tool(team, "viewer", "get_run", {"run_id": "run-001"})["isError"]
        revoke(team, "viewer")
        api.refused(post_message(team, "viewer", "tools/list", {}), 401, "key_required")
        api.refused(post_message(team, None, "ping", {}), 401, "key_required")


def post_message(team: Team, key: str | None, method: str, params: Json) -> Response:
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    accept = {"Accept": "application/json, text/event-stream"}
    return team.ask("POST", "/mcp", key, json=message, headers=accept)


def call_tool(team: Team, key: str, name: str, arguments: Json) -> Json:
    params = {"name": name, "arguments": arguments}
    response = post_message(team, key, "tools/call", params)
    assert response.status_code == 200, response.text
    result: Json = response.json()["result"]
    return result


def revoke(team: Team, name: str) -> None:
    response = team.ask("POST", f"/keys/{name}/revoke", "operator")
    assert response.status_code == 200, response.text


class TestKeysThatAreRefused:
    def test_all_get_one_text_whatever_is_wrong(self, team: Team, api: Api) -> None:
        revoke(team, "viewer")
        soon = datetime.now(UTC) + timedelta(seconds=0.2)
        expired = team.make("brief", AccessRole.VIEWER, expires_at=soon)
        time.sleep(0.3)
        good = team.secrets["ci"]
        texts = set()
        for key in (
            "viewer",
            expired,
            make_key(),
            good[:-1] + ("a" if good[-1] != "a" else "b"),
            good[:-1],
            good + good,
            good.lower(),
            "ap_",
            "x" * 50_000,
            "\xff\xfe",
            "' OR 1=1 --",
            "",
        ):
            sent = f"Bearer {team.secrets.get(key, key)}".encode("latin-1")
            headers = [(b"Authorization", sent)]
            response = team.client.get("/runs", headers=headers)
            api.refused(response, 401, "key_required")
            texts.add((response.text, response.headers["www-authenticate"]))
        texts.add((team.ask("GET", "/runs").text, 'Bearer realm="autopack"'))
        assert len(texts) == 1

    def test_a_key_counts_in_one_header_once_and_nowhere_else(self, team: Team, api: Api) -> None:
        key, other = team.secrets["viewer"], team.secrets["operator"]
        bearer = f"Bearer {key}"
        for headers in (
            [("Authorization", bearer)],
            [("authorization", f"bearer {key}")],
            [("X-API-Key", key)],
            [("Authorization", "Basic cHJveHk6cHJveHk="), ("X-API-Key", key)],
        ):
            assert team.client.get("/runs", headers=headers).status_code == 200, headers
        for headers in (
            [("Authorization", bearer), ("Authorization", bearer)],
            [("Authorization", bearer), ("X-API-Key", other)],
            [("X-API-Key", key), ("X-API-Key", other)],
            [("X-API-Key", f"{key}, {other}")],
            [("Authorization", f"{bearer}, Bearer {other}")],
            [("Authorization", key)],
            [("Authorization", f"Basic {key}")],
            [("Authorization", f"Bearer\t{key}")],
            [("X_API_Key", key)],
            [("X-Api-Key-Id", key)],
            [("Cookie", f"X-API-Key={key}; Authorization=Bearer {key}")],
            [("Proxy-Authorization", bearer)],
        ):
            api.refused(team.client.get("/runs", headers=headers), 401, "key_required")
        for query in (f"?api_key={key}", f"?key={key}", f"?access_token={key}"):
            api.refused(team.ask("GET", f"/runs{query}"), 401, "key_required")

    def test_a_path_that_only_looks_public_is_not(self, team: Team, api: Api) -> None:
        for path in (
            "/docs/../runs",
            "/docs/static/../../runs",
            "/docs/static/%2e%2e/%2e%2e/runs",
            "//docs",
            "/docs/",
            "/health/live/",
            "/openapi.json/runs",
        ):
            response = team.client.get(path)
            assert response.status_code in (401, 404), path
            assert "runs" not in response.json()
        api.refused(team.client.post("/health/live"), 401, "key_required")

    def test_no_role_is_claimed_by_a_header(self, team: Team, api: Api) -> None:
        forged = {"X-Forwarded-User": "operator", "X-Role": "operator", "Remote-User": "root"}
        response = team.ask("POST", "/runs/start", "viewer", json={}, headers=forged)
        api.refused(response, 403, "missing_role")

    def test_a_key_for_another_project_is_refused_by_name(self, team: Team, api: Api) -> None:
        context = team.app.state.context
        elsewhere = replace(context, settings=context.settings.model_copy())
        made = create_key(
            elsewhere, NewKey(name="here", roles=(AccessRole.VIEWER,), project_id="Autopack")
        )
        assert team.ask("GET", "/runs", made.api_key).status_code == 200
        with context.engine.begin() as connection:
            connection.execute(text("UPDATE api_keys SET project_id = 'Shop'"))
        team.app.state.keyring.forget()
        api.refused(team.ask("GET", "/runs", made.api_key), 403, "wrong_project", "'Shop'")


class TestTheLifeOfAKey:
    def test_over_http_an_operator_makes_lists_rotates_and_revokes_keys(
        self, team: Team, api: Api
    ) -> None:
        wanted = {"name": "codex-3", "roles": ["auditor", "builder", "builder"]}
        made = team.ask("POST", "/keys", "operator", json=wanted)
        assert made.status_code == 201, made.text
        key = made.json()["key"]
        assert key["roles"] == ["builder", "auditor"]
        assert key["created_by"] == "key:operator:operator"
        old = made.json()["api_key"]
        assert team.ask("GET", "/whoami", old).json() == {
            "auth": "required",
            "key": "codex-3",
            "roles": ["builder", "auditor"],
            "project_id": None,
            "limits": {"requests_per_minute": 1_200, "streams": 50, "claims": 50},
            "actor": "key:codex-3:builder",
        }
        api.refused(team.ask("POST", "/keys", "operator", json=wanted), 409, "key_name_taken")
        for name in ("CODEX-3", "../x", "a b", ""):
            response = team.ask("POST", "/keys", "operator", json={**wanted, "name": name})
            assert response.status_code in (409, 422), name
        response = team.ask("POST", "/keys", "operator", json={"name": "x", "roles": []})
        api.refused(response, 422)
        new = team.ask("POST", "/keys/codex-3/rotate", "operator").json()["api_key"]
        assert {team.ask("GET", "/whoami", each).status_code for each in (old, new)} == {200}
        newest = team.ask("POST", "/keys/codex-3/rotate", "operator").json()["api_key"]
        api.refused(team.ask("GET", "/whoami", old), 401)  # two rotations ago
        revoke(team, "codex-3")
        for each in (old, new, newest):
            api.refused(team.ask("GET", "/whoami", each), 401)
        api.refused(team.ask("POST", "/keys/codex-3/rotate", "operator"), 409, "key_revoked")
        api.refused(team.ask("POST", "/keys/nobody/revoke", "operator"), 404)
        listed = team.ask("GET", "/keys", "operator")
        assert [each["name"] for each in listed.json()["keys"]][-1] == "codex-3"
        assert listed.json()["keys"][-1]["state"] == "revoked"
        assert not any(each in listed.text for each in (old, new, newest))
        assert hashlib.sha256(newest.encode()).hexdigest() not in listed.text

    def test_a_rotated_key_works_for_another_hour_and_no_longer(self, team: Team, api: Api) -> None:
        old = team.secrets["viewer"]
        new = team.ask("POST", "/keys/viewer/rotate", "operator").json()["api_key"]
        assert team.ask("GET", "/runs", old).status_code == 200
        for minutes, status in ((59, 200), (61, 401)):
            later = datetime.now(UTC) + timedelta(minutes=minutes)
            context = replace(team.app.state.context, now=lambda at=later: at)
            team.app.state.keyring = key_services.Keyring(context)
            assert team.ask("GET", "/runs", old).status_code == status
            assert team.ask("GET", "/runs", new).status_code == 200

    def test_a_key_that_is_over_gets_no_new_secret(self, team: Team, api: Api) -> None:
        end = datetime.now(UTC) + timedelta(hours=1)
        team.make("brief", AccessRole.VIEWER, expires_at=end)
        assert team.ask("POST", "/keys/brief/rotate", "operator").status_code == 200
        team.app.state.context = replace(team.app.state.context, now=lambda: end)
        refused = team.ask("POST", "/keys/brief/rotate", "operator")
        api.refused(refused, 409, "key_revoked", "'brief' is expired")

    def test_an_expiry_holds_for_a_key_that_is_known_already(self, team: Team, api: Api) -> None:
        soon = datetime.now(UTC) + timedelta(seconds=1)
        key = team.make("brief", AccessRole.VIEWER, expires_at=soon)
        assert team.ask("GET", "/runs", key).status_code == 200
        time.sleep(1.1)
        api.refused(team.ask("GET", "/runs", key), 401)

    def test_a_revocation_by_another_process_is_known_when_the_cache_is_over(
        self, team: Team, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert team.ask("GET", "/runs", "viewer").status_code == 200
        revoke_key(team.app.state.context, "viewer")  # beside this process's keyring
        assert team.ask("GET", "/runs", "viewer").status_code == 200
        monkeypatch.setattr(key_services, "CACHE_SECONDS", 0)
        api.refused(team.ask("GET", "/runs", "viewer"), 401)

    def test_an_answer_read_before_a_revocation_is_not_kept_after_it(
        self, team: Team, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        keyring = team.app.state.keyring
        find = store.find_by_digest

        def find_slowly(session: Any, digest: str) -> Any:
            found = find(session, digest)
            keyring.forget()  # as a revocation does, between the reading and its keeping
            return found

        monkeypatch.setattr(store, "find_by_digest", find_slowly)
        digest = hashlib.sha256(team.secrets["viewer"].encode()).hexdigest()
        assert keyring.read(digest) is not None
        assert keyring.find(digest) == (None, False)

    def test_its_last_use_is_noted_to_a_minute_without_a_write_per_request(
        self, team: Team, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        writes = []
        touch = store.touch

        def touch_counted(*given: Any) -> None:
            writes.append(given)
            touch(*given)

        monkeypatch.setattr(store, "touch", touch_counted)
        monkeypatch.setattr(key_services, "CACHE_SECONDS", 0)
        for _ in range(20):
            assert team.ask("GET", "/runs", "viewer").status_code == 200
        assert len(writes) == 1
        listed = team.ask("GET", "/keys", "operator").json()["keys"]
        used = {key["name"]: key["last_used_at"] for key in listed}
        assert used["ci"] is None
        at = datetime.fromisoformat(used["viewer"])
        assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)

    def test_the_first_key_never_comes_over_http(self, client: TestClient, api: Api) -> None:
        """`client` is a caller on this machine, of a service that asks for no key."""
        for method, path, body in (
            ("POST", "/keys", {"name": "first", "roles": ["operator"]}),
            ("POST", "/keys/operator/revoke", None),
            ("POST", "/keys/operator/rotate", None),
        ):
            response = client.request(method, path, json=body)
            api.refused(response, 403, "key_needed", "autopack keys")
        assert client.get("/whoami").json()["actor"].startswith("local:viewer@")

    def test_where_no_key_is_asked_for_none_is_looked_at(self, client: TestClient) -> None:
        response = client.get("/runs", headers={"Authorization": f"Bearer {make_key()}"})
        assert response.status_code == 200


class TestTheAuditLog:
    def test_tells_who_did_what_to_keys_and_policy_in_a_chain(self, team: Team, api: Api) -> None:
        team.ask("POST", "/keys", "operator", json={"name": "codex-3", "roles": ["builder"]})
        team.ask("POST", "/keys/codex-3/rotate", "operator")
        revoke(team, "codex-3")
        revoke(team, "codex-3")  # changes nothing more
        ruleset = team.ask("GET", "/project/ruleset", "viewer").json()
        changed = {**ruleset, "version": ruleset["version"] + 1}
        assert team.ask("PUT", "/project/ruleset", "operator", json=changed).status_code == 200
        page = team.ask("GET", "/audit", "operator", params={"limit": 6}).json()
        rest = team.ask("GET", "/audit", "operator", params={"cursor": page["next_cursor"]}).json()
        entries = page["entries"] + rest["entries"]
        assert [each["sequence"] for each in entries] == list(range(1, len(entries) + 1))
        assert [(each["actor"], each["action"], each["subject"]) for each in entries[5:]] == [
            ("key:operator:operator", "key_created", "codex-3"),
            ("key:operator:operator", "key_rotated", "codex-3"),
            ("key:operator:operator", "key_revoked", "codex-3"),
            ("key:operator:operator", "ruleset_replaced", "Autopack"),
        ]
        assert entries[0]["actor"] == "local:ada@host"
        context = team.app.state.context
        assert first_broken_entry(context) is None
        with context.engine.begin() as connection:
            connection.execute(text("UPDATE audit_log SET actor = 'local' WHERE sequence = 3"))
        assert first_broken_entry(context) == 3

    def test_holds_no_key_nor_its_digest(self, team: Team) -> None:
        told = team.ask("GET", "/audit", "operator").text
        for secret in team.secrets.values():
            assert secret not in told
            assert hashlib.sha256(secret.encode()).hexdigest() not in told

    def test_many_writers_make_one_chain(self, team: Team) -> None:
        threads = [
            threading.Thread(target=team.make, args=(f"k{number}", AccessRole.CI))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert first_broken_entry(team.app.state.context) is None


class Asked:
    """A service behind a real socket, which is asked with a key."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __call__(self, method: str, path: str, key: str, **given: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"{self.url}{path}"
        with httpx.Client(trust_env=False, verify=False, timeout=60) as client:
            return client.request(method, url, headers=headers, **given)


@pytest.fixture
def live(settings: Settings) -> Iterator[Asked]:
    """A second service on the team's clone, behind a real socket."""
    required = settings.model_copy(update={"auth": "required"})
    with serve_here(create_app(required), required) as server:
        yield Asked(server.url)


@pytest.fixture
def process(settings: Settings, tmp_path: Path, fork_server: ForkServer) -> Iterator[LiveServer]:
    """A service in a process of its own, which writes a log."""
    required = settings.model_copy(update={"auth": "required"})
    server = start_server(fork_server, required, tmp_path / "server.log")
    yield server
    stop_server(server)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("path", "told", "ended"),
    [
        ("/events/stream?after=0", "data:", "RunEnded"),
        ("/dashboard/stream?page=home", "event: running", "event: running"),
    ],
)
def test_an_open_stream_ends_with_its_key_and_tells_nothing_more(
    live: Asked, team: Team, api: Api, path: str, told: str, ended: str
) -> None:
    """A page's stream is opened by the cookie of a browser that signed in by the key."""
    headers = {"X-API-Key": team.secrets["viewer"]}
    if path.startswith("/dashboard"):
        signed = live("POST", "/dashboard/login", "none", data={"key": team.secrets["viewer"]})
        headers = {"Cookie": signed.headers["set-cookie"].partition(";")[0]}
    lines: list[str] = []
    is_open, is_over = threading.Event(), threading.Event()

    def read() -> None:
        address = f"{live.url}{path}"
        with httpx.stream("GET", address, headers=headers, timeout=60, trust_env=False) as answer:
            for line in answer.iter_lines():
                lines.append(line)
                if line.startswith(told):
                    is_open.set()
        is_over.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert is_open.wait(60), lines
    operator = team.secrets["operator"]
    assert live("POST", "/keys/viewer/revoke", operator).status_code == 200
    count = len([line for line in lines if line.startswith(told)])
    cancelled = live("POST", "/runs/run-001/cancel", operator, json={})
    assert cancelled.status_code == 200, cancelled.text
    assert is_over.wait(60)
    thread.join()
    new = [line for line in lines if line.startswith(told)][count:]
    assert not any(ended in line for line in new)


@pytest.mark.e2e
def test_no_key_is_in_what_a_service_prints_writes_or_commits(
    process: LiveServer, team: Team, api: Api, settings: Settings, git_repo: GitRepo
) -> None:
    """Keys that are good and bad, each put wherever a request may hold a text."""
    live = Asked(process.url)
    builder, operator, wrong = team.secrets["builder"], team.secrets["operator"], make_key()
    for key in (builder, operator, wrong):
        live("GET", f"/runs/{key}?key={key}", key)
        live("GET", "/runs", key, params={"text": key, "cursor": key})
        live("POST", "/runs/start", key, content=f'{{"{key}": "{key}"', timeout=60)
        live("PUT", "/project/ruleset", key, json={"project_id": key})
    item = live("POST", "/claim", builder, json={**AGENT, "agent": f"a {builder}"}).json()
    report = {
        "status": "success",
        "patch_content": api.new_file("src/a.txt"),
        "notes": f"my key is {builder}",
        "lease_token": item["lease"]["token"],
    }
    path = "/runs/run-001/phases/P0.0"
    posted = live("POST", f"{path}/builder_result", builder, json=report)
    assert posted.status_code == 200, posted.text
    leak = {"status": "success", "patch_content": api.new_file("src/b.txt", builder)}
    issue = {"issue_key": "k", "source": "test", "category": "c", "description": operator}
    live("POST", f"{path}/builder_result", builder, json=leak)
    live("POST", f"{path}/record_issue", builder, json=issue)
    team.ask("GET", "/keys", "operator")
    written = [process.log, *settings.autonomous_runs_dir.rglob("*"), *settings.home.rglob("*.log")]
    texts = {str(file): file.read_text(errors="replace") for file in written if file.is_file()}
    texts["git"] = git_repo.git("log", "--all", "--patch", "--format=%B")
    with team.app.state.context.engine.connect() as connection:
        for (table,) in connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ):
            rows = connection.execute(text(f'SELECT "{table}"::text FROM "{table}"'))
            texts[f"table {table}"] = "\n".join(row[0] for row in rows)
    assert len(texts) > 20
    for key in (builder, operator, wrong):
        # Not its end either: a text that was cut short begins with the key's first part.
        assert [place for place, told in texts.items() if key[:20] in told] == []


def test_a_database_that_is_away_is_503_and_no_verdict_on_a_key(
    team: Team, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import TimeoutError as PoolTimeoutError

    def fail(*_: object) -> None:
        raise PoolTimeoutError("no connection")

    monkeypatch.setattr(store, "find_by_digest", fail)
    for key in ("viewer", make_key()):
        response = team.ask("GET", "/runs", key)
        api.refused(response, 503)
        assert response.headers["retry-after"]


def test_every_answer_of_the_guard_carries_the_security_headers(team: Team, api: Api) -> None:
    for response in (team.ask("GET", "/runs"), team.ask("POST", "/runs/start", "ci", json={})):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert json.loads(response.text)["status"] in (401, 403)
