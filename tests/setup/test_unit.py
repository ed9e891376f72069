"""The service's definition for systemd and launchd, as these read it."""

from __future__ import annotations

import os
import plistlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.cli.app import main
from autopack.setup.unit import Program, launchd_agent, systemd_unit

if TYPE_CHECKING:
    from tests.conftest import GitRepo

PROGRAM = Program(
    project_id="widget",
    words=["/bin/sh", "-c", 'echo "$HOME" 100%', "back\\slash"],
    folder=Path("/tmp/50% off"),  # noqa: S108 - a name with a specifier and a blank
    environment={"PATH": "/usr/bin:/my tools"},
)


@pytest.mark.unit
@pytest.mark.parametrize("is_of_user", [True, False])
def test_systemd_accepts_the_unit(tmp_path: Path, is_of_user: bool) -> None:
    unit = systemd_unit(PROGRAM, tmp_path, is_of_user=is_of_user)
    assert unit.file == tmp_path / "autopack-widget.service"
    lines = unit.content.decode().splitlines()
    assert "WorkingDirectory=/tmp/50%% off" in lines
    assert 'Environment="PATH=/usr/bin:/my tools"' in lines
    quoted = r'"/bin/sh" "-c" "echo \"$$HOME\" 100%%" "back\\slash"'
    assert f"ExecStart={quoted}" in lines
    assert any("enable --now autopack-widget.service" in step for step in unit.start)
    assert ("loginctl enable-linger" in unit.start) == is_of_user
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed: only the lines were checked")
    unit.file.write_bytes(unit.content)
    done = subprocess.run(
        [analyze, "verify", "--user" if is_of_user else "--system", str(unit.file)],
        env={"PATH": os.defpath, "XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.unit
def test_launchd_can_read_the_agent(tmp_path: Path) -> None:
    unit = launchd_agent(PROGRAM, tmp_path, tmp_path / "logs")
    read = plistlib.loads(unit.content)
    assert read["ProgramArguments"] == PROGRAM.words
    assert read["WorkingDirectory"] == str(PROGRAM.folder)
    assert read["EnvironmentVariables"] == PROGRAM.environment
    assert read["KeepAlive"] == {"SuccessfulExit": False}
    assert unit.file.name == f"{read['Label']}.plist"


@pytest.mark.integration
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_init_writes_the_unit_once_and_names_the_settings_it_lacks(
    git_repo: GitRepo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    platform: str,
) -> None:
    monkeypatch.chdir(git_repo.path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("AUTOPACK_PORT", "8123")
    monkeypatch.setenv("AUTOPACK_PROJECT_ID", "widget")
    monkeypatch.setattr(os, "geteuid", lambda: 1_000)
    monkeypatch.setattr(sys, "platform", platform)
    places = {
        "linux": tmp_path / "config/systemd/user/autopack-widget.service",
        "darwin": tmp_path / "Library/LaunchAgents/autopack.widget.plist",
    }
    file = places[platform]
    assert main(["init", "--service", "--dry-run"]) == 0
    assert not file.parent.exists()
    assert f"would write   {file}" in capsys.readouterr().out

    assert main(["init", "--service"]) == 0
    said = capsys.readouterr().out
    assert f"  written       {file}\n" in said
    assert "AUTOPACK_PORT, AUTOPACK_PROJECT_ID. They are set in this shell only" in said
    content = file.read_text()
    assert sys.executable in content
    assert str(git_repo.path) in content
    assert "8123" not in content

    file.write_text("mine\n")
    assert main(["init", "--service"]) == 0
    assert f"{file} is another one, and is kept" in capsys.readouterr().out
    assert file.read_text() == "mine\n"
