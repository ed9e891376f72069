"""The dashboard as people meet it: every page, by eye, keyboard and without JavaScript."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
import pytest
from playwright.sync_api import expect
from tests.browser.conftest import THEMES, WIDTHS, open_reader

from autopack.contexts import beside_database, create_key
from autopack.domain.access import AccessRole, Caller
from autopack.domain.keys import NewKey
from autopack.domain.times import duration

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser
    from tests.conftest import GitRepo, ServedHere
    from tests.processes import ForkServer

    from autopack.config import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

PAGES = (
    "",
    "/runs",
    "/runs/checkout-rounding",
    "/runs/checkout-rounding?phase=P1.1",
    "/runs/search-index",
    "/runs/cart-ttl",
    "/runs/rename-items",
    "/runs/invoice-mails",
    "/runs/long-plan",
    "/figures",
    "/issues",
    "/keys",
    "/ruleset",
    "/ruleset/versions",
    "/runs/checkout-runding",
    "/start",
    "/login",
)


def test_every_page_is_sound_in_each_size_and_theme(browser: Browser, sampled: ServedHere) -> None:
    for theme in THEMES:
        for width in WIDTHS:
            context, reader = open_reader(browser, sampled.url, width=width, theme=theme)
            for path in PAGES:
                reader.open(path)
                reader.check(f"{path or '/'} at {width}, {theme}")
            context.close()


def test_a_run_is_seen_from_its_start_to_its_end(browser: Browser, served_here: ServedHere) -> None:
    url = served_here.url
    context, reader = open_reader(browser, url)
    page = reader.page
    reader.open()
    expect(page.get_by_role("heading", name="No run yet")).to_be_visible()
    start(url, "run-1")
    reader.open()
    start(url, "run-2")
    expect(page.locator("#running")).to_contain_text("run-2")
    page.get_by_role("link", name="run-1").click()
    expect(page.locator("#live")).to_contain_text("live")
    claim = post(url, "/runs/run-1/claim", role="builder", agent="codex-1")
    expect(page.locator("#phase")).to_contain_text("codex-1 holds this phase as builder")
    post(
        url,
        "/runs/run-1/phases/P0/builder_result",
        status="success",
        patch_content="--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+hello\n",
        lease_token=claim["lease"]["token"],
        notes="Said hello.",
    )
    expect(page.locator("#phase")).to_contain_text("Said hello.")
    expect(page.locator("#run-head")).to_contain_text("succeeded")
    expect(page.locator("#promotion")).to_contain_text("may be merged")
    expect(page.locator("#feed > li").first).to_contain_text("succe")
    numbers = page.eval_on_selector_all("#feed > li", "items => items.map(each => each.id)")
    assert len(numbers) == len({*numbers}), "each event is told once"
    reader.check("the page of a run that ended")
    context.close()


def test_what_needs_a_person_appears_and_goes_on_an_open_overview(
    browser: Browser, served_here: ServedHere
) -> None:
    url = served_here.url
    start(url, "run-1")
    context, reader = open_reader(browser, url)
    page = reader.page
    reader.open()
    expect(page.locator("#attention")).to_contain_text("Nothing waits for a person")
    patch = "--- /dev/null\n+++ b/new.txt\n@@ -0,0 +1 @@\n+hello\n"
    post(url, "/runs/run-1/phases/P0/builder_result", status="success", patch_content=patch)
    expect(page.locator("#attention")).to_contain_text("may be merged into main")
    expect(page.locator("#nav-attention")).to_contain_text("1")
    page.goto(f"{url}/dashboard/runs")
    expect(page.locator("#nav-attention")).to_contain_text("1")
    reader.open()
    page.get_by_role("button", name="Dismiss").click()
    expect(page.locator("#attention")).to_contain_text("Nothing waits for a person")
    expect(page.locator("#nav-attention")).to_be_empty()
    reader.check("the overview with attention")
    context.close()


def test_an_operator_cancels_by_keyboard_alone(browser: Browser, served_here: ServedHere) -> None:
    start(served_here.url, "run-1")
    context, reader = open_reader(browser, served_here.url)
    page = reader.page
    reader.open("/runs/run-1")
    tab_to(page, "Cancel the run")
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.type("The plan was wrong")
    page.keyboard.press("Escape")
    expect(page.locator("#cancel-reason")).not_to_be_visible()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#run-head")).to_contain_text("The plan was wrong")
    expect(page.locator("#run-head")).to_contain_text("cancelled")
    assert reader.complaints == []
    context.close()


def test_a_key_signs_in_by_keyboard_and_a_page_waits_for_the_service(
    browser: Browser,
    settings: Settings,
    git_repo: GitRepo,
    tmp_path: Path,
    fork_server: ForkServer,
) -> None:
    from tests.conftest import start_server, stop_server

    required = settings.model_copy(update={"auth": "required"})
    with beside_database(required, "ada@host") as context:
        wanted = NewKey(name="op-1", roles=(AccessRole.OPERATOR,))
        key = create_key(context.for_caller(Caller(name="ada@host")), wanted).api_key
    server = start_server(fork_server, required, tmp_path / "server.log")
    browsing, reader = open_reader(browser, server.url)
    page = reader.page
    reader.open("/runs")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    tab_to(page, "API key")
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()
    assert page.url.endswith("/dashboard/runs")
    assert page.evaluate("document.cookie") == "", "no script can read the session"
    reader.open()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert reader.complaints == []
    stop_server(server)
    browsing.close()


def test_a_lost_connection_is_told_and_goes_on_by_itself(
    browser: Browser,
    settings: Settings,
    tmp_path: Path,
    fork_server: ForkServer,
) -> None:
    from tests.conftest import start_server, stop_server

    server = start_server(fork_server, settings, tmp_path / "server.log")
    start(server.url, "run-1")
    context, reader = open_reader(browser, server.url)
    page = reader.page
    reader.open("/runs/run-1")
    expect(page.locator("#live")).to_contain_text("live")
    stop_server(server)
    expect(page.locator("#lost")).to_be_visible()
    again = start_server(
        fork_server, settings, tmp_path / "again.log", port=int(server.url.rpartition(":")[2])
    )
    post(again.url, "/runs/run-1/cancel", reason="while it was away")
    expect(page.locator("#run-head")).to_contain_text("while it was away")
    expect(page.locator("#lost")).not_to_be_visible()
    context.close()
    stop_server(again)


def test_pages_read_and_act_without_javascript(browser: Browser, served_here: ServedHere) -> None:
    start(served_here.url, "run-1")
    context, reader = open_reader(browser, served_here.url, java_script_enabled=False)
    page = reader.page
    reader.open("/runs/run-1")
    expect(page.locator("#tiers")).to_contain_text("Phase 0")
    page.locator("summary", has_text="Cancel the run").click()
    page.locator("#cancel-reason").fill("no scripts")
    page.get_by_role("button", name="Cancel run-1").click()
    expect(page.locator("#run-head")).to_contain_text("no scripts")
    page.get_by_role("button", name="Switch between light and dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    context.close()


def tab_to(page: Any, name: str) -> None:
    """Press Tab until the element of this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        label = page.evaluate(
            "(e => e.labels && e.labels[0] ? e.labels[0].innerText : e.innerText)"
            "(document.activeElement)"
        )
        if (label or "").strip() == name:
            return
    raise AssertionError(f"no Tab leads to {name}")


