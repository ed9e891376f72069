"""What the pages show, to whom, and what they let a browser do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from autopack.contexts import create_key, revoke_key
from autopack.dashboard.rendering import ENVIRONMENT, HOME, STATIC, ago, assets_version, clean
from autopack.domain.access import AccessRole, Caller
from autopack.domain.keys import NewKey
from autopack.main import create_app
from autopack.store import nodes

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Agents, Api
    from tests.conftest import GitRepo

    from autopack.config import Settings

pytestmark = pytest.mark.integration

BROWSER = {"Accept": "text/html,application/xhtml+xml"}
HOSTILE = "<script>alert(1)</script>\" onload='x' {{ 7*7 }} \x1b[31mred\x1b[0m \u202e"


def words(page: Response) -> str:
    """Return a page's text, as a reader sees it."""
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", page.text)))


def test_a_browser_is_sent_to_the_dashboard_and_others_get_json(api: Api) -> None:
    sent = api.client.get("/", headers=BROWSER, follow_redirects=False)
    assert (sent.status_code, sent.headers["location"]) == (303, HOME)
    assert api.client.get("/", headers={"Accept": "*/*"}).json()["service"]
    assert api.client.get("/").json()["links"]["dashboard"] == HOME


@pytest.mark.parametrize("path", ["", "/runs", "/start", "/login", "/nothing"])
def test_every_page_loads_from_this_service_alone(api: Api, path: str) -> None:
    page = api.client.get(HOME + path)
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.headers["cache-control"] == "no-store"
    assert page.headers["referrer-policy"] == "same-origin", "else a form has the origin null"
    inline = r"<script(?![^>]*\bsrc=)|\bstyle=|\bon\w+=\"|(?:src|href|action)=\"https?:"
    assert not re.search(inline, page.text)
    for address in re.findall(r"(?:src|href)=\"([^\"#?]*/static/[^\"#?]*)", page.text):
        assert api.client.get(address).status_code == 200, address


def test_static_files_are_kept_for_good_under_an_address_of_their_content(api: Api) -> None:
    for path in STATIC.iterdir():
        answer = api.client.get(f"{HOME}/static/{assets_version()}/{path.name}")
        if path.suffix in (".js", ".css", ".svg"):
            assert "immutable" in answer.headers["cache-control"]
        else:
            assert answer.status_code == 404
    for name in ("..%2fbase.html", "rendering.py", "style.css%00"):
        assert api.client.get(f"{HOME}/static/{assets_version()}/{name}").status_code == 404
    assert api.client.get(f"{HOME}/static/old/style.css").status_code == 404


def test_an_empty_service_says_how_to_start_a_run(api: Api) -> None:
    assert "No run yet" in words(api.client.get(HOME))


def test_home_shows_the_nodes_with_their_lag_where_there_are_several(
    api: Api, app: FastAPI
) -> None:
    api.start("run-1")
    assert "h-nodes" not in api.client.get(HOME).text
    with app.state.context.writing() as session:
        nodes.put_node(
            session, "n2", place=f"host-2:{HOSTILE}", address=None, version="1", generation="1"
        )
        session.execute(text("UPDATE nodes SET heartbeat_at = '2026-11-24' WHERE id = 'n2'"))
        session.commit()
    page = api.client.get(HOME)
    told = r"silent since .* Remove host-2:.* n2 0 catching up: 1 to look at 0 \S none"
    assert re.search(told, words(page))
    assert "<script>alert" not in page.text
    with app.state.context.writing() as session:
        nodes.note_lack(session, "run-1", "n2", "the commit 1234 is missing")
        session.commit()
    shown = words(api.client.get(HOME))
    assert re.search(r" to look at 0 \S 1 run-1: the commit 1234 is missing", shown)


def test_an_operator_removes_a_node_that_is_gone_but_none_that_is_alive(
    api: Api, app: FastAPI
) -> None:
    api.start("run-1")
    with app.state.context.writing() as session:
        nodes.put_node(session, "n2", place="host-2", address=None, version="1", generation="1")
        session.execute(text("UPDATE nodes SET heartbeat_at = '2026-11-24' WHERE id = 'n2'"))
        session.commit()
    this = app.state.context.node_id
    gone, alive = (f"{HOME}/nodes/{node_id}/remove" for node_id in ("n2", this))
    page = api.client.get(HOME).text
    assert gone in page
    assert alive not in page
    refused = api.client.post(alive)
    assert refused.status_code == 409
    assert "is alive" in refused.text
    done = api.client.post(gone, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, f"{HOME}#h-nodes")
    assert [node["id"] for node in api.client.get("/nodes").json()["nodes"]] == [this]
    entries = api.client.get("/audit").json()["entries"]
    assert (entries[-1]["action"], entries[-1]["subject"]) == ("node_removed", "n2")


def test_home_shows_what_runs_and_what_ended(api: Api) -> None:
    api.start("live-1", phases=2)
    api.start("done-1")
    api.result("done-1")
    api.start("gone-1")
    api.client.post("/runs/gone-1/cancel", json={"reason": "not needed"})
    shown = words(api.client.get(HOME))
    assert "1 running · 2 ended since yesterday, 1 of them succeeded" in shown
    assert "phase 'P0.0' waits for a Builder" in shown
    assert "cancelled" in shown
    assert "may be merged" in shown


