"""Who may sign in by a browser, and what its cookie is worth. (docs/dashboard.md)"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from autopack.contexts import create_key
from autopack.domain.access import AccessRole, Caller
from autopack.domain.keys import NewKey
from autopack.domain.limits import KeyLimits
from autopack.main import create_app
from autopack.store import keys as store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.conftest import GitRepo

    from autopack.config import Settings

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

HOME = "/dashboard"
COOKIE = "autopack_session"
JSON = {"Accept": "application/json"}


class Browser:
    """A browser without a memory of its own: each test says which cookies it sends."""

    def __init__(self, app: FastAPI, client: TestClient) -> None:
        self.app, self._client = app, client

    def make_key(self, name: str, *roles: AccessRole, **fields: Any) -> str:
        context = self.app.state.context.for_caller(Caller(name="ada@host"))
        return create_key(context, NewKey(name=name, roles=roles, **fields)).api_key

    def ask(self, method: str, path: str, cookie: str | None = None, **given: Any) -> Response:
        headers = {"Accept": "text/html", "Origin": "http://localhost", **given.pop("headers", {})}
        if cookie is not None:
            headers["Cookie"] = cookie if "=" in cookie else f"{COOKIE}={cookie}"
        self._client.cookies.clear()
        kept = {name: value for name, value in headers.items() if value is not None}
        return self._client.request(method, path, headers=kept, follow_redirects=False, **given)

    def sign_in(self, key: str, cookie: str | None = None, **headers: Any) -> Response:
        return self.ask("POST", f"{HOME}/login", cookie, data={"key": key}, headers=headers)

    def session(self, key: str) -> str:
        """Sign in, and return the cookie's value."""
        return self.sign_in(key).cookies[COOKIE]


@pytest.fixture
def browser(settings: Settings, git_repo: GitRepo) -> Iterator[Browser]:
    app = create_app(settings.model_copy(update={"auth": "required"}))
    with TestClient(app, base_url="http://localhost") as client:
        yield Browser(app, client)


def test_a_cookie_is_no_key_and_a_key_no_cookie(browser: Browser) -> None:
    """Also while the service still remembers the other use of the same secret."""
    key = browser.make_key("op-1", AccessRole.OPERATOR)
    cookie = browser.session(key)
    assert browser.ask("GET", "/runs", cookie, headers=JSON).status_code == 200
    for header in ({"X-API-Key": cookie}, {"Authorization": f"Bearer {cookie}"}):
        assert browser.ask("GET", "/runs", headers=JSON | header).status_code == 401
    assert browser.ask("GET", "/runs", headers=JSON | {"X-API-Key": key}).status_code == 200
    assert browser.ask("GET", "/runs", key, headers=JSON).status_code == 401
    other = browser.make_key("op-2", AccessRole.OPERATOR)
    assert browser.ask("GET", "/runs", other, headers=JSON).status_code == 401
    assert browser.ask("GET", "/runs", headers=JSON | {"X-API-Key": other}).status_code == 200


def test_a_sign_in_never_takes_a_cookie_that_was_there_and_ends_it(browser: Browser) -> None:
    key = browser.make_key("eye-1", AccessRole.VIEWER)
    assert browser.sign_in(key, "chosen-by-another").cookies[COOKIE] != "chosen-by-another"
    assert browser.ask("GET", HOME, "chosen-by-another").status_code == 303
    before = browser.session(key)
    after = browser.sign_in(key, before).cookies[COOKIE]
    assert browser.ask("GET", HOME, after).status_code == 200
    assert browser.ask("GET", HOME, before).status_code == 303


def test_of_two_cookies_the_one_for_the_nearer_path_counts(browser: Browser) -> None:
    """Two services below one host name; browsers send the cookie of the longer path first."""
    mine = browser.session(browser.make_key("eye-1", AccessRole.VIEWER))
    both = f"{COOKIE}={mine}; {COOKIE}=of-the-service-at-the-root"
    assert browser.ask("GET", HOME, both).status_code == 200
    assert browser.ask("POST", f"{HOME}/logout", both).status_code == 303
    assert browser.ask("GET", HOME, mine).status_code == 303


def test_the_cookie_of_a_page_behind_tls_is_secure(browser: Browser) -> None:
    """The proxy ends TLS, so the request comes in as http: the browser's origin says more."""
    key = browser.make_key("eye-1", AccessRole.VIEWER)
    assert "Secure" not in browser.sign_in(key).headers["set-cookie"]
    behind = browser.sign_in(key, Origin="https://localhost")
    assert "; Secure" in behind.headers["set-cookie"]