def test_a_form_that_was_open_does_not_leave_the_page_behind(
    browser: Browser, served_here: ServedHere
) -> None:
    start(served_here.url, "run-1")
    context, reader = open_reader(browser, served_here.url)
    page = reader.page
    reader.open("/runs/run-1")
    expect(page.locator("#live")).to_contain_text("live")
    page.locator("summary", has_text="Cancel the run").click()
    page.get_by_label("Reason").fill("half written")
    post(served_here.url, "/runs/run-1/cancel", reason="by another operator")
    expect(page.locator("#feed")).to_contain_text("by another operator")
    expect(page.get_by_label("Reason")).to_have_value("half written")
    page.keyboard.press("Escape")
    expect(page.locator("#run-head")).to_contain_text("by another operator")
    assert reader.complaints == []
    context.close()


def test_a_page_whose_session_has_ended_says_so(
    browser: Browser,
    settings: Settings,
    tmp_path: Path,
    fork_server: ForkServer,
) -> None:
    from tests.conftest import start_server, stop_server

    required = settings.model_copy(update={"auth": "required"})
    with beside_database(required, "ada@host") as database:
        operator = database.for_caller(Caller(name="ada@host"))
        key, other = (
            create_key(operator, NewKey(name=name, roles=(AccessRole.OPERATOR,))).api_key
            for name in ("op-1", "op-2")
        )
    server = start_server(fork_server, required, tmp_path / "server.log")
    context, reader = open_reader(browser, server.url)
    page = reader.page
    reader.open("/login")
    page.get_by_label("API key").fill(key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Sign in")).not_to_be_visible()
    start(server.url, "run-1", other)
    reader.open("/runs/run-1")
    expect(page.locator("#live")).to_contain_text("live")
    post(server.url, "/keys/op-1/revoke", other)
    post(server.url, "/runs/run-1/cancel", other, reason="enough")
    expect(page.locator("#signed-out")).to_be_visible()
    expect(page.locator("#lost")).not_to_be_visible()
    expect(page.locator("#run-head")).not_to_contain_text("enough")
    context.close()
    stop_server(server)


def test_the_browser_tells_time_spans_as_the_service_does(
    browser: Browser, sampled: ServedHere
) -> None:
    context, reader = open_reader(browser, sampled.url)
    reader.open("")
    spans = [0, 59, 60, 90, 599, 600, 3_599, 3_600, 7_260, 90_000, 172_799, 172_800, 400_000]
    told = reader.page.evaluate("spans => spans.map(duration)", spans)
    assert told == [duration(each) for each in spans]
    context.close()


def start(url: str, run_id: str, key: str = "") -> None:
    post(
        url,
        "/runs/start",
        key,
        run={"run_id": run_id},
        tiers=[{"tier_id": "T0", "tier_index": 0, "name": "T"}],
        phases=[{"phase_id": "P0", "phase_index": 0, "tier_id": "T0", "name": "Phase 0"}],
    )


def post(url: str, path: str, key: str = "", **body: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    answer = httpx.post(f"{url}{path}", json=body, headers=headers, timeout=60, trust_env=False)
    assert answer.status_code < 300, answer.text
    return answer.json()
