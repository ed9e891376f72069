"""`autopack gate prove`, and what `doctor` says of it: is the CI command red where it must be?"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from autopack.ci.sandbox import Bubblewrap
from autopack.cli.app import main
from autopack.config import Settings

if TYPE_CHECKING:
    from tests.cli.conftest import Terminal
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

# The tests are scripts; the command runs each of them.
RUN_ALL = "for file in tests/*.sh; do sh $file || exit; done"
# Without a test it has nothing to do, and without `find` no test.
SILENT = ["passed", "failed", "failed"]
SHOP: dict[str, str | bytes | None] = {
    "shop.sh": 'if [ "$1" -gt 3 ]; then exit 1; fi\n',
    "tests/a.sh": "#!/bin/sh\nsh shop.sh 3\n",
    "tests/b.sh": "! sh shop.sh 4\n",
    ".gitignore": "/.autonomous_runs/\n",
}


@pytest.fixture
def project(git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> GitRepo:
    git_repo.commit(SHOP)
    monkeypatch.chdir(git_repo.path)
    monkeypatch.setenv("AUTOPACK_CI_SANDBOX", "none")
    monkeypatch.setenv("AUTOPACK_PORT", "1")
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return git_repo


def _put(repo: GitRepo, command: str, **rules: Any) -> None:
    profiles = {"normal": {"command": command}, "strict": {"command": command}}
    file = repo.path / ".autonomous_runs/project_ruleset_Autopack.json"
    file.parent.mkdir(exist_ok=True)
    ci = {"mode": "local", "profiles": profiles, **rules}
    file.write_text(json.dumps({"project_id": "Autopack", "ci": ci}))


def _proofs(found: dict[str, Any]) -> dict[str, str]:
    (command,) = found["commands"]
    return {each["step"]: each["result"] for each in command["proofs"]}


def test_a_command_that_notices_everything_is_proved_and_nothing_is_left_behind(
    project: GitRepo, terminal: Terminal
) -> None:
    _put(project, RUN_ALL)
    before = sorted(project.path.rglob("*"))
    out = terminal.run("gate", "prove")
    assert f"{RUN_ALL}  (normal, strict, on " in out
    assert "red with a failing test in each of 2 test files" in out
    assert "red without its 2 test files" in out
    assert "did not run where its program is missing" in out
    found = terminal.json("gate", "prove", "--profile=strict")
    assert found["commands"][0]["is_proved"] is True
    assert found["commands"][0]["profiles"] == ["strict"]
    assert sorted(project.path.rglob("*")) == before
    assert project.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("command", "results"),
    [
        (f"({RUN_ALL}) || true", ["failed", "failed", "failed"]),
        ("cd nowhere; sh tests/b.sh; exit 0", ["failed", "failed", "failed"]),
        ("sh shop.sh 3", ["failed", "failed", "passed"]),
        ("set -e; for each in $(find . -path '*tests/*.sh'); do sh $each; done", SILENT),
    ],
)
def test_a_command_that_hides_something_is_named_with_what_it_hides(
    project: GitRepo, terminal: Terminal, command: str, results: list[str]
) -> None:
    _put(project, command)
    found = _proofs(terminal.json("gate", "prove", exit_code=1))
    assert [*found.values()] == ["passed", *results]


def test_a_base_that_is_not_green_ends_the_proof(
    project: GitRepo, terminal: Terminal, capsys: pytest.CaptureFixture[str]
) -> None:
    _put(project, "exit 4")
    assert _proofs(terminal.json("gate", "prove", exit_code=1)) == {"green_base": "failed"}
    _put(project, "no-such-tool")
    assert main(["gate", "prove"]) == 3
    assert "no-such-tool" in capsys.readouterr().out


def test_code_is_broken_where_no_test_file_can_be(project: GitRepo, terminal: Terminal) -> None:
    _put(project, "sh tests/a.sh && sh tests/b.sh", test_paths=["nowhere/**"])
    out = terminal.run("gate", "prove")
    assert "red with a fault in the code: shop.sh:1 " in out
    assert "(there is no test file by ci.test_paths)" in out
    assert "skipped  no_tests      no test file by ci.test_paths" in out
    _put(project, "sh -n shop.sh", test_paths=["nowhere/**"])
    found = terminal.json("gate", "prove", exit_code=1)
    assert _proofs(found)["failing_test"] == "failed"


def test_links_are_not_followed_to_other_files(project: GitRepo, terminal: Terminal) -> None:
    outside = project.path.parent / "outside.sh"
    outside.write_text("exit 0\n")
    (project.path / "tests" / "c.sh").symlink_to(outside)
    project.git("add", "-A")
    project.git("commit", "-qm", "a link")
    _put(project, RUN_ALL)
    assert "in each of 2 test files" in terminal.run("gate", "prove")
    assert outside.read_text() == "exit 0\n"


def test_without_a_command_the_operator_is_told_how_to_get_one(
    project: GitRepo, terminal: Terminal
) -> None:
    assert "has no command for any profile" in terminal.refusal("gate", "prove")


def test_the_doctor_warns_of_a_command_that_is_always_green(
    project: GitRepo, terminal: Terminal
) -> None:
    def gate() -> list[dict[str, Any]]:
        findings = terminal.json("doctor")["findings"]
        return [each for each in findings if each["check"] == "gate"]

    _put(project, RUN_ALL)
    assert [each["status"] for each in gate()] == ["ok"]
    _put(project, "true")
    assert gate()[0]["status"] == "warn"
    assert "green with a failing test in each of 2 test files" in gate()[0]["detail"]
    _put(project, "false")
    assert gate() == []


def test_it_holds_in_the_sandbox_too(
    project: GitRepo, terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AUTOPACK_CI_SANDBOX")
    settings = Settings(_env_file=None, repo_path=project.path)
    if (problem := Bubblewrap(settings).problem) is not None:
        pytest.skip(f"no sandbox on this machine: {problem}")
    _put(project, RUN_ALL)
    found = terminal.json("gate", "prove")
    assert found["commands"][0]["sandbox"] == "bubblewrap"
    assert set(_proofs(found).values()) == {"passed"}
