"""A new field of a phase changes five files (docs/how-to-add.md), as each shape is defined once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autopack.migrating import newest_revision

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[1]
MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision = "mood"
down_revision = "{head}"
branch_labels = depends_on = None


def upgrade() -> None:
    op.add_column("phases", sa.Column("mood", sa.Text(), nullable=False, server_default="calm"))
    op.alter_column("phases", "mood", server_default=None)
"""
# For each file: the line that exists, and what is added after it.
CHANGES = {
    "src/autopack/domain/run.py": ("    allow_empty: bool\n", '    mood: str = "calm"\n'),
    "src/autopack/models/runs.py": ("    is_high_risk: Mapped[bool]\n", "    mood: Mapped[str]\n"),
    "src/autopack/views/runs.py": ("    failure_reason: str | None\n", "    mood: str\n"),
    "src/autopack/mirror/pages.py": (
        '    yield "Complexity", phase.complexity\n',
        '    yield "Mood", phase.mood\n',
    ),
    "alembic/versions/2099_01_01_0000_mood.py": ("", MIGRATION),
}


@pytest.fixture
def shown(
    git_repo: GitRepo, tmp_path: Path, spare_database_url: str
) -> Callable[[Path], dict[str, Any]]:
    """Start a run with a copy of the package; return its phase by HTTP, MCP, client and page."""

    def show(copy: Path) -> dict[str, Any]:
        program = ROOT / "tests/shown_phase.py"
        done = subprocess.run(
            [sys.executable, program, git_repo.path, tmp_path, spare_database_url],
            env={**os.environ, "PYTHONPATH": f"{copy / 'src'}:{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found

    return show


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package and its migrations that the test changes."""
    # With __pycache__: what the test leaves unchanged need not be compiled again.
    for folder in ("src/autopack", "alembic"):
        shutil.copytree(ROOT / folder, tmp_path / "copy" / folder)
    return tmp_path / "copy"


@pytest.mark.campaigns  # it starts a whole service from a copy of the package
def test_a_new_field_of_a_phase_changes_five_files_and_is_shown_everywhere(
    copy: Path, shown: Callable[[Path], dict[str, Any]]
) -> None:
    head = newest_revision()
    for name, (line, added) in CHANGES.items():
        path = copy / name
        text = path.read_text() if path.exists() else ""
        assert line in text, name
        path.write_text(text.replace(line, line + added.replace("{head}", head or ""), 1))
    found = shown(copy)
    assert [found[source]["mood"] for source in ("http", "mcp", "client")] == ["calm"] * 3
    assert "- **Mood:** calm\n" in found["page"]


def test_the_check_list_for_a_field_names_these_files() -> None:
    page = (ROOT / "docs/how-to-add.md").read_text()
    section = page.split("## A field of a run, tier or phase")[1].split("\n## ")[0]
    files = [Path(name) for name in CHANGES]
    named = set(
        re.findall(r"`((?:domain|models|views|mirror)/\w+\.py|alembic/versions/)`", section)
    )
    assert named == {
        f"{file.parent}/" if file.parts[0] == "alembic" else "/".join(file.parts[2:])
        for file in files
    }
