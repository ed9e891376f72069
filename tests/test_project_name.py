"""The name of a project that was given none: of its data, else of the repository's folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.config import load_settings
from autopack.gitrepo import Repository

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTOPACK_PROJECT_ID", raising=False)


def name(folder: Path) -> str:
    return load_settings(repo_path=folder).project_id


@pytest.mark.parametrize(
    ("folder", "expected"),
    [
        ("shop", "shop"),
        ("My Shop (new)", "My-Shop-new"),
        ("-.-", "Autopack"),
        ("läden", "l-den"),
        ("mirror.git", "mirror"),
        ("a..b", "Autopack"),
        ("x" * 70, "x" * 64),
    ],
)
def test_a_new_project_is_named_after_its_folder(
    tmp_path: Path, folder: str, expected: str
) -> None:
    (tmp_path / folder / ".git").mkdir(parents=True)
    (tmp_path / folder / "src").mkdir()
    assert name(tmp_path / folder) == name(tmp_path / folder / "src") == expected


def test_data_keep_their_name_in_a_folder_of_another_name(git_repo: GitRepo) -> None:
    settings = load_settings(repo_path=git_repo.path)
    assert settings.project_id == "repo"
    Repository.open(settings)
    moved = git_repo.path.rename(git_repo.path.parent / "moved")
    assert name(moved) == "repo"
    assert load_settings(repo_path=moved, project_id="given").project_id == "given"


@pytest.mark.parametrize(
    "file", [".autonomous_runs/project_ruleset_Autopack.json", ".autopack/.gitignore"]
)
def test_data_of_an_earlier_version_are_of_the_project_that_it_had(
    git_repo: GitRepo, file: str
) -> None:
    (git_repo.path / file).parent.mkdir()
    (git_repo.path / file).write_text("*\n")
    assert name(git_repo.path) == "Autopack"


@pytest.mark.parametrize("content", [b"", b"..\n", b"\xff\n", b"a" * 65])
def test_a_name_that_is_none_is_not_taken_from_the_home(git_repo: GitRepo, content: bytes) -> None:
    home = git_repo.path / ".autopack"
    home.mkdir()
    (home / "project_id").write_bytes(content)
    assert name(git_repo.path) == "repo"
