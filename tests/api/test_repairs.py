"""Every answer about a patch reports its repairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.conftest import Api

pytestmark = pytest.mark.integration

CHECK = "/runs/run-001/patch_check"
REVIEW = "/runs/run-001/phases/P0.0/auditor_result"


def fenced(api: Api, path: str) -> str:
    return f"Here it is:\n```diff\n{api.new_file(path)}```\n"


def kinds(answer: dict[str, Any]) -> list[str]:
    return [repair["kind"] for repair in answer["repairs"]]


def test_a_check_a_submission_and_its_repeat_report_the_same_repairs(
    api: Api,
) -> None:
    api.start()
    patch = fenced(api, "src/a.txt")
    check = api.client.post(CHECK, json={"patch_content": patch}).json()
    assert kinds(check) == ["fence"]
    built = api.result(patch=patch, key="once").json()
    assert built["repairs"] == check["repairs"]
    assert built["repairs"][0]["line"] == 2
    assert "Markdown fence" in built["repairs"][0]["detail"]
    assert api.result(patch=patch, key="once").json() == built
    assert api.repo.git("show", f"{built['commit_sha']}:src/a.txt") == "This is src/a.txt."


def test_a_patch_that_needed_no_repair_has_no_repairs(api: Api) -> None:
    api.start()
    assert api.client.post(CHECK, json={"patch_content": api.new_file("a")}).json()["repairs"] == []
    assert api.result().json()["repairs"] == []


def test_a_review_names_the_patch_of_each_repair(api: Api) -> None:
    api.start(phase={"task_category": "schema_change", "complexity": "high"})
    pending = api.result(patch=fenced(api, "src/a.txt"), status="needs_review").json()
    assert (pending["commit_sha"], kinds(pending)) == (None, ["fence"])
    suggested = [
        {"patch_content": api.new_file("src/b.txt")},
        {"patch_content": api.new_file("src/c.txt").replace("new file mode 100644\n", "")},
    ]
    review = {"recommendation": "approve", "suggested_patches": suggested}
    answer = api.client.post(REVIEW, json=review).json()
    told = [(repair["patch"], repair["kind"]) for repair in answer["repairs"]]
    assert told == [(None, "fence"), (1, "file_header")]
