"""`autopack init`: what it finds, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from autopack.cli.app import main
from autopack.config import Settings
from autopack.domain.ruleset import Ruleset
from autopack.domain.terms import CiMode
from autopack.setup import Action, SetUpError, find_checks, set_up
from autopack.setup.placing import LinkError, write_new

if TYPE_CHECKING:
    from tests.conftest import GitRepo

RULESET = ".autonomous_runs/project_ruleset_widget.json"
PREFLIGHT = ".github/workflows/preflight.yml"


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
def test_a_projects_files_show_how_it_is_checked(
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
def test_checks_are_not_guessed_from_files_that_do_not_show_them(
    tmp_path: Path, files: dict[str, str]
) -> None:
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
    assert not any("git add" in step for step in again.left_to_do)
    after = {path: path.read_bytes() for path in git_repo.path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.integration
def test_a_dry_run_says_what_it_would_do(
    git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git_repo.commit({".gitignore": "/build\n"})
    monkeypatch.chdir(git_repo.path)
    assert main(["init", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "would write   scripts/preflight_gate.sh" in said
    assert "would extend  .gitignore" in said
    assert "  written" not in said


@pytest.mark.integration
def test_without_checks_the_ruleset_has_no_ci_and_says_so(git_repo: GitRepo) -> None:
    git_repo.git("branch", "--move", "trunk")
    done = set_up(_settings(git_repo))
    assert json.loads((git_repo.path / RULESET).read_text())["ci"]["mode"] == "none"
    assert any("--ci-command" in step for step in done.left_to_do)
    promotion = yaml.safe_load((git_repo.path / ".github/workflows/promotion.yml").read_text())
    assert promotion["env"]["BASE"] == "trunk"


def _ruleset(repo: GitRepo) -> Ruleset:
    return Ruleset.model_validate_json((repo.path / RULESET).read_text())


@pytest.mark.integration
def test_the_ruleset_that_a_first_start_wrote_is_switched_to_ci(git_repo: GitRepo) -> None:
    default = Ruleset(project_id="widget").model_dump_json(indent=2)
    _lay_out(git_repo.path, {RULESET: default})
    assert set_up(_settings(git_repo), command="true", is_dry_run=True).done[RULESET] is (
        Action.UPDATED
    )
    assert (git_repo.path / RULESET).read_text() == default
    assert set_up(_settings(git_repo), command="true").done[RULESET] is Action.UPDATED
    ruleset = _ruleset(git_repo)
    assert (ruleset.ci.mode, ruleset.version) == (CiMode.LOCAL, 2)
    assert "PREFLIGHT_COMMAND=true" in (ruleset.ci.profiles.strict.command or "")


@pytest.mark.integration
def test_an_edited_ruleset_is_merged_field_by_field_where_that_is_asked_for(
    git_repo: GitRepo,
) -> None:
    mine = {
        "project_id": "widget",
        "version": 4,
        "run": {"token_cap": 7},
        "paths": {"protected": ["mine/**"]},
        "ci": {"profiles": {"strict": {"command": "mine"}}},
    }
    _lay_out(git_repo.path, {RULESET: json.dumps(mine)})
    shown = set_up(_settings(git_repo), command="true")
    assert shown.done[RULESET] is Action.DIFFERS
    assert json.loads((git_repo.path / RULESET).read_text()) == mine
    [told] = [step for step in shown.left_to_do if "--apply" in step]
    assert 'ci.mode: "none" -> "local"' in told
    assert "ci.profiles.strict.command" not in told  # was changed by hand, so it stays
    assert set_up(_settings(git_repo), command="true", is_applied=True).done[RULESET] is (
        Action.UPDATED
    )
    ruleset = _ruleset(git_repo)
    assert (ruleset.version, ruleset.run.token_cap, ruleset.ci.mode) == (5, 7, CiMode.LOCAL)
    assert ruleset.ci.profiles.strict.command == "mine"
    assert {"mine/**", "scripts/preflight_gate.sh"} < {*ruleset.paths.protected}
    again = set_up(_settings(git_repo), command="true", is_applied=True)
    assert again.done[RULESET] is Action.KEPT


@pytest.mark.integration
def test_a_command_that_is_given_replaces_the_one_that_was_found(git_repo: GitRepo) -> None:
    _lay_out(git_repo.path, {"tests/test_it.py": ""})
    set_up(_settings(git_repo), mode=CiMode.EXTERNAL)
    assert "PREFLIGHT_JUNIT" in (_ruleset(git_repo).ci.profiles.normal.command or "")
    for command in ("python3 -m unittest", "make check"):
        done = set_up(_settings(git_repo), command=command).done
        assert done[RULESET] is Action.UPDATED
        assert done[PREFLIGHT] is Action.UPDATED
        ruleset = _ruleset(git_repo)
        assert command in (ruleset.ci.profiles.normal.command or "")
        assert ruleset.ci.profiles.normal.junit is None
        assert ruleset.ci.mode is CiMode.EXTERNAL, "it was chosen before"
        assert command in (git_repo.path / PREFLIGHT).read_text()
    again = set_up(_settings(git_repo))
    assert again.done[RULESET] is Action.KEPT, "without one, the command stays"
    assert "make check" in (_ruleset(git_repo).ci.profiles.strict.command or "")
    (git_repo.path / PREFLIGHT).write_text("name: mine\n")
    assert set_up(_settings(git_repo), command="tox").done[PREFLIGHT] is Action.DIFFERS


@pytest.mark.integration
def test_a_wrong_ruleset_is_not_overwritten(git_repo: GitRepo) -> None:
    _lay_out(git_repo.path, {RULESET: '{"project_id": 1}'})
    done = set_up(_settings(git_repo), command="true", is_applied=True)
    assert done.done[RULESET] is Action.DIFFERS
    assert (git_repo.path / RULESET).read_text() == '{"project_id": 1}'


@pytest.mark.integration
@pytest.mark.parametrize("link", ["scripts", ".github", ".github/workflows", ".autonomous_runs"])
@pytest.mark.parametrize("target", ["../outside", "gone"])
def test_nothing_is_written_where_a_folder_is_a_link(
    git_repo: GitRepo, tmp_path: Path, link: str, target: str
) -> None:
    outside = git_repo.path.parent / "outside"
    outside.mkdir()
    (git_repo.path / link).parent.mkdir(exist_ok=True)
    (git_repo.path / link).symlink_to(outside if target == "../outside" else target)
    before = sorted(git_repo.path.rglob("*"))
    for is_dry_run in (True, False):
        with pytest.raises(SetUpError, match=f"{link} is a link"):
            set_up(_settings(git_repo), command="true", is_dry_run=is_dry_run)
    assert sorted(git_repo.path.rglob("*")) == before
    assert list(outside.iterdir()) == []


@pytest.mark.integration
@pytest.mark.parametrize("target", ["../outside", "gone"])
def test_a_file_that_is_a_link_stays_one_and_nothing_goes_through_it(
    git_repo: GitRepo, target: str
) -> None:
    outside = git_repo.path.parent / "outside"
    outside.write_text("theirs\n")
    names = ("scripts/preflight_gate.sh", ".gitignore", ".github/workflows/promotion.yml")
    for name in names:
        (git_repo.path / name).parent.mkdir(parents=True, exist_ok=True)
        (git_repo.path / name).symlink_to(outside if target == "../outside" else target)
    done = set_up(_settings(git_repo), command="true")
    assert [done.done[name] for name in names] == [Action.DIFFERS] * 3
    assert outside.read_text() == "theirs\n"
    assert all((git_repo.path / name).is_symlink() for name in names)
    (git_repo.path / RULESET).unlink()
    (git_repo.path / RULESET).symlink_to(outside)
    with pytest.raises(SetUpError, match="is not a regular file"):
        set_up(_settings(git_repo), command="true", is_applied=True)
    assert outside.read_text() == "theirs\n"


@pytest.mark.unit
def test_a_folder_that_becomes_a_link_meanwhile_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top, outside = tmp_path / "top", tmp_path / "outside"
    for folder in (top, outside):
        folder.mkdir()
    make = os.mkdir

    def swap(name: str, *, dir_fd: int) -> None:
        make(name, dir_fd=dir_fd)
        os.rmdir(name, dir_fd=dir_fd)
        os.symlink(outside, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", swap)
    with pytest.raises(LinkError):
        write_new(top, "scripts/gate.sh", b"ours")
    assert list(outside.iterdir()) == []


@pytest.mark.integration
def test_a_remote_is_a_matter_only_where_there_is_one(git_repo: GitRepo) -> None:
    alone = "\n".join(set_up(_settings(git_repo), command="true", is_dry_run=True).left_to_do)
    assert not any(word in alone for word in ("git push", "AUTOPACK_GIT_REMOTE", "GitHub"))
    git_repo.git("remote", "add", "upstream", "https://example.org/widget.git")
    with_one = "\n".join(set_up(_settings(git_repo), command="true").left_to_do)
    for word in ("git push", "AUTOPACK_GIT_REMOTE=upstream", "On GitHub"):
        assert word in with_one


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
    assert "is not a git repository" in said.err
    assert said.out == ""
