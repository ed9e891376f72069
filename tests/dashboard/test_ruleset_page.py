"""The pages of the ruleset: a change is shown with its backtest before it is saved."""

from __future__ import annotations

import json
from html import unescape
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event
from tests.dashboard.test_pages import words

from autopack.dashboard.rendering import HOME

if TYPE_CHECKING:
    from fastapi import FastAPI
    from httpx2 import Response
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration


def ruleset(api: Api) -> dict[str, Any]:
    found: dict[str, Any] = api.client.get("/project/ruleset").json()
    return found


def preview(api: Api, document: object) -> Response:
    text = document if isinstance(document, str) else json.dumps(document)
    return api.client.post(f"{HOME}/ruleset/preview", data={"document": text})


def hidden(page: Response) -> dict[str, str]:
    """Return the fields of the form that saves."""
    fields = {}
    for name in ("document", "standing"):
        field = page.text.partition(f'type="hidden" name="{name}" value="')[2]
        fields[name] = unescape(field.partition('"')[0])
    return fields


def test_the_policy_in_force_is_shown_as_a_whole(api: Api) -> None:
    page = api.client.get(f"{HOME}/ruleset")
    assert page.status_code == 200
    shown = words(page)
    for text in ("security_auth_change", "run.token_cap", "5,000,000", ".autonomous_runs/**"):
        assert text in shown
    text = unescape(page.text.partition("<textarea")[2].partition(">")[2].partition("</")[0])
    assert json.loads(text) == ruleset(api)


def test_a_change_is_shown_with_its_backtest_and_then_saved(api: Api) -> None:
    api.start()
    api.result(tokens_used=900)
    wanted = ruleset(api)
    wanted["run"]["token_cap"] = 500
    page = preview(api, wanted)
    shown = words(page)
    assert "run.token_cap 5,000,000 500" in shown
    assert "1 of 1 past runs would have ended otherwise." in shown
    assert "1 in another state" in shown
    assert "budget spent" in shown
    assert ruleset(api)["run"]["token_cap"] == 5_000_000, "nothing is saved yet"
    form = hidden(page)
    saved = api.client.post(f"{HOME}/ruleset", data=form, follow_redirects=False)
    assert (saved.status_code, saved.headers["location"]) == (303, f"{HOME}/ruleset")
    assert ruleset(api)["run"]["token_cap"] == 500
    assert ruleset(api)["version"] == wanted["version"] + 1
    again = api.client.post(f"{HOME}/ruleset", data=form)
    assert again.status_code == 409
    assert "The ruleset changed since" in words(again)
    versions = words(api.client.get(f"{HOME}/ruleset/versions"))
    assert "Version 2" in versions
    assert "run.token_cap 5,000,000 500" in versions


def test_a_ruleset_that_is_wrong_names_the_field_and_keeps_the_text(api: Api) -> None:
    wanted = ruleset(api)
    wanted["run"]["token_cap"] = "<much>"
    page = preview(api, wanted)
    assert page.status_code == 422
    assert "run.token_cap" in words(page)
    assert "&lt;much&gt;" in page.text
    for text in ("{", "[]", "[" * 100_000, ""):
        assert preview(api, text).status_code == 422, text[:10]
    unseen = api.client.post(f"{HOME}/ruleset", data={"document": json.dumps(ruleset(api))})
    assert unseen.status_code == 409


def test_the_page_costs_the_same_for_any_number_of_runs(api: Api, app: FastAPI) -> None:
    sent: list[Any] = []
    for engine in (app.state.context.engine, app.state.context.autocommit):
        event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    counts = []
    for number in (1, 4):
        for each in range(number):
            api.start(f"run-{number}-{each}")
        sent.clear()
        assert api.client.get(f"{HOME}/ruleset").status_code == 200
        assert api.client.get(f"{HOME}/ruleset/versions").status_code == 200
        counts.append(len(sent))
    assert counts[0] == counts[1] <= 4, counts
