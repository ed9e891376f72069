"""The definition of the service for the machine's service manager: systemd or launchd.

It is the operator's, and outside of the repository, so it is written into a folder of the manager.
A definition that is there is kept.
"""

from __future__ import annotations

import os
import plistlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ..config import Settings, repository_top, settings_in_environment

# The managers send SIGTERM. `serve` then stops its children, the embedded Postgres too.
STOP_SECONDS: Final = 60
RESTART_SECONDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A file for the service manager, and the commands that start the service by it."""

    file: Path
    content: bytes
    start: Sequence[str]
    unset: Sequence[str] = ()  # settings that the started service will not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What the manager starts: the command's words, their folder and their environment."""

    project_id: str
    words: Sequence[str]
    folder: Path
    environment: Mapping[str, str]


def unit_here(settings: Settings, environment: Mapping[str, str]) -> Unit:
    """Return the file for this machine's manager: of the user, or of the machine for root."""
    inherited = {"PATH": environment.get("PATH", os.defpath)}
    if settings.env_file is not None:
        inherited[Settings.variable("env_file")] = str(settings.env_file)
    program = Program(
        project_id=settings.project_id,
        # -P: Python must not import modules of the repository, which is its folder.
        words=[sys.executable, "-P", "-m", "autopack", "serve"],
        folder=repository_top(settings.repo_path),
        environment=inherited,
    )
    is_of_user = os.geteuid() != 0
    if sys.platform == "darwin":
        library = Path("~/Library").expanduser()
        agents = library / "LaunchAgents" if is_of_user else Path("/Library/LaunchDaemons")
        logs = library / "Logs" if is_of_user else Path("/Library/Logs")
        unit = launchd_agent(program, agents, logs)
    else:
        own = Path(environment.get("XDG_CONFIG_HOME") or "~/.config").expanduser() / "systemd/user"
        folder = own if is_of_user else Path("/etc/systemd/system")
        unit = systemd_unit(program, folder, is_of_user=is_of_user)
    return replace(unit, unset=settings_in_environment())


def systemd_unit(program: Program, folder: Path, *, is_of_user: bool) -> Unit:
    """Return a unit for systemd, in its folder of one user's or of all units."""
    name = f"autopack-{program.project_id}.service"
    environment = "".join(
        f"Environment={_quoted(f'{variable}={value}')}\n"
        for variable, value in program.environment.items()
    )
    content = f"""\
[Unit]
Description=Autopack: {program.project_id}
After=network.target

[Service]
Type=exec
WorkingDirectory={_path(program.folder)}
{environment}ExecStart={' '.join(_quoted(word.replace('$', '$$')) for word in program.words)}
Restart=on-failure
RestartSec={RESTART_SECONDS}
KillMode=mixed
TimeoutStopSec={STOP_SECONDS}

[Install]
WantedBy={'default.target' if is_of_user else 'multi-user.target'}
"""
    systemctl = "systemctl --user" if is_of_user else "systemctl"
    start = [f"{systemctl} daemon-reload", f"{systemctl} enable --now {name}"]
    if is_of_user:
        # Else systemd stops the service when its user logs out.
        start.append("loginctl enable-linger")
    return Unit(file=folder / name, content=content.encode(), start=start)


def launchd_agent(program: Program, folder: Path, logs: Path) -> Unit:
    """Return a property list for launchd, in its folder of one user's or of all services."""
    label = f"autopack.{program.project_id}"
    document = {
        "Label": label,
        "ProgramArguments": list(program.words),
        "WorkingDirectory": str(program.folder),
        "EnvironmentVariables": dict(program.environment),
        "RunAtLoad": True,
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": RESTART_SECONDS,
        "ExitTimeOut": STOP_SECONDS,
        "StandardOutPath": str(logs / f"{label}.log"),
        "StandardErrorPath": str(logs / f"{label}.log"),
    }
    file = folder / f"{label}.plist"
    start = [f"launchctl load -w {shlex.quote(str(file))}"]
    return Unit(file=file, content=plistlib.dumps(document, sort_keys=False), start=start)


def _quoted(word: str) -> str:
    """Quote a word as systemd reads it; `%` begins a specifier there."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"'


def _path(path: Path) -> str:
    """Return a path for a field that takes the whole line, without quotes."""
    return str(path).replace("%", "%%")