def test_the_cookie_is_for_the_services_own_prefix(
    settings: Settings, git_repo: GitRepo, browser: Browser
) -> None:
    key = browser.make_key("eye-1", AccessRole.VIEWER)
    app = create_app(settings.model_copy(update={"auth": "required"}), browser.app.state.context)
    with TestClient(app, base_url="http://localhost", root_path="/team") as client:
        behind = Browser(app, client)
        away = behind.ask("GET", f"/team{HOME}")
        assert away.headers["location"] == "/team/dashboard/login?to=%2Fdashboard"
        form = {"key": key, "to": f"{HOME}/runs"}
        signed = behind.ask("POST", f"/team{HOME}/login", data=form)
        assert signed.headers["location"] == f"/team{HOME}/runs"
        assert "Path=/team;" in signed.headers["set-cookie"]
        cookie = signed.cookies[COOKIE]
        assert behind.ask("GET", f"/team{HOME}", cookie).status_code == 200
        gone = behind.ask("POST", f"/team{HOME}/logout", cookie)
        assert "Path=/team;" in gone.headers["set-cookie"]
        assert behind.ask("POST", "/team/dashboardx", cookie, headers=JSON).status_code == 401


@pytest.mark.parametrize("origin", ["null", "", "http://evil.example", "http://localhost:81"])
def test_a_sign_in_or_a_change_from_elsewhere_is_refused(browser: Browser, origin: str) -> None:
    key = browser.make_key("op-1", AccessRole.OPERATOR)
    cookie = browser.session(key)
    assert browser.sign_in(key, Origin=origin).status_code == 403
    for path in ("logout", "keys/op-1/revoke"):
        answer = browser.ask("POST", f"{HOME}/{path}", cookie, headers={"Origin": origin})
        assert answer.status_code == 403, path
    assert browser.ask("GET", HOME, cookie).status_code == 200


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"])
def test_other_methods_change_nothing(browser: Browser, method: str) -> None:
    cookie = browser.session(browser.make_key("op-1", AccessRole.OPERATOR))
    for path in (f"{HOME}/login", f"{HOME}/logout", HOME, f"{HOME}/keys/op-1/revoke"):
        for sent in (None, cookie):
            assert browser.ask(method, path, sent).status_code in (200, 303, 401, 404, 405)
    assert browser.ask("GET", HOME, cookie).status_code == 200


def test_a_session_ends_as_its_key_does(browser: Browser) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=0.4)
    brief = browser.make_key("brief", AccessRole.VIEWER, expires_at=soon)
    cookie = browser.session(brief)
    assert browser.ask("GET", HOME, cookie).status_code == 200
    time.sleep(0.5)
    assert browser.ask("GET", HOME, cookie).status_code == 303
    assert browser.sign_in(brief).status_code == 403


def test_a_session_by_a_secret_of_two_rotations_ago_ends(browser: Browser) -> None:
    operator = {"X-API-Key": browser.make_key("op-1", AccessRole.OPERATOR)} | JSON
    cookie = browser.session(browser.make_key("eye-1", AccessRole.VIEWER))
    for status in (200, 303):
        rotated = browser.ask("POST", "/keys/eye-1/rotate", headers=operator)
        assert rotated.status_code == 200
        assert browser.ask("GET", HOME, cookie).status_code == status


@pytest.mark.parametrize("key", ["ключ", "ap_" + "ä" * 49, "\x00", "a\r\nb", "%ED%A0%80", " ", ""])
def test_what_is_no_key_is_refused_and_not_shown(browser: Browser, key: str) -> None:
    refused = browser.sign_in(key)
    assert refused.status_code == 403
    assert "not a key that works" in refused.text
    assert COOKIE not in refused.headers.get("set-cookie", "")
    cookie = f"{COOKIE}=".encode() + key.encode().replace(b"\r\n", b"")
    assert browser.ask("GET", HOME, headers={"Cookie": cookie}).status_code == 303


def test_a_huge_form_is_refused(browser: Browser) -> None:
    started = time.process_time()
    assert browser.sign_in("x" * 19_000_000).status_code in (403, 413, 422)
    assert browser.sign_in("x" * 30_000_000).status_code == 413
    assert time.process_time() - started < 3


def test_sign_ins_count_against_the_limit_of_their_key(browser: Browser) -> None:
    limits = KeyLimits(requests_per_minute=3)
    key = browser.make_key("eye-1", AccessRole.VIEWER, limits=limits)
    answers = [browser.sign_in(key) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [303, 303, 303, 429, 429]
    assert int(answers[-1].headers["retry-after"]) > 0


def test_a_flood_of_sign_ins_leaves_threads_to_others(
    browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More wait for the database at a time than there are threads."""
    find, is_over = store.find_by_digest, threading.Event()
    key = browser.make_key("eye-1", AccessRole.VIEWER)
    known = {"X-API-Key": key} | JSON
    assert browser.ask("GET", "/runs", headers=known).status_code == 200

    def find_late(session: Any, digest: str) -> Any:
        assert is_over.wait(60)
        return find(session, digest)

    monkeypatch.setattr(store, "find_by_digest", find_late)
    flood = [
        threading.Thread(target=browser.sign_in, args=(f"ap_{number}",)) for number in range(60)
    ]
    answered: list[int] = []
    other = threading.Thread(
        target=lambda: answered.append(browser.ask("GET", "/runs", headers=known).status_code)
    )
    for thread in flood:
        thread.start()
    other.start()
    try:
        other.join(60)
        assert answered == [200]
    finally:
        is_over.set()
        for thread in [*flood, other]:
            thread.join()
