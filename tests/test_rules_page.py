"""The operators' page of rules says what the code does by default."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from autopack.domain.closed_paths import CLOSED
from autopack.domain.path_policy import DEFAULT_PROTECTED
from autopack.domain.ruleset import DEFAULT_ALIASES, DEFAULT_CATEGORIES, DEFAULT_SAFETY, Ruleset
from autopack.domain.run import FailureCode
from autopack.domain.states import PhaseStatus, RunStatus

pytestmark = pytest.mark.unit

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGE = (DOCS / "rules.md").read_text()


def rows_after(heading: str) -> dict[str, list[str]]:
    """Return the rows of the table whose heading begins so, by their first cell."""
    table = PAGE.partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {row[0].strip("`"): [cell.strip("`") for cell in row[1:]] for row in rows}


def shown(value: Any) -> str:
    if value in (None, [], {}):
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def flat(document: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Name each field of a ruleset by its path; both CI profiles have the same defaults."""
    fields: dict[str, str] = {}
    for name, value in document.items():
        if isinstance(value, dict) and value:
            fields |= flat(value, f"{prefix}{name}.")
        else:
            path = re.sub(r"profiles\.(normal|strict)", "profiles.*", f"{prefix}{name}")
            fields[path] = shown(value)
    return fields


def test_every_field_of_the_ruleset_is_there_with_its_default() -> None:
    document = Ruleset(project_id="any").model_dump(mode="json")
    for elsewhere in (
        "project_id",
        "categories",
        "aliases",
        "builder_modes",
        "safety_profiles",
        "unavailable_messages",
    ):
        del document[elsewhere]
    test_paths = document["ci"].pop("test_paths")
    document["ci"]["test_paths"] = "[the usual names](evidence.md#which-files-are-tests)"
    evidence = (DOCS / "evidence.md").read_text().split("## Which files are tests")[1]
    assert re.findall(r"`([^`]*[*][^`]*)`", evidence.partition("\n## ")[0]) == test_paths
    assert {name: row[0] for name, row in rows_after("field").items()} == flat(document)


def test_every_category_and_safety_profile_is_there_with_its_defaults() -> None:
    categories = {
        name: [shown(value) for value in rule.model_dump(mode="json").values()]
        for name, rule in DEFAULT_CATEGORIES.items()
    }
    assert rows_after("category") == categories
    profiles = [rule.model_dump(mode="json") for rule in DEFAULT_SAFETY.values()]
    assert rows_after("safety profile") == {
        name: [shown(profile[name]) for profile in profiles] for name in profiles[0]
    }
    for alias, category in DEFAULT_ALIASES.items():
        assert f"`{alias}` → `{category}`" in PAGE


def test_every_state_and_every_reason_to_fail_is_there() -> None:
    for name in {*RunStatus, *PhaseStatus, *FailureCode} - {RunStatus.PLAN_BOOTSTRAP}:
        assert f"`{name}`" in PAGE, name


def test_the_page_on_paths_lists_protected_paths_and_those_that_no_setting_opens() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "paths.md").read_text()
    absolute, _, openable = page.partition("No setting opens these")[2].partition("The ruleset can")
    assert set(re.findall(r"`(\.[^`]+)`", absolute)) - {".git"} == set(CLOSED)
    table = openable.partition("\n## ")[0].partition("\n|---|---|\n")[2].partition("\n\n")[0]
    listed = {each for row in table.splitlines() for each in re.findall("`([^`]+)`", row)}
    assert listed == set(DEFAULT_PROTECTED) - set(CLOSED)
