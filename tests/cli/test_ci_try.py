"""The CI command on trial: `autopack ci try`, `doctor`, and what `init` says about packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autopack.ci.sandbox import Bubblewrap
from autopack.cli.app import main
from autopack.config import Settings
from autopack.setup import hidden_packages

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

RULESET = ".autonomous_runs/project_ruleset_Autopack.json"


@pytest.fixture
def project(git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> GitRepo:
    git_repo.commit(
        {"check.sh": "echo checked $CI_PROFILE\n", ".gitignore": "/.autonomous_runs/\n"}
    )
    monkeypatch.chdir(git_repo.path)
    monkeypatch.setenv("AUTOPACK_CI_SANDBOX", "none")
    monkeypatch.setenv("AUTOPACK_PORT", "1")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return git_repo


def _put_command(repo: GitRepo, command: str) -> None:
    profile = {"command": command}
    rules = {"mode": "local", "profiles": {"normal": profile, "strict": profile}}
    file = repo.path / RULESET
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"project_id": "Autopack", "ci": rules}))


def _run(
    capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 0
) -> tuple[str, str]:
    capsys.readouterr()
    assert main(arguments) == exit_code
    return capsys.readouterr()


@pytest.mark.parametrize(
    ("command", "exit_code", "verdict", "told"),
    [
        ("sh check.sh", 0, "green", "exit 0"),
        ("echo first; sh check.sh; exit 4", 1, "red", "  checked normal\nred on "),
        ("no-such-tool", 3, "did_not_run", "no-such-tool"),
    ],
)
def test_a_trial_says_what_the_command_says_and_leaves_nothing(
    project: GitRepo,
    capsys: pytest.CaptureFixture[str],
    command: str,
    exit_code: int,
    verdict: str,
    told: str,
) -> None:
    _put_command(project, command)
    before = sorted(project.path.rglob("*"))
    out, _ = _run(capsys, "ci", "try", exit_code=exit_code)
    assert told in out
    assert "without a sandbox" in out
    found = json.loads(_run(capsys, "ci", "try", "--json", exit_code=exit_code)[0])
    assert (found["verdict"], found["sandbox"]) == (verdict, "none")
    assert found["commit"] == project.git("rev-parse", "main")
    assert sorted(project.path.rglob("*")) == before


def test_any_commit_and_the_strict_profile_can_be_tried(
    project: GitRepo, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_command(project, "sh check.sh; exit 1")
    project.commit({"check.sh": "echo newer\n"})
    out, _ = _run(capsys, "ci", "try", "HEAD~1", "--profile", "strict", exit_code=1)
    assert "checked strict" in out
    out, _ = _run(capsys, "ci", "try", project.git("rev-parse", "--short", "HEAD"), exit_code=1)
    assert "newer" in out
    _, error = _run(capsys, "ci", "try", "--profile=strict", "--", "--help", exit_code=2)
    assert "has no commit '--help'" in error


def test_without_a_command_the_trial_says_how_to_get_one(
    project: GitRepo, capsys: pytest.CaptureFixture[str]
) -> None:
    _, error = _run(capsys, "ci", "try", exit_code=2)
    assert "has no command for the profile normal: `autopack init` sets it" in error


def _finding(out: str, check: str) -> dict[str, Any]:
    [found] = [each for each in json.loads(out)["findings"] if each["check"] == check]
    return dict(found)


def test_the_doctor_runs_the_command_and_shows_its_last_lines(
    project: GitRepo, capsys: pytest.CaptureFixture[str]
) -> None:
    _put_command(project, "sh check.sh")
    assert _finding(_run(capsys, "doctor", "--json")[0], "ci")["status"] == "ok"
    _put_command(project, "echo two tests failed; exit 1")
    red = _finding(_run(capsys, "doctor", "--json")[0], "ci")
    assert (red["status"], red["lines"]) == ("warn", ["two tests failed"])
    assert "ci: the last lines\n  two tests failed" in _run(capsys, "doctor")[0]
    _put_command(project, "no-such-tool")
    found = _finding(_run(capsys, "doctor", "--json", exit_code=1)[0], "ci")
    assert found["status"] == "fail"
    assert "no-such-tool" in found["detail"]
    assert '"ci"' not in _run(capsys, "doctor", "--quick", "--json")[0]
    assert not (project.path / ".autopack").exists()


def test_packages_that_the_sandbox_hides_are_named_with_the_setting(
    project: GitRepo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "Try the checks" in _run(capsys, "init", "--ci-command=sh check.sh", "--dry-run")[0]
    (project.path / ".venv").mkdir()
    setting = f"AUTOPACK_CI_READABLE_PATHS={project.path}/.venv"
    assert setting in _run(capsys, "init", "--ci-command=sh check.sh", "--dry-run")[0]
    monkeypatch.delenv("AUTOPACK_CI_SANDBOX")
    settings = Settings(_env_file=None, repo_path=project.path)
    if (problem := Bubblewrap(settings).problem) is not None:
        pytest.skip(f"no sandbox on this machine: {problem}")
    _put_command(project, "ls .venv")
    assert setting in _run(capsys, "ci", "try", exit_code=1)[0]
    assert _finding(_run(capsys, "doctor", "--json")[0], "ci")["mend"] == f"Set {setting}"
    monkeypatch.setenv(*setting.split("="))
    assert "green" in _run(capsys, "ci", "try")[0]


def test_what_is_readable_already_is_not_named_again(tmp_path: Path) -> None:
    for name in (".git", "venv", "node_modules"):
        (tmp_path / name).mkdir()
    settings = Settings(
        _env_file=None,
        repo_path=tmp_path,
        ci_readable_paths=(Path("/srv/tools"), tmp_path / "venv"),
    )
    assert hidden_packages(settings) == (
        f"AUTOPACK_CI_READABLE_PATHS=/srv/tools,{tmp_path}/venv,{tmp_path}/node_modules"
    )
