"""No room for what we keep is 503 with the reason, and never a try that an agent has used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from autopack.config import Settings
from autopack.main import create_app
from autopack.mirror import durability
from autopack.services.upkeep import keep_up

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]
PHASE = "/runs/run-001/phases/P0"
PLAN: Json = {
    "run": {"run_id": "run-001"},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
    "phases": [
        {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T1", "name": "Do it"}
        for index in range(2)
    ],
}
DISK_BYTES = 4_000_000
# Does not compress well, so that its object is larger than what a nearly full disk has left.
LINES = "".join(f"+{number * 7_919_777_777_777 % 10**15:x}\n" for number in range(5_000))


def new_file(name: str, lines: str = LINES) -> Json:
    count = lines.count("\n")
    return {
        "status": "success",
        "patch_content": f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n"
        f"+++ b/{name}\n@@ -0,0 +1,{count} @@\n{lines}",
    }


class Disk:
    """A small disk of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self, left: int = 0) -> None:
        """Leave so many bytes."""
        size = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        self._ballast.write_bytes(bytes(max(0, size - left)))

    def free(self) -> None:
        self._ballast.unlink()


@contextmanager
def disk_at(folder: Path) -> Iterator[Disk]:
    """Put a disk of a few megabytes below a folder, with what is in there. Needs root."""
    kept = folder.with_name(f"{folder.name}-before")
    folder.mkdir(parents=True, exist_ok=True)
    folder.rename(kept)
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("to mount a small disk takes a privileged account")
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


PLACES: dict[str, Callable[[Settings], Path]] = {
    "home": lambda settings: settings.home,
    "objects": lambda settings: settings.repo_path / ".git" / "objects",
    "git_dir": lambda settings: settings.repo_path / ".git",
    "runs": lambda settings: settings.autonomous_runs_dir,
}


@pytest.fixture(params=PLACES)
def disk(request: pytest.FixtureRequest, settings: Settings, git_repo: GitRepo) -> Iterator[Disk]:
    with disk_at(PLACES[request.param](settings)) as disk:
        yield disk


@pytest.fixture
def served(disk: Disk, settings: Settings) -> Iterator[TestClient]:
    app = create_app(settings)
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        yield client


@pytest.mark.parametrize("left", [0, 8_192, 32_768])
def test_a_disk_without_room_is_503_and_uses_no_try(
    served: TestClient, disk: Disk, left: int
) -> None:
    assert served.post("/runs/start", json=PLAN).status_code == 201
    disk.fill(left)
    issue = {"issue_key": "x", "source": "test", "category": "test_failure"}
    for path, body in (
        (f"{PHASE}/builder_result", new_file("src/new.txt")),
        (f"{PHASE}/record_issue", issue),
        ("/runs/start", {**PLAN, "run": {"run_id": "run-002"}}),
    ):
        answer = served.post(path, json=body)
        assert answer.status_code in (200, 201, 503), answer.text
        if answer.status_code == 503:
            assert answer.headers["content-type"] == "application/problem+json"
            assert any(
                words in answer.json()["detail"]
                for words in (
                    "No space left",
                    "cannot be written",
                    "Free some space",
                    "not show it",
                )
            ), answer.text
    if left == 0:
        health = served.get("/health")
        assert health.status_code == 503
        assert "No space left" in health.text
    disk.free()
    again = served.post(f"{PHASE}/builder_result", json=new_file("src/new.txt"))
    assert again.status_code == 200, again.text
    assert served.get("/health").json()["checks"]["storage"]["status"] == "ok"
    phases = served.get("/runs/run-001").json()["tiers"][0]["phases"]
    assert phases[0]["state"] == "COMPLETE"
    assert phases[0]["builder_attempts_used"] == 1


def _tree(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): _content(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name != durability.MARK
    }


def _content(path: Path) -> object:
    """Read a file but for its revision: one that was left alone shows an earlier one."""
    text = re.sub(r"(?i)(revision\W+)\d+", r"\g<1>0", path.read_text())
    return json.loads(text) if path.suffix == ".json" else text


@pytest.fixture
def two_runs(client: TestClient) -> None:
    """A run that is over, and one that is not; each with an issue."""
    for run_id in ("run-001", "run-002"):
        assert client.post("/runs/start", json={**PLAN, "run": {"run_id": run_id}}).is_success
        phase = f"/runs/{run_id}/phases/P0"
        issue = {"issue_key": "slow", "source": "test", "category": "test_failure"}
        assert client.post(f"{phase}/record_issue", json=issue).is_success
        assert client.post(f"{phase}/builder_result", json=new_file("a.txt", "+a\n")).is_success
    assert client.post("/runs/run-001/cancel", json={"reason": "enough"}).is_success
    assert client.put("/project/ruleset", json={"project_id": "Autopack", "version": 7}).is_success


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith("."):  # as `rm -r *` does
            shutil.rmtree(path) if path.is_dir() else path.unlink()


REMOVALS: dict[str, Callable[[Path], None]] = {
    "removed": shutil.rmtree,
    "emptied": _empty,
    "one run removed": lambda folder: shutil.rmtree(folder / "run-001"),
}


@pytest.mark.parametrize("how", REMOVALS)
def test_a_runs_directory_that_was_removed_is_written_again_with_all_files(
    client: TestClient, app: FastAPI, settings: Settings, two_runs: None, how: str
) -> None:
    before = _tree(settings.autonomous_runs_dir)
    REMOVALS[how](settings.autonomous_runs_dir)
    keep_up(app.state.context)
    assert _tree(settings.autonomous_runs_dir) == before


def test_the_next_change_of_a_run_writes_all_of_its_files_when_they_are_gone(
    client: TestClient, settings: Settings, two_runs: None
) -> None:
    folder = settings.autonomous_runs_dir / "run-002"
    names = _tree(folder).keys()
    shutil.rmtree(settings.autonomous_runs_dir)
    issue = {"issue_key": "odd", "source": "test", "category": "test_failure"}
    answer = client.post("/runs/run-002/phases/P1/record_issue", json=issue)
    assert answer.status_code == 201, answer.text
    assert _tree(folder).keys() == names
