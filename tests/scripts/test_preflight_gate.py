"""The gate before a commit counts, in a project that has nothing of ours."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from autopack.domain.results import CiReport
from autopack.domain.terms import Verdict

pytestmark = pytest.mark.e2e

GATE = Path(__file__).resolve().parents[2] / "scripts" / "preflight_gate.sh"
CHECKS = """\
import pathlib
import pytest

def test_unmarked(): pass

@pytest.mark.unit
def test_flaky():
    seen = pathlib.Path("seen")
    was_there = seen.exists()
    seen.touch()
    assert was_there

@pytest.mark.integration
@pytest.mark.safety_critical
def test_both(): pass

@pytest.mark.e2e
def test_long():
    assert pathlib.Path("mended").exists()

@pytest.mark.skip
def test_left_out(): pass
"""


@dataclass
class Project:
    """A project with a copy of the gate and tests of its own."""

    path: Path

    def gate(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHON": sys.executable,
            "BACKOFF_SECONDS": "0",
            "PREFLIGHT_REPORT": "report.json",
            # What else is installed beside pytest only costs time here.
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            **settings,
        }
        return subprocess.run(
            ["bash", self.path / "scripts" / GATE.name, *arguments],
            cwd="/",
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def report(self) -> CiReport:
        """Read the report as the service would, given the commit."""
        document = json.loads((self.path / "report.json").read_text())
        return CiReport.model_validate({**document, "commit_sha": "0" * 40})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    path = tmp_path / "project"
    (path / "scripts").mkdir(parents=True)
    shutil.copy(GATE, path / "scripts")
    (path / "test_sample.py").write_text(CHECKS)
    return Project(path)


def test_normal_runs_what_is_not_kept_for_strict_and_names_what_was_flaky(project: Project) -> None:
    done = project.gate(PREFLIGHT_JUNIT="out/junit.xml")
    assert done.returncode == 0, done.stderr
    assert "flaky: test_sample::test_flaky" in done.stderr
    report = project.report()
    assert (report.verdict, report.flaky) == (Verdict.GREEN, True)
    assert report.failing_checks == ("test_sample::test_flaky",)
    assert report.tests is not None
    assert (report.tests.total, report.tests.passed, report.tests.skipped) == (4, 3, 1)
    junit = (project.path / "out/junit.xml").read_text()
    assert "test_both" in junit
    assert "test_long" not in junit


def test_strict_runs_everything_and_gives_up_after_its_tries(project: Project) -> None:
    done = project.gate(CI_PROFILE="strict", MAX_ATTEMPTS="2")
    assert done.returncode == 1
    assert "try 2 of 2" in done.stderr
    assert "try 3" not in done.stderr
    report = project.report()
    assert (report.verdict, report.flaky) == (Verdict.RED, False)
    assert report.failing_checks == ("test_sample::test_long",)
    assert report.tests is not None
    assert (report.tests.total, report.tests.failed) == (5, 1)


@pytest.mark.parametrize("selected", ["nothing", "test_left_out"])
def test_a_run_of_no_test_is_red_at_once(project: Project, selected: str) -> None:
    done = project.gate("-k", selected)
    assert done.returncode == 1
    assert "no test ran" in done.stderr
    assert "try 2" not in done.stderr
    assert project.report().verdict is Verdict.RED


@pytest.mark.parametrize(
    ("command", "code", "verdict", "flaky"),
    [
        ("true", 0, Verdict.GREEN, False),
        ("exit 3", 1, Verdict.RED, False),
        ("test -e seen || { touch seen; false; }", 0, Verdict.GREEN, True),
        ("no-such-command", 127, Verdict.DID_NOT_RUN, False),
        ('echo "<testsuite/>" >"$PREFLIGHT_JUNIT"', 1, Verdict.RED, False),
        ('test "$CI_PROFILE" = normal', 0, Verdict.GREEN, False),
    ],
)
def test_a_projects_own_command_counts_by_its_exit_code(
    project: Project, command: str, code: int, verdict: Verdict, flaky: bool
) -> None:
    done = project.gate(PREFLIGHT_COMMAND=command)
    assert done.returncode == code, done.stderr
    assert (project.report().verdict, project.report().flaky) == (verdict, flaky)


def test_without_pytest_the_gate_did_not_run(project: Project) -> None:
    python = project.path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    python.chmod(0o755)
    done = project.gate(PYTHON=str(python))
    assert done.returncode == 127
    assert "pytest" in done.stderr
    assert project.report().verdict is Verdict.DID_NOT_RUN


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CI_PROFILE", "loose"),
        ("MAX_ATTEMPTS", "0"),
        ("MAX_ATTEMPTS", "a[$(touch pwned)]"),
        ("BACKOFF_SECONDS", "-1"),
    ],
)
def test_a_wrong_setting_is_named(project: Project, name: str, value: str) -> None:
    done = project.gate(**{name: value})
    assert done.returncode == 2
    assert f"{name} is '{value}'" in done.stderr
    assert not (project.path / "pwned").exists()
