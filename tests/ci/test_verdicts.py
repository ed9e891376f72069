"""The verdict from a command's end and its reports. Without a sandbox, so it runs everywhere."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from autopack.ci import CheckRunner, CommandOutcome, Job
from autopack.config import Settings
from autopack.domain.terms import Verdict

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
GREEN, RED, DID_NOT_RUN = Verdict.GREEN, Verdict.RED, Verdict.DID_NOT_RUN
PASS = '<testcase classname="a" name="one"/>'
FAIL = '<testcase classname="a" name="two"><failure>no</failure></testcase>'
FAIL_AND_SKIP = '<testcase classname="a" name="four"><failure/><skipped/></testcase>'
SKIP = '<testcase classname="a" name="three"><skipped/></testcase>'
BOMB = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><testsuite>&b;</testsuite>'
OUTSIDE = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><testcase name="&a;"/>'


def run(tree: Path, command: str, junit: str | None = None) -> CommandOutcome:
    tree.mkdir(exist_ok=True)
    runner = CheckRunner(Settings(_env_file=None, repo_path=tree, ci_sandbox="none"))
    job = Job(
        tree=tree,
        objects=tree,
        command=command,
        timeout_seconds=20,
        environment={},
        junit=junit,
    )
    return runner.run(job, lambda: False)


@pytest.mark.parametrize(
    ("command", "verdict", "reason"),
    [
        ("true", GREEN, "exit 0"),
        ("exit 3", RED, "exit 3"),
        ("kill -9 $$", RED, "exit 137"),
        ("echo fine; echo '3 failed, 1 passed'; exit 1", RED, "exit 1: 3 failed, 1 passed"),
        ("no-such-command", DID_NOT_RUN, "no-such-command: not found (exit 127)"),
        ("exit 127", DID_NOT_RUN, "was not found or is not executable (exit 127)"),
        ("./not-executable", DID_NOT_RUN, "Permission denied (exit 126)"),
    ],
)
def test_the_exit_decides(tmp_path: Path, command: str, verdict: Verdict, reason: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "not-executable").touch(0o644)
    outcome = run(tmp_path / "tree", command)
    assert (outcome.verdict, outcome.sandbox) == (verdict, "none")
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("checks", "reason"),
    [
        (
            "seq 9; echo FAILED a.py::one - assert 1 == 2; echo; echo 1 failed, 3 passed; exit 1",
            "exit 1: 9 | FAILED a.py::one - assert 1 == 2 | 1 failed, 3 passed",
        ),
        ("exit 1", "exit 1: preflight: red: never green in 2 tries (exit code 1)"),
    ],
)
def test_the_reason_behind_the_gate_is_what_the_checks_said(
    tmp_path: Path, checks: str, reason: str
) -> None:
    scripts = tmp_path / "tree" / "scripts"
    scripts.mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "preflight_gate.sh", scripts)
    gate = "BACKOFF_SECONDS=0 MAX_ATTEMPTS=2 bash scripts/preflight_gate.sh"
    outcome = run(tmp_path / "tree", f"PREFLIGHT_COMMAND='{checks}' {gate}")
    assert (outcome.verdict, outcome.reason) == (RED, reason)


def test_the_line_that_becomes_a_reason_shows_no_credential(tmp_path: Path) -> None:
    token = "ghp_" + "a1B2c3D4e5F6" * 3
    outcome = run(tmp_path / "tree", f"echo login with {token}; exit 1")
    assert outcome.reason == "exit 1: login with [redacted: github token]"


@pytest.mark.parametrize(
    ("report", "status", "verdict", "reason"),
    [
        (f"<testsuite>{PASS}{SKIP}</testsuite>", 0, GREEN, "exit 0"),
        (f"<testsuites><testsuite>{PASS}{FAIL}</testsuite></testsuites>", 1, RED, "exit 1: a.two"),
        (f"<testsuite>{FAIL}</testsuite>", 0, RED, "exit 0, but tests failed: a.two"),
        (f"<testsuite>{SKIP}</testsuite>", 0, RED, "no test ran"),
        (f"<testsuite>{PASS}{FAIL_AND_SKIP}</testsuite>", 0, RED, "tests failed: a.four"),
        ("<testsuite/>", 0, RED, "no test ran"),
        (f"<testsuite>{PASS}</testsuite>", 127, RED, "exit 127"),
        (f"<testsuite>{FAIL}</testsuite>", 127, RED, "exit 127: a.two"),
        ("not xml", 0, RED, "is not a JUnit report"),
        (BOMB, 0, RED, "it has a DOCTYPE"),
        (OUTSIDE, 0, RED, "it has a DOCTYPE"),
        ("<a>" * 1000 + "</a>" * 1000, 0, RED, "it is nested too deeply"),
    ],
)
def test_reports_count_the_tests(
    tmp_path: Path, report: str, status: int, verdict: Verdict, reason: str
) -> None:
    (tmp_path / "report").write_text(report)
    command = f"mkdir out; cp {tmp_path}/report out/r.xml; exit {status}"
    outcome = run(tmp_path / "tree", command, "out/**/*.xml")
    assert outcome.verdict is verdict
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("failing", "reason"),
    [(5, "a.t0, a.t1, a.t2, a.t3, a.t4"), (6, "a.t0, a.t1, a.t2, a.t3, a.t4 and 1 more")],
)
def test_the_first_five_failing_tests_are_named(tmp_path: Path, failing: int, reason: str) -> None:
    cases = [f'<testcase classname="a" name="t{n}"><failure/></testcase>' for n in range(failing)]
    (tmp_path / "report").write_text(f"<testsuite>{''.join(cases)}</testsuite>")
    outcome = run(tmp_path / "tree", f"mkdir out; cp {tmp_path}/report out/r.xml; exit 1", "out/*")
    assert outcome.reason == f"exit 1: {reason}"


@pytest.mark.parametrize(
    "trick",
    [
        "ln -s {outside}/report.xml r.xml",
        "ln -s {outside} out",
        "mkfifo r.xml",
        "mkdir r.xml",
        "true",  # the report that the commit brought along
    ],
)
def test_no_report_but_one_that_was_written_in_the_work_tree_is_read(
    tmp_path: Path, trick: str
) -> None:
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    for folder in (tree, outside):
        folder.mkdir()
        (folder / "report.xml").write_text(f"<testsuite>{PASS}</testsuite>")
    outcome = run(tree, trick.format(outside=outside), "**/*.xml")
    assert outcome.verdict is RED
    assert "no test ran" in outcome.reason


def test_what_is_left_running_ends_without_a_sandbox_too(tmp_path: Path) -> None:
    outcome = run(tmp_path / "tree", "setsid sleep 600 & echo $! > pid")
    assert outcome.verdict is GREEN
    pid = int((tmp_path / "tree" / "pid").read_text())
    assert not Path(f"/proc/{pid}/exe").exists()  # a dead one has none, reaped or not


def test_the_tests_of_a_hostile_report_are_bounded(tmp_path: Path) -> None:
    many = "".join(f'<testcase name="t{number}"/>' for number in range(50_002))
    (tmp_path / "tree").mkdir()
    (tmp_path / "many").write_text(f"<testsuite>{many}</testsuite>")
    outcome = run(tmp_path / "tree", f"cp {tmp_path}/many out.xml", "*.xml")
    assert (outcome.verdict, outcome.cases) == (GREEN, None)
    long = f'<testcase classname="a" name="{"x" * 1_000_000}&#9;&#x202e;end"/>'
    (tmp_path / "long").write_text(f"<testsuite>{long}{PASS}{PASS}{SKIP}</testsuite>")
    outcome = run(tmp_path / "tree", f"cp {tmp_path}/long out.xml", "*.xml")
    names = [*(outcome.cases or {})]
    assert [len(name) for name in names] == [160, len("a.one"), len("a.three")]
    assert names[0].endswith("xx??end")


@pytest.mark.parametrize(
    ("cases", "state"),
    [
        (PASS + '<testcase classname="a" name="one"><failure/></testcase>', "failed"),
        (PASS + PASS, "passed"),
        (PASS + '<testcase classname="a" name="one"><skipped/></testcase>', "skipped"),
        ('<testcase classname="a" name="one"><skipped type="pytest.xfail"/></testcase>', "xfailed"),
    ],
)
def test_of_tests_of_one_name_the_worst_counts(tmp_path: Path, cases: str, state: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "report").write_text(f"<testsuite>{cases}</testsuite>")
    outcome = run(tmp_path / "tree", f"cp {tmp_path}/report out.xml", "*.xml")
    assert outcome.cases == {"a.one": state}
