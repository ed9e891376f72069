"""The tutorial, run word for word. Its commands for installation run in `.ci/run` alone."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.campaigns]

ROOT = Path(__file__).resolve().parents[1]


def _page_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("page", ROOT / ".ci" / "page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tutorial_ends_with_a_promoted_run(tmp_path: Path, spare_database_url: str) -> None:
    page = _page_module()
    text = "\n".join(page.script((ROOT / "docs/tutorial.md").read_text(), is_installed=True))
    commands = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=tmp_path,
        env={
            **page.PERSON,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "AUTOPACK_PORT": "1",  # not free for others than root, so that a free one is taken
            "DATABASE_URL": spare_database_url,
            # The sandbox shows no Python outside of /usr.
            "AUTOPACK_CI_READABLE_PATHS": sys.base_prefix,
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "red on " in done.stdout
    assert "repair-greeter  DONE_SUCCESS" in done.stdout
    assert "promotion: eligible" in done.stdout
    assert done.stdout.rstrip().endswith("OK")  # the tests on main
    assert (tmp_path / "greeter" / "README.md").is_file()
