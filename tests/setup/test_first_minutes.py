"""The first ten minutes with one's own project, as its owner has them: nothing but the commands.

A foreign repository with two failing tests, its pytest in a virtual environment that git ignores.
Only what the commands say is done. The database is the embedded one, and the agents are scripts.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from autopack.ci.sandbox import Bubblewrap
from autopack.config import Settings

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.e2e, pytest.mark.campaigns]

FILES: dict[str, str | bytes | None] = {
    "cart.py": "def total(prices):\n    return 0\n\n\ndef count(prices):\n    return 0\n",
    "tests/test_cart.py": (
        "from cart import count, total\n\n\n"
        "def test_total():\n    assert total([2, 3]) == 5\n\n\n"
        "def test_count():\n    assert count([2, 3]) == 2\n"
    ),
    "conftest.py": "",
    ".gitignore": "/.venv\n__pycache__/\n",
}
PLAN = """
run: {run_id: cart}
tiers: [{tier_id: T1, tier_index: 0, name: Cart}]
phases:
  - {phase_id: P1, phase_index: 0, tier_id: T1, name: Repair the cart, complexity: low,
     task_category: security_auth_change}
"""
# The first try repairs one test of two; the second one reads in its task that CI was red.
BUILDER = """\
if grep -q test_count; then
    sed -i.old '6s/0/len(prices)/' cart.py
fi
sed -i.old '2s/0/sum(prices)/' cart.py
rm -f cart.py.old
"""
AUDITOR = "cat >/dev/null; echo RECOMMENDATION: approve\n"


class Owner:
    """Calls commands in the project, each in a process of its own."""

    def __init__(self, project: Path, home: Path) -> None:
        self.project = project
        self.environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(home),
            "AUTOPACK_PORT": "1",
            **{
                f"GIT_{role}_{what}": "ada@example.org"
                for role in ("AUTHOR", "COMMITTER")
                for what in ("NAME", "EMAIL")
            },
        }

    def call(self, *words: str, exit_code: int = 0) -> str:
        done = subprocess.run(
            words,
            cwd=self.project,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == exit_code, done.stdout
        return done.stdout

    def autopack(self, *words: str, exit_code: int = 0) -> str:
        return self.call(sys.executable, "-P", "-m", "autopack", *words, exit_code=exit_code)


def test_from_a_foreign_repository_to_an_eligible_branch(git_repo: GitRepo, tmp_path: Path) -> None:
    git_repo.git("rm", "--quiet", "-r", ".")
    git_repo.commit(FILES, "Start the cart")
    (git_repo.path / ".venv").symlink_to(sys.prefix)
    problem = Bubblewrap(Settings(_env_file=None, repo_path=git_repo.path)).problem
    if problem is not None:
        pytest.skip(f"no sandbox on this machine: {problem}")
    (tmp_path / "plan.yaml").write_text(PLAN)
    for name, text in (("builder.sh", BUILDER), ("auditor.sh", AUDITOR)):
        (tmp_path / name).write_text(text)
    owner = Owner(git_repo.path, tmp_path)

    steps = owner.autopack("init")
    assert "checks by pytest" in steps
    [commit] = re.findall(r"^ +(git add .* && git commit)$", steps, re.MULTILINE)
    owner.call("sh", "-c", f"{commit} --quiet --message='Set Autopack up'")
    assert "has no pytest" in owner.autopack("ci", "try", exit_code=3)
    [setting] = re.findall(r"^ +(AUTOPACK_CI_READABLE_PATHS=.*)$", steps, re.MULTILINE)
    owner.environment.update([setting.split("=", 1)])
    tried = owner.autopack("ci", "try", exit_code=1)
    assert "0 of 2 tests passed" in tried

    said = owner.autopack(
        *("up", "../plan.yaml"),
        *("--builder", shlex.join(["sh", str(tmp_path / "builder.sh")])),
        *("--auditor", shlex.join(["sh", str(tmp_path / "auditor.sh")])),
    )
    assert "cart  DONE_SUCCESS" in said
    assert "2/2 tries" in said
    assert "promotion: eligible" in said
    [verify] = re.findall(r"^May it be merged: autopack (.*)$", said, re.MULTILINE)
    assert "may go to 'main'" in owner.autopack(*verify.split())
    assert owner.call("git", "status", "--porcelain") == ""