def test_many_of_one_kind_do_not_bury_what_else_needs_a_person(api: Api, agents: Agents) -> None:
    for number in range(5):
        api.start(f"late-{number}", max_duration_minutes=1)
    agents.wait(minutes=2)
    agents.upkeep()
    api.start("done-1")
    api.result("done-1")
    shown = words(api.client.get(HOME)).partition("Running")[0]
    assert "6 need you" in shown
    at_once, _, others = shown.partition("2 more of these kinds")
    assert at_once.count("max_duration_minutes") == 3
    assert "Review and merge" in at_once
    assert others.count("max_duration_minutes") == 2


def test_all_pages_say_the_same_of_a_merge(api: Api) -> None:
    api.start("done-1")
    api.result("done-1")
    pages = (HOME, f"{HOME}/runs", f"{HOME}/runs/done-1")
    base = api.repo.git("rev-parse", "main")
    api.repo.commit({"src/P0.0.txt": "another text\n"})
    for path in pages:
        shown = words(api.client.get(path))
        assert "may be merged" not in shown, path
        assert "does not merge with main" in shown, path
    assert "settle the reasons in a new run" in shown
    assert "open a pull request" not in shown
    api.repo.git("reset", "--quiet", "--hard", base)
    for path in pages:
        assert "may be merged" in words(api.client.get(path)), path
    api.repo.git("merge", "--quiet", "--no-edit", "autonomous/done-1")
    for path in pages[:2]:
        shown = words(api.client.get(path))
        assert "merged" in shown
        assert "may be merged" not in shown, path


def test_runs_are_filtered_by_the_form(api: Api) -> None:
    api.start("live-1")
    api.start("done-1")
    api.result("done-1")
    for query, expected in (
        ("state=live", ["live-1"]),
        ("state=DONE_SUCCESS", ["done-1"]),
        ("text=one-", ["done-1"]),
        ("promotion=eligible", ["done-1"]),
        ("since=2999-01-01", []),
        ("", ["done-1", "live-1"]),
    ):
        page = api.client.get(f"{HOME}/runs?{query}")
        assert re.findall(r'<tr id="run-([^"]+)"', page.text) == expected, query
    for query, word in (("state=NO", "'NO'"), ("since=then", "'then'"), ("promotion=x", "'x'")):
        page = api.client.get(f"{HOME}/runs?{query}")
        assert page.status_code == 422
        assert word in words(page)
    assert api.client.get(f"{HOME}/runs?cursor=x").status_code == 422


def test_foreign_text_stays_text(api: Api) -> None:
    api.start("live-1")
    api.client.post("/runs/live-1/cancel", json={"reason": HOSTILE})
    page = api.client.get(f"{HOME}/runs")
    assert "<script>alert" not in page.text
    assert "\x1b" not in page.text
    assert "\u202e" not in page.text
    assert "<script>alert(1)</script>\" onload='x' {{ 7*7 }} red \\u202e" in words(page)


def test_an_unknown_page_is_no_dead_end(api: Api) -> None:
    page = api.client.get(f"{HOME}/nowhere/at/all")
    assert page.status_code == 404
    assert "Search runs" in words(page)


def test_a_theme_is_rendered_by_the_server(api: Api) -> None:
    chosen = api.client.post(f"{HOME}/theme", data={"theme": "dark"}, follow_redirects=False)
    assert chosen.status_code == 303
    assert 'data-theme="dark"' in api.client.get(HOME).text
    api.client.cookies.set("theme", '"><script>')
    assert "<script>" not in api.client.get(HOME).text


def test_foreign_texts_are_cleaned_and_cut() -> None:
    assert len(clean("x" * 100_000)) < 21_000
    assert clean("\x1b]8;;http://x\x07link\x1b]8;;\x07") == "link"


# Who may see it


@pytest.fixture
def team(settings: Settings, git_repo: GitRepo) -> Iterator[TestClient]:
    """A service that asks for keys, with a browser that sends its own origin."""
    app = create_app(settings.model_copy(update={"auth": "required"}))
    with TestClient(app, base_url="http://localhost") as client:
        client.headers.update({"Origin": "http://localhost", **BROWSER})
        yield client


def make_key(client: TestClient, name: str, *roles: AccessRole) -> str:
    app: FastAPI = client.app  # type: ignore[assignment]
    context = app.state.context.for_caller(Caller(name="ada@host"))
    return create_key(context, NewKey(name=name, roles=roles)).api_key


def sign_in(client: TestClient, key: str, to: str = HOME) -> Response:
    return client.post(f"{HOME}/login", data={"key": key, "to": to}, follow_redirects=False)


