"""Tracked files never configure the service: settings, home, runs directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.config import Settings, SettingsError, load_settings
from autopack.gitrepo import Repository, RepositoryUnusableError

if TYPE_CHECKING:
    from tests.conftest import GitRepo

RULESET = ".autonomous_runs/project_ruleset_Autopack.json"


def serve(repo: GitRepo, **values: object) -> None:
    """Open the repository as a start does, with the folders where they are by default."""
    settings = Settings(_env_file=None, repo_path=repo.path, **values)  # type: ignore[arg-type]
    Repository.open(settings)


def refused(repo: GitRepo, variable: str, **values: object) -> str:
    with pytest.raises(RepositoryUnusableError) as caught:
        serve(repo, **values)
    assert caught.value.detail.startswith(variable), caught.value.detail
    return caught.value.detail


def link(repo: GitRepo, name: str, target: str | Path) -> Path:
    path = repo.path / name
    path.symlink_to(target)
    return path


@pytest.fixture
def settings_file(git_repo: GitRepo) -> Path:
    file = git_repo.path / "conf" / "service.env"
    git_repo.commit({"conf/service.env": "AUTOPACK_AUTH=disabled\n"})
    return file


def test_a_settings_file_that_the_repository_tracks_is_refused(
    git_repo: GitRepo, settings_file: Path
) -> None:
    assert str(settings_file) in refused(git_repo, "AUTOPACK_ENV_FILE", env_file=settings_file)


def test_a_settings_file_beside_the_code_is_refused_when_that_code_is_served_and_tracks_it(
    git_repo: GitRepo,
) -> None:
    git_repo.commit({".env": "AUTOPACK_AUTH=disabled\n"})
    refused(git_repo, "AUTOPACK_ENV_FILE", env_file=git_repo.path / ".env")


def test_a_settings_file_is_refused_when_a_link_leads_to_a_tracked_one(
    git_repo: GitRepo, settings_file: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "service.env"
    elsewhere.symlink_to(settings_file)
    refused(git_repo, "AUTOPACK_ENV_FILE", env_file=elsewhere)


@pytest.mark.parametrize("name", ["service.env", "conf"])
def test_a_settings_file_is_refused_when_a_tracked_link_leads_to_it(
    git_repo: GitRepo, tmp_path: Path, name: str
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "service.env").write_text("AUTOPACK_AUTH=disabled\n")
    link(git_repo, name, f"../{'conf/service.env' if name == 'service.env' else 'conf'}")
    git_repo.git("add", name)
    file = git_repo.path / name
    refused(
        git_repo, "AUTOPACK_ENV_FILE", env_file=file if file.is_file() else file / "service.env"
    )


def test_a_settings_file_of_another_work_tree_of_the_repository_is_refused(
    git_repo: GitRepo, settings_file: Path, tmp_path: Path
) -> None:
    git_repo.git("worktree", "add", "--quiet", "--detach", str(tmp_path / "linked"))
    refused(git_repo, "AUTOPACK_ENV_FILE", env_file=tmp_path / "linked" / "conf" / "service.env")


def test_a_settings_file_may_be_untracked_or_tracked_by_the_operators_own_repository(
    git_repo: GitRepo, tmp_path: Path
) -> None:
    from tests.conftest import make_git_repo

    (git_repo.path / "own.env").write_text("AUTOPACK_PORT=1\n")
    serve(git_repo, env_file=git_repo.path / "own.env")
    operators = make_git_repo(tmp_path / "operator")
    operators.commit({"service.env": "AUTOPACK_PORT=1\n"})
    serve(git_repo, env_file=operators.path / "service.env")


def test_a_home_that_holds_tracked_files_is_refused_before_anything_is_written(
    git_repo: GitRepo,
) -> None:
    git_repo.commit({".autopack/.env": "AUTOPACK_AUTH=disabled\n"})
    assert ".autopack/.env" in refused(git_repo, "AUTOPACK_HOME")
    assert [path.name for path in (git_repo.path / ".autopack").iterdir()] == [".env"]


def test_a_home_is_refused_at_the_top_and_in_a_folder_with_tracked_files(git_repo: GitRepo) -> None:
    refused(git_repo, "AUTOPACK_HOME", home=".")
    refused(git_repo, "AUTOPACK_HOME", home="src")


def test_a_home_may_be_an_empty_folder_beside_tracked_files(git_repo: GitRepo) -> None:
    serve(git_repo, home="src/home")


@pytest.mark.parametrize("variable", ["AUTOPACK_HOME", "AUTONOMOUS_RUNS_DIR"])
def test_a_folder_that_a_tracked_link_leads_to_is_refused(
    git_repo: GitRepo, tmp_path: Path, variable: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    name = ".autopack" if variable == "AUTOPACK_HOME" else ".autonomous_runs"
    link(git_repo, name, tmp_path / "elsewhere")
    serve(git_repo)  # the operator's own link
    git_repo.git("add", "--force", name)
    assert "link" in refused(git_repo, variable)


@pytest.mark.parametrize("variable", ["AUTOPACK_HOME", "AUTONOMOUS_RUNS_DIR"])
def test_a_folder_whose_link_leads_to_tracked_files_is_refused(
    git_repo: GitRepo, variable: str
) -> None:
    name = ".autopack" if variable == "AUTOPACK_HOME" else ".autonomous_runs"
    link(git_repo, name, "src")
    assert "src/app.py" in refused(git_repo, variable)


def test_a_folder_that_is_a_submodule_is_refused(git_repo: GitRepo) -> None:
    commit = git_repo.git("rev-parse", "HEAD")
    git_repo.git("update-index", "--add", "--cacheinfo", f"160000,{commit},.autopack")
    git_repo.git("init", "--quiet", ".autopack")
    refused(git_repo, "AUTOPACK_HOME")


def test_links_that_form_a_loop_are_refused(git_repo: GitRepo) -> None:
    link(git_repo, ".autopack", ".autopack")
    with pytest.raises(RepositoryUnusableError, match="form a loop"):
        serve(git_repo)


def test_the_runs_directory_may_contain_tracked_rulesets_and_records(git_repo: GitRepo) -> None:
    git_repo.commit(
        {
            RULESET: "{}",
            ".autonomous_runs/run-1/run.json": "{}",
            ".autonomous_runs/run-1/run_summary.md": "",
            ".autonomous_runs/run-1/phases/phase_01_P1.md": "",
        }
    )
    serve(git_repo)


@pytest.mark.parametrize(
    "path",
    [
        ".autonomous_runs/.gitignore",
        ".autonomous_runs/project_issue_backlog.json",
        ".autonomous_runs/project_ruleset_Autopack.json/x",
        ".autonomous_runs/run-2/run_summary.md",  # of a run without its record
    ],
)
def test_the_runs_directory_is_refused_with_any_other_tracked_file(
    git_repo: GitRepo, path: str
) -> None:
    git_repo.commit({".autonomous_runs/run-1/run.json": "{}", path: "{}\n"})
    assert path in refused(git_repo, "AUTONOMOUS_RUNS_DIR")


def test_a_tracked_ruleset_is_refused_when_it_is_a_link(git_repo: GitRepo) -> None:
    (git_repo.path / ".autonomous_runs").mkdir()
    link(git_repo, RULESET, "../src/app.py")
    git_repo.git("add", "--force", RULESET)
    refused(git_repo, "AUTONOMOUS_RUNS_DIR")


def test_a_bare_repository_tracks_nothing_on_the_disk(git_repo: GitRepo, tmp_path: Path) -> None:
    git_repo.commit({".autopack/.env": ""})
    git_repo.git("clone", "--quiet", "--bare", str(git_repo.path), str(tmp_path / "bare.git"))
    Repository.open(Settings(_env_file=None, repo_path=tmp_path / "bare.git"))


def test_the_file_that_the_environment_names_is_read(
    git_repo: GitRepo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "service.env"
    file.write_text("AUTOPACK_PORT=8123\nAUTOPACK_PROJECT_ID=theirs\n")
    monkeypatch.setenv("AUTOPACK_ENV_FILE", str(file))
    monkeypatch.setenv("AUTOPACK_PROJECT_ID", "ours")
    settings = load_settings(repo_path=git_repo.path)
    assert (settings.port, settings.project_id, settings.env_file) == (8123, "ours", file)
    file.unlink()
    with pytest.raises(SettingsError, match=r"AUTOPACK_ENV_FILE.*does not exist"):
        load_settings(repo_path=git_repo.path)


def test_no_settings_are_taken_from_the_served_repository(
    git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(git_repo.path)
    git_repo.commit({".env": "AUTOPACK_AUTH=disabled\nAUTOPACK_CI_SANDBOX=none\n"})
    settings = load_settings()
    assert (settings.auth, settings.ci_sandbox) == ("loopback", "auto")


def test_a_file_in_our_home_that_was_read_once_is_not_passed_over_in_silence(
    git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = git_repo.path / ".autopack" / ".env"
    file.parent.mkdir()
    file.write_text("AUTOPACK_PORT=8123\n")
    with pytest.raises(SettingsError, match=r"\.env is not read: name it by AUTOPACK_ENV_FILE="):
        load_settings(repo_path=git_repo.path)
    monkeypatch.setenv("AUTOPACK_ENV_FILE", str(file))
    assert load_settings(repo_path=git_repo.path).port == 8123
