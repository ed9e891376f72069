"""The commands of docs/backup.md, word for word, in their order."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.cli.test_commands import configure
from tests.conftest import make_git_repo, serve_here

from autopack.cli.app import main
from autopack.config import Settings
from autopack.main import create_app

from .test_backup import start, submit

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_the_commands_of_the_page_back_up_restore_export_and_remove(
    settings: Settings,
    git_repo: GitRepo,
    tmp_path: Path,
    spare_database_url: str,
    dropped_projects: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(monkeypatch, settings)
    (tmp_path / "backups").mkdir()
    monkeypatch.chdir(tmp_path)
    told: list[str] = []

    def run(block: str) -> None:
        """Run a block: Autopack's commands in this process, the others in a shell."""
        for old, new in (
            ("/path/to/project", str(git_repo.path)),
            ("/var/backups", str(tmp_path / "backups")),
            ("/tmp/drill", str(tmp_path / "drill")),  # noqa: S108 - of the page
            ("$(date +%F)", "2026-11-27"),
        ):
            block = block.replace(old, new)
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            if program == "autopack":
                code = main(arguments)
                out, err = capsys.readouterr()
                assert code == 0, f"{line}: {out}{err}"
                told.append(out)
                continue
            done = subprocess.run(
                ["bash", "-c", f"{line} && pwd"], check=True, stdout=subprocess.PIPE, text=True
            )
            os.chdir(done.stdout.splitlines()[-1])

    backup, drill, *rest = BLOCK.findall((ROOT / "docs/backup.md").read_text())
    with serve_here(create_app(settings), settings) as server:
        monkeypatch.setenv("API_URL", server.url)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            shop = {"name": "shop", "repository": str(make_git_repo(tmp_path / "shop").path)}
            client.post("/projects", json=shop).raise_for_status()
            for place in ("", "/projects/shop"):
                client.base_url = httpx.URL(f"{server.url}{place}/")
                start(client, "run-001")  # type: ignore[arg-type]  # its words are httpx's
                submit(client, "run-001", "P0", "done.txt")  # type: ignore[arg-type]
        run(backup)
        for block in rest:
            run(block)
    assert "has 1 runs" in told[0]
    assert "1 of 1 runs are as they were" in "".join(told[3:6])
    assert "is here already" in "".join(told)
    assert "would lose their details" in told[-2]

    monkeypatch.delenv("AUTOPACK_REPO_PATH")
    monkeypatch.delenv("AUTOPACK_HOME")
    monkeypatch.delenv("AUTONOMOUS_RUNS_DIR")
    monkeypatch.setenv("DATABASE_URL", spare_database_url)  # a Postgres of its own costs seconds
    told.clear()
    run(drill)
    assert "1 of 1 runs are as they were" in told[0]
    assert "run-001" in told[1]
    for name in git_repo.git("ls-tree", "-r", "--name-only", "main").split():
        assert (tmp_path / "drill" / name).is_file(), name