def test_a_browser_signs_in_by_a_key_and_out(team: TestClient) -> None:
    sent = team.get(f"{HOME}/runs", follow_redirects=False)
    assert sent.status_code == 303
    assert sent.headers["location"] == f"{HOME}/login?to=%2Fdashboard%2Fruns"
    assert team.get("/", follow_redirects=False).status_code == 303
    assert team.get("/runs", headers={"Accept": "*/*"}).status_code == 401
    assert team.get(f"{HOME}/login").status_code == 200
    key = make_key(team, "op-1", AccessRole.OPERATOR)
    refused = sign_in(team, key[:-1] + ("y" if key.endswith("x") else "x"))
    assert refused.status_code == 403
    assert "not a key that works" in words(refused)
    signed = sign_in(team, key, f"{HOME}/runs")
    assert signed.headers["location"] == f"{HOME}/runs"
    cookie = signed.headers["set-cookie"]
    assert key not in cookie
    for word in ("HttpOnly", "SameSite=strict", "Max-Age=43200"):
        assert word in cookie
    assert "signed in as op-1 (operator)" in words(team.get(f"{HOME}/runs"))
    assert team.get("/runs", headers={"Accept": "application/json"}).status_code == 200
    kept = team.cookies["autopack_session"]
    assert team.post(f"{HOME}/logout", follow_redirects=False).status_code == 303
    team.cookies.set("autopack_session", kept)
    assert team.get(f"{HOME}/runs", follow_redirects=False).status_code == 303


def test_a_session_ends_with_its_key(team: TestClient) -> None:
    sign_in(team, make_key(team, "eye-1", AccessRole.VIEWER))
    assert team.get(HOME, follow_redirects=False).status_code == 200
    app: FastAPI = team.app  # type: ignore[assignment]
    revoke_key(app.state.context.for_caller(Caller(name="ada@host")), "eye-1")
    app.state.keyring.forget()
    assert team.get(HOME, follow_redirects=False).status_code == 303


def test_the_way_to_the_sign_in_page_and_back_keeps_what_was_asked_for(team: TestClient) -> None:
    asked = f"{HOME}/runs?text=run-7&state=live"
    away = team.get(asked, headers={"Accept": "text/html"}, follow_redirects=False)
    assert parse_qs(urlsplit(away.headers["location"]).query)["to"] == [asked]


def test_a_way_out_of_the_dashboard_is_not_taken(team: TestClient) -> None:
    key = make_key(team, "eye-1", AccessRole.VIEWER)
    for to in (
        "https://evil.example",
        "//evil.example",
        "/dashboard\\@evil",
        "/runs",
        "/dashboardx",
    ):
        assert sign_in(team, key, to).headers["location"] == HOME


def test_the_cookie_changes_nothing_from_elsewhere(team: TestClient) -> None:
    sign_in(team, make_key(team, "op-1", AccessRole.OPERATOR))
    plan = {"run": {"run_id": "x"}, "tiers": [], "phases": []}
    assert team.post("/runs/start", json=plan, headers={"Accept": "*/*"}).status_code == 401
    foreign = team.post(f"{HOME}/logout", headers={"Origin": "http://evil.example"})
    assert foreign.status_code == 403
    del team.headers["origin"]
    assert team.post(f"{HOME}/logout", follow_redirects=False).status_code == 303
    assert team.get(HOME, follow_redirects=False).status_code == 200, "it was not signed out"


def test_forms_are_read_strictly(team: TestClient) -> None:
    assert team.post(f"{HOME}/login", json={"key": "x"}).status_code == 415
    many = "&".join(f"a{number}=1" for number in range(50))
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert team.post(f"{HOME}/login", content=many, headers=form).status_code == 422
    assert team.post(f"{HOME}/login", content=b"key=\xff", headers=form).status_code == 422


def test_times_are_relative_to_now() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert ago(now - timedelta(minutes=5), now) == "5 min ago"
    assert ago(now + timedelta(hours=2), now) == "in 2 h"


@pytest.mark.parametrize(
    ("used", "cap", "colour"),
    [(79, 100, "ok"), (80, 100, "wait"), (100, 100, "wait"), (101, 100, "bad"), (0, 0, "wait")],
)
def test_a_bar_warns_from_the_share_on_that_needs_a_person(
    used: int, cap: int, colour: str
) -> None:
    parts: Any = ENVIRONMENT.get_template("parts.html").module
    assert f'data-s="{colour}"' in parts.bar(used, cap)


def test_home_shows_what_needs_a_person_and_an_operator_dismisses_it(api: Api) -> None:
    api.start("done-1")
    assert "Nothing waits for a person" in words(api.client.get(HOME))
    api.result("done-1")
    page = api.client.get(HOME)
    shown = words(page)
    assert "Home 1 need you" in shown
    assert "done-1 succeeded and may be merged into main" in shown
    assert "autopack promote done-1 --open" in shown
    assert api.client.get(f"{HOME}/attention-count").text.strip().startswith("<span")
    form = f"{HOME}/attention/run_eligible:done-1/dismiss"
    assert form in page.text
    gone = api.client.post(form, follow_redirects=False)
    assert (gone.status_code, gone.headers["location"]) == (303, HOME)
    assert "Nothing waits for a person" in words(api.client.get(HOME))
    assert api.client.get(f"{HOME}/attention-count").text.strip() == ""
