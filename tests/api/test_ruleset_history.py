"""Versions of the ruleset, what a change changes, and what is protected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from autopack.domain.document_diff import FieldChange, differences

if TYPE_CHECKING:
    from tests.api.conftest import Api


@pytest.mark.unit
def test_documents_differ_in_fields_by_their_paths() -> None:
    was = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "gone": True}
    would = {"a": {"x": 2, "y": [1, 2]}, "b": {"c": 1}, "new": None, "more": "m"}
    assert differences(was, would) == [
        FieldChange(field="a.x", was=1, would=2),
        FieldChange(field="b", was=1, would={"c": 1}),
        FieldChange(field="gone", was=True, would=None),
        FieldChange(field="more", was=None, would="m"),
    ]
    assert differences(was, was) == []


def put(api: Api, **changes: Any) -> None:
    ruleset = api.client.get("/project/ruleset").json() | changes
    assert api.client.put("/project/ruleset", json=ruleset).status_code == 200


@pytest.mark.integration
def test_each_version_says_since_when_by_whom_and_what_it_changed(api: Api) -> None:
    api.start()
    put(api, attempt_minutes=7)
    put(api, attempt_minutes=7, audit_minutes=9)
    found = api.client.get("/project/ruleset/versions").json()
    latest, second, first = found["versions"]
    assert [each["version"] for each in found["versions"]] == [3, 2, 1]
    changes = [[change["field"] for change in each["changes"]] for each in (latest, second, first)]
    assert changes == [["audit_minutes"], ["attempt_minutes"], []]
    assert latest["changes"][0]["would"] == 9
    assert latest["document"]["attempt_minutes"] == 7
    assert first["actor"] is None, "the first one came with a run"
    assert second["actor"] is not None
    page = api.client.get("/project/ruleset/versions", params={"limit": 2}).json()
    assert page["versions"] == [latest, second]
    params = {"limit": 2, "cursor": page["next_cursor"]}
    rest = api.client.get("/project/ruleset/versions", params=params).json()
    assert (rest["versions"], rest["next_cursor"]) == ([first], None)


@pytest.mark.integration
def test_a_ruleset_is_compared_before_it_is_in_force(api: Api) -> None:
    ruleset = api.client.get("/project/ruleset").json()
    path = "/project/ruleset/diff"
    same = api.client.post(path, json={"ruleset": ruleset}).json()
    assert same == {"version": ruleset["version"], "changes": []}
    ruleset["run"]["token_cap"] = 1_000
    changes = api.client.post(path, json={"ruleset": ruleset}).json()["changes"]
    assert changes == [{"field": "run.token_cap", "was": 5_000_000, "would": 1_000}]
    assert api.client.get("/project/ruleset").json()["run"]["token_cap"] == 5_000_000
    ruleset["run"]["token_cap"] = "much"
    refused = api.client.post(path, json={"ruleset": ruleset})
    api.refused(refused, 422, "invalid_ruleset", "run.token_cap")


@pytest.mark.integration
def test_a_backtest_counts_what_would_change(api: Api) -> None:
    for name in ("run-1", "run-2"):
        api.start(name)
        api.result(name, tokens_used=900)
    ruleset = api.client.get("/project/ruleset").json()
    ruleset["run"]["token_cap"] = 1_000
    body = {"ruleset": ruleset, "changed_only": True}
    same = api.client.post("/strategy/backtest", json=body).json()
    assert (same["compared_count"], same["changed_count"], same["runs"]) == (2, 0, [])
    ruleset["run"]["token_cap"] = 500
    found = api.client.post("/strategy/backtest", json=body).json()
    assert found["changed_count"] == 2
    assert found["changed_by_kind"] == {"outcome": 2, "cost": 0, "promotion": 2, "refused": 0}
    assert found["runs"][0]["change_kinds"] == ["outcome", "promotion"]


@pytest.mark.integration
def test_the_protected_paths_say_where_each_comes_from(api: Api) -> None:
    api.repo.commit({"scripts/check.sh": "exit 0"}, "Add a script")
    profiles = {name: {"command": "sh scripts/check.sh"} for name in ("normal", "strict")}
    put(
        api,
        paths={"protected": ["deploy/**"], "opened": {"docs": [".github/**"]}},
        ci={"mode": "local", "profiles": profiles},
    )
    found = api.client.get("/project/protected_paths").json()
    assert found["by_ruleset"] == ["deploy/**"]
    assert found["ci_scripts"] == ["scripts/check.sh"]
    assert found["opened"] == {"docs": [".github/**"]}
    assert ".autonomous_runs/**" in found["always"]
    assert found["by_default"]
    assert not set(found["always"]) & set(found["by_default"])
