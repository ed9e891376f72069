"""Find the command that checks a project, by the files in its top folder."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import Settings, repository_top

# What tests need, and git usually ignores: without it in the sandbox they cannot run.
_PACKAGES: Final = (".venv", "venv", "node_modules")
_TEST_FOLDERS = (".", "tests", "test")
_MAKE_TARGET = re.compile(r"^(test|check)\s*:(?!=)", re.MULTILINE)
_NPM_PLACEHOLDER = "no test specified"  # the default of `npm init`


NOTHING = "true"  # installs that a CI machine repeats, although it has them already


@dataclass(frozen=True, slots=True)
class Checks:
    """`command` is None for pytest, which the gate runs itself; `needs` installs it."""

    name: str
    command: str | None
    needs: str = NOTHING


def find_checks(folder: Path) -> Checks | None:
    """Return how the project at `folder` is checked; None when no file shows it."""
    if _has_pytest(folder):
        return Checks("pytest", None, _python_needs(folder))
    if (folder / "tox.ini").is_file():
        return Checks("tox", "tox", "python -m pip install tox")
    if _npm_test(folder):
        is_locked = (folder / "package-lock.json").is_file()
        return Checks("npm", "npm test", "npm ci" if is_locked else "npm install")
    if (folder / "Cargo.toml").is_file():
        return Checks("cargo", "cargo test")
    if (folder / "go.mod").is_file():
        return Checks("go", "go test ./...")
    target = _MAKE_TARGET.search(_read(folder / "Makefile"))
    return Checks("make", f"make {target[1]}") if target else None


def hidden_packages(settings: Settings) -> str | None:
    """Return the setting that shows the project's installed packages to CI commands.

    None where there are no such packages, or they are shown already.
    """
    top = repository_top(settings.repo_path)
    shown = settings.ci_readable_paths
    missing = [
        folder
        for folder in (top / name for name in _PACKAGES)
        if folder.is_dir() and not any(folder.is_relative_to(path) for path in shown)
    ]
    if not missing:
        return None
    variable = Settings.variable("ci_readable_paths")
    return f"{variable}={','.join(map(str, (*shown, *missing)))}"


def _has_pytest(folder: Path) -> bool:
    if (folder / "pytest.ini").is_file() or "[tool:pytest]" in _read(folder / "setup.cfg"):
        return True
    if "pytest" in _pyproject(folder).get("tool", {}):
        return True
    patterns = ("conftest.py", "test_*.py", "*_test.py")
    return any(
        next((folder / place).glob(pattern), None)
        for place in _TEST_FOLDERS
        for pattern in patterns
    )


def _python_needs(folder: Path) -> str:
    needs = ["python -m pip install pytest"]
    for name in ("requirements.txt", "requirements-dev.txt"):
        if (folder / name).is_file():
            needs.append(f"-r {name}")
    if "project" in _pyproject(folder) or (folder / "setup.py").is_file():
        needs.append("-e .")
    return " ".join(needs)


def _npm_test(folder: Path) -> bool:
    try:
        script = json.loads(_read(folder / "package.json"))["scripts"]["test"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(script, str) and _NPM_PLACEHOLDER not in script


def _pyproject(folder: Path) -> dict[str, dict[str, object]]:
    try:
        return tomllib.loads(_read(folder / "pyproject.toml"))
    except tomllib.TOMLDecodeError:
        return {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
