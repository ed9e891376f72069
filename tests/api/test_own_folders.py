"""Home and runs directory inside the served repository are the operator's, wherever they stand."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from autopack.config import Settings

if TYPE_CHECKING:
    from tests.api.conftest import Api


@pytest.fixture
def settings(settings: Settings) -> Settings:
    top = settings.repo_path
    places = {"home": top / "var" / "home", "autonomous_runs_dir": top / "build" / "runs"}
    return settings.model_copy(update=places)


@pytest.mark.parametrize(
    "path", ["build/runs/project_ruleset_Autopack.json", "var/home/postgres/data/pg_hba.conf"]
)
def test_a_patch_to_the_configured_home_or_runs_directory_is_refused(api: Api, path: str) -> None:
    api.start()
    problem = api.refused(api.result(patch=api.new_file(path)), 422, "patch_policy", path)
    assert problem["violations"][0]["rule"] == "protected_path"


def test_a_patch_beside_them_is_accepted(api: Api) -> None:
    api.start()
    assert api.result(patch=api.new_file("build/other.txt")).status_code == 200


def test_a_start_names_what_agents_will_not_find(api: Api) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    api.repo.commit({".gitattributes": "*.bin filter=lfs\n", "large.bin": pointer})
    assert any("large.bin is a file of Git LFS" in each for each in api.start()["warnings"])
