"""`autopack init`: what it finds, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from autopack.cli.app import main
from autopack.config import Settings
from autopack.domain.ruleset import Ruleset
from autopack.domain.values import CiMode
from autopack.setup import Action, SetUpError, find_checks, set_up

if TYPE_CHECKING:
    from tests.conftest import GitRepo

RULESET = ".autonomous_runs/project_ruleset_widget.json"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("files", "name", "command"),
    [
        ({"tests/test_one.py": ""}, "pytest", None),
        ({"conftest.py": ""}, "pytest", None),
        ({"pyproject.toml": "[tool.pytest.ini_options]\n"}, "pytest", None),
        ({"setup.cfg": "[tool:pytest]\n", "tox.ini": ""}, "pytest", None),
        ({"tox.ini": "[tox]\n", "pyproject.toml": "not = [toml"}, "tox", "tox"),
        ({"package.json": '{"scripts": {"test": "vitest"}}'}, "npm", "npm test"),
        ({"Cargo.toml": ""}, "cargo", "cargo test"),
        ({"go.mod": ""}, "go", "go test ./..."),
        ({"Makefile": "all:\n\ncheck: all\n"}, "make", "make check"),
    ],
)
def test_a_project_tells_how_it_is_checked(
    tmp_path: Path, files: dict[str, str], name: str, command: str | None
) -> None:
    _lay_out(tmp_path, files)
    found = find_checks(tmp_path)
    assert found is not None
    assert (found.name, found.command) == (name, command)


@pytest.mark.unit
@pytest.mark.parametrize(
    "files",
    [
        {"README.md": ""},
        {"package.json": '{"scripts": {"test": "echo \\"Error: no test specified\\" && exit 1"}}'},
        {"package.json": "[]"},
        {"Makefile": "test := 1\n"},
        {"tests/data.py": ""},
    ],
)
def test_what_tells_nothing_is_no_guess(tmp_path: Path, files: dict[str, str]) -> None:
    _lay_out(tmp_path, files)
    assert find_checks(tmp_path) is None


def _lay_out(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


def _settings(repo: GitRepo) -> Settings:
    return Settings(_env_file=None, repo_path=repo.path, project_id="widget")


@pytest.mark.integration
def test_what_is_there_stays_and_a_second_time_changes_nothing(git_repo: GitRepo) -> None:
    git_repo.commit({"scripts/preflight_gate.sh": "mine\n", ".gitignore": "/build"})
    head = git_repo.git("rev-parse", "HEAD")
    settings = _settings(git_repo)
    planned = set_up(settings, command="sh it's.sh", is_dry_run=True)
    assert git_repo.git("status", "--porcelain", "--ignored") == ""

    done = set_up(settings, command="sh it's.sh")
    assert done == planned
    assert done.done["scripts/preflight_gate.sh"] is Action.DIFFERS
    assert (git_repo.path / "scripts/preflight_gate.sh").read_text() == "mine\n"
    assert (git_repo.path / ".gitignore").read_text().splitlines() == [
        "/build",
        "/.autonomous_runs/",
        "/.autopack/",
    ]
    assert git_repo.git("rev-parse", "HEAD") == head
    ruleset = Ruleset.model_validate_json((git_repo.path / RULESET).read_text())
    assert ruleset.ci.mode is CiMode.LOCAL
    assert "scripts/preflight_gate.sh" in ruleset.paths.protected
    preflight = yaml.safe_load((git_repo.path / ".github/workflows/preflight.yml").read_text())
    assert preflight["env"]["PREFLIGHT_COMMAND"] == "sh it's.sh"
    todo = "\n".join(done.left_to_do)
    assert "git add scripts/check_promotion.py" in todo
    assert "you may want instead: scripts/preflight_gate.sh" in todo

    before = {path: path.read_bytes() for path in git_repo.path.rglob("*") if path.is_file()}
    again = set_up(settings, command="sh it's.sh")
    assert set(again.done.values()) == {Action.KEPT, Action.DIFFERS}
    assert not any(step.startswith("On main: git add") for step in again.left_to_do)
    after = {path: path.read_bytes() for path in git_repo.path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.integration
def test_without_checks_the_ruleset_has_no_ci_and_says_so(git_repo: GitRepo) -> None:
    git_repo.git("branch", "--move", "trunk")
    done = set_up(_settings(git_repo))
    assert json.loads((git_repo.path / RULESET).read_text())["ci"]["mode"] == "none"
    assert any("--ci-command" in step for step in done.left_to_do)
    promotion = yaml.safe_load((git_repo.path / ".github/workflows/promotion.yml").read_text())
    assert promotion["env"]["BASE"] == "trunk"


@pytest.mark.integration
def test_a_ruleset_that_was_there_is_kept_and_what_it_lacks_is_shown(git_repo: GitRepo) -> None:
    _lay_out(git_repo.path, {RULESET: '{"project_id": "widget"}'})
    done = set_up(_settings(git_repo), command="true")
    assert done.done[RULESET] is Action.DIFFERS
    assert (git_repo.path / RULESET).read_text() == '{"project_id": "widget"}'
    assert any("PREFLIGHT_COMMAND=true" in step for step in done.left_to_do)


@pytest.mark.integration
def test_where_nothing_can_be_set_up_one_line_says_why(
    git_repo: GitRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    git_repo.git("clone", "--quiet", "--bare", str(git_repo.path), str(tmp_path / "bare.git"))
    bare = Settings(_env_file=None, repo_path=tmp_path / "bare.git")
    with pytest.raises(SetUpError, match="bare"):
        set_up(bare)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert main(["init"]) == 2
    said = capsys.readouterr()
    assert "no git repository" in said.err
    assert said.out == ""
