"""The command line as people and scripts use it: answers, exit codes, refusals of one line."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from sqlalchemy import text
from typer.core import TyperGroup
from typer.main import get_command

from autopack.cli import service
from autopack.cli.app import COMMANDS, main
from autopack.cli.terminal import (
    cell,
    log_warnings_alone,
    print_json,
    print_table,
    print_text,
    say,
)
from autopack.client import Autopack
from autopack.store import nodes

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.cli.conftest import Terminal
    from tests.conftest import GitRepo

    from autopack.config import Settings

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = "\x1b[2J[red]a[/red]\u202e\x9b\n"
PLAN = """
run: {run_id: run-001}
tiers: [{tier_id: T1, tier_index: 0, name: "First [red]tier"}]
phases:
  - {phase_id: P1, phase_index: 0, tier_id: T1, name: One, task_category: docs, allow_empty: true}
"""


ADDITION = {
    "status": "success",
    "patch_content": "diff --git a/new.txt b/new.txt\nnew file mode 100644\n--- /dev/null\n"
    "+++ b/new.txt\n@@ -0,0 +1 @@\n+New.\n",
}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    file = tmp_path / "plan.yaml"
    file.write_text(PLAN)
    return file


@pytest.mark.integration
def test_a_run_is_started_watched_and_promoted(
    terminal: Terminal,
    autopack: Autopack,
    plan: Path,
    git_repo: GitRepo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "RUN_CREATED" in terminal.run("run", "start", plan)
    assert terminal.json("run", "start", plan)["run_id"] == "run-001"
    assert terminal.json("promote", "run-001", exit_code=1)["reasons"]
    autopack.submit_builder_result("run-001", "P1", {"status": "success", "tokens_used": 100})

    watched = terminal.run("run", "watch", "run-001").splitlines()
    assert "The run succeeded: every phase has ended." in watched[-1]
    events = [
        json.loads(line) for line in terminal.run("run", "events", "run-001", "--json").splitlines()
    ]
    assert len(events) == len(watched)
    assert terminal.json("run", "show", "run-001") == autopack.get_run("run-001").model_dump(
        mode="json"
    )
    screen = terminal.run("run", "show", "run-001")
    assert "First [red]tier" in screen
    assert "100/200k" in screen
    assert "run-001" in terminal.run("run", "list", "--status", "DONE_SUCCESS")
    assert terminal.run("run", "diff", "run-001") == ""
    assert terminal.json("run", "ci", "run-001") == {"run_id": "run-001", "ci_runs": []}
    assert "is eligible" in terminal.run("promote", "run-001")
    monkeypatch.chdir(git_repo.path)
    terminal.run("verify", "run-001")
    git_repo.git("branch", "--force", "autonomous/run-001", "main")
    terminal.run("verify", "run-001", exit_code=1)
    assert "is over" in terminal.run("run", "cancel", "run-001", exit_code=2)


@pytest.mark.integration
def test_a_failed_run_ends_its_watch_with_no(
    terminal: Terminal, autopack: Autopack, plan: Path
) -> None:
    terminal.run("run", "start", plan)
    cancelled = terminal.json("run", "cancel", "run-001", "--reason", "enough")
    assert cancelled["state"] == "DONE_FAILED_REQUIRES_HUMAN_REVIEW"
    last = terminal.run("run", "watch", "run-001", "--json", exit_code=1).splitlines()[-1]
    assert json.loads(last)["kind"] == "RunEnded"
    assert " cancelled " in terminal.run("run", "list", "--ended")
    assert "run-001" not in terminal.run("run", "list", "--live")
    assert terminal.run("run", "show", "run-001").count("cancelled by operator: enough") == 1


@pytest.mark.integration
def test_a_failed_run_is_continued_as_another_one(
    terminal: Terminal, autopack: Autopack, plan: Path
) -> None:
    terminal.run("run", "start", plan)
    assert "only a run that is over" in terminal.run("run", "retry", "run-001", exit_code=2)
    terminal.run("run", "cancel", "run-001")
    options = ("--phase", "P1", "--token-cap", 99)
    again = terminal.json("run", "retry", "run-001", *options)
    assert (again["run_id"], again["continues"]) == ("run-001.2", "run-001")
    assert again["token_cap"] == 99
    assert "continues run-001" in terminal.run("run", "retry", "run-001", *options)


@pytest.mark.integration
def test_a_run_is_rebased_as_another_one(
    terminal: Terminal, autopack: Autopack, plan: Path, git_repo: GitRepo
) -> None:
    terminal.run("run", "start", plan)
    assert "only a run that is over" in terminal.run("run", "rebase", "run-001", exit_code=2)
    autopack.submit_builder_result("run-001", "P1", ADDITION)
    base = git_repo.commit({"other.txt": "other\n"})
    wrong = terminal.run("run", "rebase", "run-001", "--base-commit", "0" * 40, exit_code=2)
    assert f"'main' is at {base}" in wrong
    assert terminal.json("run", "rebase", "run-001")["rebases"] == "run-001"
    assert "rebases run-001" in terminal.run("run", "rebase", "run-001")


@pytest.mark.integration
def test_an_issue_is_shown_with_its_words_its_evidence_and_where_it_was_seen(
    terminal: Terminal, autopack: Autopack, plan: Path
) -> None:
    terminal.run("run", "start", plan)
    issue = {
        **{"issue_key": "ci / x", "source": "[red]test", "category": "ci"},
        "description": f"It hangs.{HOSTILE}evidence",
        "evidence_refs": [f"tests/a.py::b{HOSTILE}c"],
    }
    autopack.record_issue("run-001", "P1", issue)
    shown = terminal.run("issues", "show", "ci / x")
    assert not [char for char in shown if char != "\n" and not char.isprintable()]
    lines = shown.splitlines()
    assert lines.index("description") < lines.index("evidence") < lines.index("seen in")
    assert lines.count("evidence") == 1
    assert any(line.startswith("  It hangs.") and "[red]a[/red]" in line for line in lines)
    assert any(line.startswith("  tests/a.py::b") and line.endswith("c") for line in lines)
    for word in ("run-001", "RUN_CREATED", "P1", "QUEUED", "open", "minor", "[red]test"):
        assert word in lines[-1]
    whole = autopack.get_issue("ci / x").model_dump(mode="json")
    assert terminal.json("issues", "show", "ci / x") == whole
    assert whole["description"] == issue["description"]


@pytest.mark.integration
def test_issues_and_policy_are_in_an_operators_hand(
    terminal: Terminal, autopack: Autopack, plan: Path, tmp_path: Path
) -> None:
    terminal.run("run", "start", plan)
    issue = {"issue_key": "ci__x", "severity": "minor", "source": "test", "category": "ci"}
    autopack.record_issue("run-001", "P1", issue)
    assert "ci__x" in terminal.run("issues", "list")
    assert list(terminal.json("issues", "list", "--run", "run-001")["issues_by_key"]) == ["ci__x"]
    for option, value in (
        ("--status", "open"),
        ("--category", "ci"),
        ("--severity", "minor"),
        ("--text", "x"),
        ("--order", "often"),
        ("--cursor", "x"),
    ):
        refused = terminal.refusal("issues", "list", "--run", "run-001", option, value)
        assert "--run takes no filter" in refused
    assert terminal.json("issues", "resolve", "ci__x")["status"] == "resolved"
    assert "resolved" in terminal.run("issues", "show", "ci__x")
    assert terminal.json("issues", "reopen", "ci__x")["status"] == "open"
    assert "nothing" in terminal.run("issues", "show", "nothing", exit_code=1)
    assert "list the backlog" in terminal.run("issues", "show", "backlog", exit_code=2)

    ruleset = json.loads(terminal.run("strategy", "ruleset", "get"))
    ruleset["categories"]["docs"]["incident_token_cap"] = 777
    file = tmp_path / "ruleset.json"
    file.write_text(json.dumps(ruleset))
    compared = terminal.json("strategy", "dry-run", plan, "--ruleset", file)
    caps = [compared[each]["phases"]["P1"]["incident_token_cap"] for each in ("today", "strategy")]
    assert caps == [200_000, 777]
    terminal.run("strategy", "ruleset", "put", file)
    assert "777" in terminal.run("strategy", "show")

    def put(document: object, exit_code: int = 0) -> str:
        file.write_text(json.dumps(document))
        return terminal.run("strategy", "ruleset", "put", file, exit_code=exit_code)

    def ruleset_now() -> dict[str, Any]:
        document: dict[str, Any] = json.loads(terminal.run("strategy", "ruleset", "get"))
        return document

    assert ruleset_now()["version"] == 2
    assert "version 3" in put({"run": {"token_cap": 888}})
    assert ruleset_now() == {**ruleset, "version": 3, "run": {**ruleset["run"], "token_cap": 888}}
    assert f"already as in {file}: version 3" in put({"run": {"token_cap": 888}})
    assert "version 9" in put({"version": 9})
    fewer = {**ruleset_now(), "builder_modes": {}}
    assert "version 10" in put(fewer)
    assert ruleset_now()["builder_modes"] == {}
    refused = put({"run": {"token_cap": -1}}, exit_code=2)
    assert refused.startswith(f"autopack: {file}: run.token_cap: ")
    assert "project_ruleset" not in refused
    assert ruleset_now()["version"] == 10


@pytest.mark.integration
def test_promotion_is_started_by_gh_only_for_an_eligible_run(
    terminal: Terminal,
    autopack: Autopack,
    plan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text(f'#!/bin/sh\nprintf "%s " "$@" >{tmp_path}/asked\n')
    gh.chmod(0o755)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{gh.parent}:{path}")
    terminal.run("run", "start", plan)
    terminal.run("promote", "run-001", "--open", exit_code=1)
    assert not (tmp_path / "asked").exists()
    autopack.submit_builder_result("run-001", "P1", {"status": "success"})
    assert "was started" in terminal.run("promote", "run-001", "--open")
    asked = "workflow run promotion.yml -f run_id=run-001 -f integration_branch=autonomous/run-001"
    assert (tmp_path / "asked").read_text().strip() == asked
    gh.write_text("#!/bin/sh\necho no such workflow >&2\nexit 1\n")
    assert "no such workflow" in terminal.run("promote", "run-001", "--open", exit_code=2)


@pytest.mark.integration
def test_what_is_wrong_is_one_line_and_a_code(
    terminal: Terminal, autopack: Autopack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plan"
    file.write_text("{]")
    for code, told, arguments in (
        (2, "not_found", ("run", "show", "nobody")),
        (2, "not JSON", ("run", "start", file)),
        (2, "none.yaml", ("run", "start", "none.yaml")),
        (2, "No such command", ("runs",)),
        (2, "Missing argument", ("run", "show")),
        (2, "PLAN_BOOTSTRAP", ("run", "list", "--status", "odd")),
    ):
        line = terminal.run(*arguments, exit_code=code)
        assert told in line
        assert line.startswith("autopack: ")
        assert line.count("\n") == 1
    monkeypatch.setattr(service, "Autopack", Autopack)
    away = terminal.run("run", "list", "--url", "http://127.0.0.1:9", exit_code=3)
    assert "autopack serve" in away


@pytest.mark.unit
def test_no_text_of_the_service_controls_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    harmless = r"\x1b[2J[red]a[/red]\u202e\x9b\n"
    assert cell(HOSTILE).plain == harmless
    print_table(("name",), [(HOSTILE,)])
    assert capsys.readouterr().out.split() == ["name", harmless]
    say(HOSTILE, HOSTILE)  # no text makes a line of its own
    assert capsys.readouterr().out.splitlines() == [harmless, harmless]


LINK = "\x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \x7f"


@pytest.mark.unit
def test_a_patch_and_a_log_are_harmless_in_a_pipe_too_unless_asked_for_to_the_byte(
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    text = f"+\ta{LINK}\u202e\r\n\xff".encode("latin-1", "replace")
    print_text(text, is_raw=False)
    assert capfdbinary.readouterr().out == (
        rb"+\ta\x1b]8;;http://evil.example\x07click\x1b]8;;\x07 \x7f?".replace(rb"\t", b"\t", 1)
        + b"\n\\xff"
    )
    print_text(text, is_raw=True)
    assert capfdbinary.readouterr().out == text


@pytest.mark.unit
def test_json_stays_json_with_everything_spelt_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"name": LINK + HOSTILE})
    printed = capsys.readouterr().out
    assert json.loads(printed) == {"name": LINK + HOSTILE}
    assert all(letter.isprintable() for letter in printed.replace("\n", ""))


@pytest.mark.integration
@pytest.mark.parametrize(
    "arguments",
    [
        ("strategy", "ruleset", "get"),
        ("strategy", "show"),
        ("run", "list", "--json"),
        ("run", "events", "run-001"),
    ],
)
def test_a_closed_pipe_is_no_traceback(
    terminal: Terminal,
    autopack: Autopack,
    plan: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    terminal.run("run", "start", plan)
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(arguments) == 141  # what is left in the buffer goes nowhere


@pytest.mark.integration
def test_warnings_are_left_out_where_that_is_asked_for(
    git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(git_repo.path)
    monkeypatch.setenv("AUTOPACK_PORTT", "1")
    assert main(["init", "--dry-run"]) == 0
    assert "AUTOPACK_PORTT is not a setting" in capsys.readouterr().err
    assert main(["--quiet", "init", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "would write" in out
    assert err == ""
    assert main(["-q", "run", "show"]) == 2  # errors stay
    assert "Missing argument" in capsys.readouterr().err


@pytest.mark.unit
def test_no_command_prints_but_through_the_one_place() -> None:
    for file in (ROOT / "src" / "autopack" / "cli").glob("*.py"):
        if file.name != "terminal.py":
            assert not re.search(r"(?<![\w.])print\(|typer\.echo", file.read_text()), file


def test_the_logs_of_a_command_never_go_to_a_stream_that_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", first)
    log_warnings_alone()
    logger = structlog.get_logger()
    logger.warning("at_first")
    assert "at_first" in first.getvalue()
    first.close()
    monkeypatch.setattr(sys, "stderr", second)
    logger.info("hidden")
    logger.warning("later")
    assert "later" in second.getvalue()
    assert "hidden" not in second.getvalue()


@pytest.mark.integration
def test_the_doctor_finds_errors_and_says_how_to_repair_them(
    terminal: Terminal,
    settings: Settings,
    git_repo: GitRepo,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def examine(exit_code: int) -> dict[str, dict[str, str]]:
        found = terminal.json("doctor", exit_code=exit_code)
        return {each["check"]: each for each in found["findings"]}

    configure(monkeypatch, settings)
    well = examine(0)
    assert {each["status"] for each in well.values()} == {"ok", "warn"}
    assert "autopack init" in well["promotion"]["mend"]
    assert not settings.home.exists()

    git_repo.git("switch", "--quiet", "--create", "autonomous/run-001")
    settings.autonomous_runs_dir.mkdir()
    file = settings.autonomous_runs_dir / f"project_ruleset_{settings.project_id}.json"
    file.write_text('{"project_id": "Autopack", "run": {"token_cap": -1}}')
    monkeypatch.setenv("AUTOPACK_GIT_REMOTE", "./gone.git")
    monkeypatch.setenv("AUTOPACK_SIGNING_KEY", "README.md")
    ill = examine(1)
    failed = {name for name, each in ill.items() if each["status"] == "fail"}
    assert failed == {"checkout", "ruleset", "remote", "signing"}
    assert "switch --detach" in ill["checkout"]["mend"]
    assert "run.token_cap" in ill["ruleset"]["detail"]

    monkeypatch.setenv("AUTOPACK_BASE_BRANCH", "gone")
    assert "create it" in examine(1)["repository"]["detail"]
    monkeypatch.setenv("AUTOPACK_PORT", "x")
    assert "AUTOPACK_PORT" in examine(1)["settings"]["detail"]


@pytest.mark.integration
def test_the_doctor_warns_of_an_old_base_and_of_what_agents_will_not_find(
    terminal: Terminal, settings: Settings, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, settings)
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    git_repo.commit({".gitattributes": "*.bin filter=lfs\n", "large.bin": pointer})
    newer = git_repo.commit({"new.txt": "new\n"})
    git_repo.git("update-ref", "refs/remotes/origin/main", newer)
    git_repo.git("reset", "--quiet", "--hard", "HEAD~1")
    found = {each["check"]: each for each in terminal.json("doctor")["findings"]}
    assert found["base"]["status"] == found["contents"]["status"] == "warn"
    assert "main is 1 commit behind origin/main" in found["base"]["detail"]
    assert "large.bin" in found["contents"]["detail"]
    assert "pull" in found["base"]["mend"]


@pytest.mark.integration
@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "192.0.2.7", "::"])
def test_the_doctor_warns_of_a_service_that_listens_beyond_this_machine(
    terminal: Terminal, settings: Settings, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    configure(monkeypatch, settings)
    monkeypatch.setenv("AUTOPACK_HOST", host)
    # Nothing is asked of a service, and one of these hosts would not even refuse to answer.
    monkeypatch.setenv("AUTOPACK_PORT", "1")
    monkeypatch.setattr("autopack.cli.doctor.PROBE_SECONDS", 0.1)
    found = terminal.json("doctor")["findings"]
    warned = [each for each in found if each["check"] == "access"]
    assert bool(warned) == (host in {"192.0.2.7", "::"})
    assert not warned or "proxy" in warned[0]["detail"]


@pytest.mark.integration
def test_the_database_is_looked_at_and_upgraded(
    terminal: Terminal,
    settings: Settings,
    empty_database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure(monkeypatch, settings)
    monkeypatch.setenv("DATABASE_URL", empty_database_url)
    assert terminal.json("db", "status", exit_code=1)["revision"] is None
    assert "is empty" in terminal.run("db", "upgrade", "--check", exit_code=1)
    assert terminal.json("db", "upgrade")["is_current"]
    assert "no migration is pending" in terminal.run("db", "upgrade", "--check")
    status = terminal.json("db", "status")
    assert status["revision"] == status["head"]
    monkeypatch.delenv("DATABASE_URL")
    assert "no database yet" in terminal.run("db", "status", exit_code=1)
    assert not settings.home.exists()


@pytest.mark.unit
def test_every_command_is_in_the_docs_and_each_that_is_there_exists() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    documented = re.findall(r"^\| `autopack ((?:[a-z-]+ ?)+)", page, re.MULTILINE)
    assert {words.strip() for words in documented} == set(_commands())


@pytest.mark.e2e
def test_help_and_completion_come_at_once() -> None:
    """Measured by what is imported, not by the clock."""
    asked = "import sys; from autopack.cli.app import main; main({}); print(*sys.modules)"
    heavy = {"fastapi", "sqlalchemy", "uvicorn", "pygit2", "mcp"}
    for arguments, too in (([], {"httpx", "rich", "pydantic"}), (["run"], set())):
        code = asked.format([*arguments, "--help"])
        modules = set(_python("-c", code).split())
        assert modules & (heavy | too) == set()
    completed = _python(
        *("-m", "autopack"),
        _AUTOPACK_COMPLETE="complete_bash",
        COMP_WORDS="autopack run w",
        COMP_CWORD="2",
    )
    assert completed.split() == ["watch"]


@pytest.fixture
def narrow(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], None]:
    """Make standard output a terminal of 80 columns when it is called, before then it is a pipe."""

    def begin() -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.setenv("TERM", "dumb")  # no colours

    return begin


def require_80_columns(text: str) -> None:
    assert [line for line in text.splitlines() if len(line) > 80] == []


@pytest.mark.integration
def test_the_backlog_fits_80_columns_of_a_terminal_and_is_whole_in_a_pipe(
    terminal: Terminal, autopack: Autopack, plan: Path, narrow: Callable[[], None]
) -> None:
    terminal.run("run", "start", plan)
    key = "test_failure__tests_test_login_py_test_that_a_token_expires"
    body = {"issue_key": key, "source": "test", "category": "a_category_of_many_letters"}
    autopack.record_issue("run-001", "P1", body)
    piped = terminal.run("issues", "list")
    assert len(piped.splitlines()) == 2
    narrow()
    for arguments in ((), ("--run", "run-001")):
        shown = terminal.run("issues", "list", *arguments)
        require_80_columns(shown)
        assert "status" in shown
        assert "seen" in shown
        assert "category" not in shown
    assert all(word in piped for word in (key, "category", "tiers", "runs"))


@pytest.mark.integration
def test_doctor_and_init_fit_80_columns_of_a_terminal_and_are_whole_in_a_pipe(
    terminal: Terminal,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    narrow: Callable[[], None],
) -> None:
    configure(monkeypatch, settings)
    init = ("init", "--dry-run", "--ci-command", "sh check.sh")
    piped = terminal.run(*init)
    [command] = [line for line in piped.splitlines() if "git add" in line]
    assert len(command) > 80
    assert "what to do" in terminal.run("doctor", "--quick").splitlines()[0]
    narrow()
    found = terminal.run("doctor", "--quick")
    require_80_columns(found)
    assert "to do: autopack init, then commit" in " ".join(found.split())
    shown = terminal.run(*init)
    steps = shown.partition("Left to do:")[2]
    require_80_columns(steps)
    assert command in re.sub(r" \\\n +", " ", steps)  # as the shell reads it
    assert " ".join(steps.replace("\\\n", "").split()) == " ".join(
        piped.partition("Left to do:")[2].split()
    )


def configure(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """Have commands read these settings from the environment."""
    monkeypatch.setenv("AUTOPACK_REPO_PATH", str(settings.repo_path))
    monkeypatch.setenv("AUTOPACK_HOME", str(settings.home))
    monkeypatch.setenv("AUTONOMOUS_RUNS_DIR", str(settings.autonomous_runs_dir))
    monkeypatch.setenv("DATABASE_URL", str(settings.database_url))
    monkeypatch.setenv("AUTOPACK_PORT", "1")  # unused


def _commands() -> Iterator[str]:
    for name in COMMANDS:
        yield from _named(name, get_command(import_module(f"autopack.cli.{name}").app))


def _named(name: str, command: Any) -> Iterator[str]:
    if not isinstance(command, TyperGroup):
        yield name
        return
    if command.invoke_without_command:
        yield name
    for below, each in command.commands.items():
        yield from _named(f"{name} {below}", each)


def _python(*arguments: str, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


@pytest.mark.integration
def test_a_misspelt_setting_is_reported_with_the_nearest_known_one(
    git_repo: GitRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(git_repo.path)
    (tmp_path / "settings").write_text("AUTOPACK_PROT=9000\n")
    monkeypatch.setenv("AUTOPACK_ENV_FILE", str(tmp_path / "settings"))
    monkeypatch.setenv("AUTOPACK_BASE_BRANHC", "main")
    monkeypatch.setenv("AUTOPACK_API_KEY", "k")
    monkeypatch.setenv("AUTOPACK_OF_ANOTHER_PROGRAM", "x")
    assert main(["init", "--dry-run"]) == 0
    assert capsys.readouterr().err.splitlines() == [
        f"autopack: warning: {wrong} is not a setting; the nearest known one is {right}"
        for wrong, right in (
            ("AUTOPACK_BASE_BRANHC", "AUTOPACK_BASE_BRANCH"),
            ("AUTOPACK_PROT", "AUTOPACK_PORT"),
        )
    ]


@pytest.mark.integration
def test_the_doctor_asks_the_service_that_the_client_would_ask(
    terminal: Terminal, settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def asked() -> str:
        found = terminal.json("doctor", "--quick", exit_code=1)["findings"]
        [of_service] = [each for each in found if each["check"] == "service"]
        return str(of_service["detail"])

    configure(monkeypatch, settings)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "autopack" / "autopack.toml"
    file.parent.mkdir()
    file.write_text("adress = 'x'\n")
    assert "'adress' is not a setting" in asked()
    file.write_text("url = 'http://127.0.0.1:7'\n")
    assert "http://127.0.0.1:7" in asked()
    monkeypatch.setenv("API_URL", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9" in asked()


@pytest.mark.integration
def test_attention_says_what_needs_a_person_and_what_to_do(
    terminal: Terminal, autopack: Autopack, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert terminal.run("attention") == "Nothing needs you.\n"
    terminal.run("run", "start", plan)
    autopack.submit_builder_result("run-001", "P1", {"status": "success"})
    lines = terminal.run("attention").splitlines()
    assert lines[0] == "notice: run-001 succeeded and may be merged into main"
    assert lines[1].endswith("UTC, run_eligible:run-001")
    assert lines[2] == "    Review and merge it: autopack promote run-001 --open"
    assert terminal.json("attention")["count"] == 1
    with monkeypatch.context() as few:
        few.setattr("autopack.services.attention.MOST_OF_A_KIND", 0)
        told = terminal.run("attention")
    assert told == "Nothing needs you.\nThere are more: `autopack run list` shows all runs.\n"
    told = terminal.run("attention", "dismiss", "run_eligible:run-001")
    assert told.startswith("Run run-001 is dismissed by local:operator@")
    assert "not_dismissible" in terminal.refusal("attention", "dismiss", "disk_low:home")
    assert terminal.run("attention") == "Nothing needs you.\n"


class TestWebhooks:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"webhook_private": True})

    @pytest.mark.integration
    def test_are_made_listed_tested_and_removed(
        self, terminal: Terminal, autopack: Autopack
    ) -> None:
        address = ("--address", "http://127.0.0.1:9/s3cr3t", "--kind", "RunEnded")
        secret = terminal.run("webhooks", "create", "--name", "chat", *address)
        assert secret.startswith("whsec_")
        shown = terminal.run("webhooks", "list")
        assert "http://127.0.0.1:9 " in shown
        assert secret.strip() not in shown
        assert "is on its way" in terminal.run("webhooks", "test", "chat")
        (delivery,) = terminal.json("webhooks", "deliveries", "chat")["deliveries"]
        assert delivery["message_id"] in terminal.run("webhooks", "deliveries", "chat")
        again = terminal.run("webhooks", "redeliver", "chat", delivery["message_id"])
        assert again == f"{delivery['message_id']} is waiting.\n"
        assert "is on" in terminal.run("webhooks", "enable", "chat")
        wrong = ("--address", "http://127.0.0.1/", "--kind", "Ended")
        assert "RunEnded" in terminal.refusal("webhooks", "create", "--name", "x", *wrong)
        assert "is removed" in terminal.run("webhooks", "remove", "chat")
        assert terminal.json("webhooks", "list") == {"webhooks": []}


@pytest.mark.integration
def test_nodes_are_listed_and_those_that_are_gone_removed(
    terminal: Terminal, autopack: Autopack, app: FastAPI
) -> None:
    context = app.state.context
    with context.writing() as session:
        values = {"place": "host-2:/srv/clone", "version": "1.0", "generation": "1"}
        nodes.put_node(session, "0123456789abcdef", address=None, **values)
        session.execute(
            text("UPDATE nodes SET heartbeat_at = '2026-11-24' WHERE id = '0123456789abcdef'")
        )
        session.commit()
    shown = terminal.run("nodes", "list")
    assert [line.split()[0] for line in shown.splitlines()[1:]] == [
        context.node_id,
        "0123456789abcdef",
    ]
    assert re.search("host-2:/srv/clone +silent +2026-11-24 ", shown)
    said = "Node '0123456789abcdef' at host-2:/srv/clone is removed.\n"
    assert terminal.run("nodes", "remove", "0123456789abcdef") == said
    (left,) = terminal.json("nodes", "list")["nodes"]
    assert left["id"] == context.node_id
    assert "not_found" in terminal.refusal("nodes", "remove", "0123456789abcdef")
