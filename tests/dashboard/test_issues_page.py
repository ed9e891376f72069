"""The pages of the backlog, of keys, and of the audit log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from sqlalchemy import event
from tests.dashboard.test_pages import HOSTILE, words

from autopack.contexts import create_key
from autopack.dashboard.rendering import HOME
from autopack.domain.access import AccessRole
from autopack.domain.keys import NewKey

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

KEY = "a/b?c#d & <x>"


def test_the_issues_are_listed_filtered_and_ordered(api: Api) -> None:
    api.start()
    api.issue("old", severity="minor", category="docs")
    api.issue("bad", severity="major", description=HOSTILE)
    page = api.client.get(f"{HOME}/issues")
    assert page.status_code == 200
    assert "<script>alert" not in page.text
    shown = words(page)
    assert shown.index(" bad ") < shown.index(" old ")
    assert "2 not resolved: 0 need cleanup" in shown
    assert "1 of 3 runs" in shown
    assert " old " not in words(api.client.get(f"{HOME}/issues?severity=major"))
    assert " bad " not in words(api.client.get(f"{HOME}/issues?text=OL"))
    wrong = api.client.get(f"{HOME}/issues?status=lost&order=odd")
    assert wrong.status_code == 422
    assert "There is no 'lost'" in words(wrong)


def test_pages_of_issues_go_on_in_the_same_order(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autopack.dashboard.issues_page.ISSUES_A_PAGE", 2)
    api.start()
    for name in ("one", "two", "three"):
        api.issue(name)
    first = api.client.get(f"{HOME}/issues?order=first_seen")
    assert " three " not in words(first)
    more = first.text.partition("More</a>")[0].rpartition('href="')[2].partition('"')[0]
    assert " three " in words(api.client.get(more.replace("&amp;", "&")))


def test_an_issue_of_any_key_is_shown_resolved_and_reopened(api: Api) -> None:
    api.start()
    assert api.issue(KEY, description="It leaks.", evidence_refs=["log:1"]).status_code == 201
    listed = api.client.get(f"{HOME}/issues").text
    address = f"{HOME}/issues/{quote(KEY, safe='')}"
    assert f'href="{address}"' in listed
    page = words(api.client.get(address))
    for text in (KEY, "It leaks.", "log:1", "run-001", "P0.0"):
        assert text in page
    for action, status in (("resolve", "resolved"), ("reopen", "open")):
        done = api.client.post(f"{address}/{action}", follow_redirects=True)
        assert done.status_code == 200, done.text
        assert f" {status} " in words(done)
    assert api.client.get(f"{HOME}/issues/none").status_code == 404


def test_a_page_of_issues_costs_the_same_for_any_number(api: Api, app: FastAPI) -> None:
    sent: list[Any] = []
    for engine in (app.state.context.engine, app.state.context.autocommit):
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    api.start()
    counts = []
    for number in (1, 20):
        for each in range(number):
            api.issue(f"issue-{number}-{each}")
        sent.clear()
        assert api.client.get(f"{HOME}/issues").status_code == 200
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 6, counts


def test_keys_and_what_was_done_to_them_are_shown(api: Api, app: FastAPI) -> None:
    context = app.state.context
    secret = create_key(context, NewKey(name="codex-3", roles=(AccessRole.BUILDER,))).api_key
    page = api.client.get(f"{HOME}/keys")
    assert page.status_code == 200
    shown = words(page)
    for text in ("codex-3", "builder", "live", "key created", "never"):
        assert text in shown
    assert secret not in page.text
    assert "Revoke codex-3" not in page.text, "a caller without a key cannot revoke one"
    refused = api.client.post(f"{HOME}/keys/codex-3/revoke")
    assert refused.status_code == 403


def test_the_audit_log_is_shown_in_pages(
    api: Api, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autopack.dashboard.keys_page.ENTRIES_A_PAGE", 2)
    for number in range(3):
        create_key(app.state.context, NewKey(name=f"key-{number}", roles=(AccessRole.VIEWER,)))
    page = api.client.get(f"{HOME}/keys")
    log = page.text.partition("Audit log")[2]
    assert log.index("key-2") < log.index("key-1")
    assert "key-0" not in log
    older = log.partition(">Older</a>")[0].rpartition('href="')[2].partition('"')[0]
    log = api.client.get(older).text.partition("Audit log")[2]
    assert "key-0" in log
    assert "key-1" not in log
