"""The machine stops: files that were not on the disk yet are written again. (docs/architecture.md)

What a power cut may leave is made by hand: files that are truncated, emptied, lost or of an earlier
state, a branch of an earlier state, and `mirrored_revision` without its last values.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from starlette.testclient import TestClient

from autopack import syncing
from autopack.config import Settings
from autopack.mirror import durability
from autopack.services import projection, upkeep
from autopack.services.upkeep import keep_up

from .consistency import assert_consistent
from .test_rebuild import BRANCH, LINES, RUN, edit, must, service, start, submit

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]


def halve(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


LOSSES: dict[str, Callable[[Path], None]] = {
    "truncated": halve,
    "emptied": lambda path: os.truncate(path, 0),
    "zeroed": zero,
    "lost": Path.unlink,
}


def report(client: TestClient, key: str) -> None:
    body = {"issue_key": key, "severity": "minor", "source": "test", "category": "test_failure"}
    must(client, f"/runs/{RUN}/phases/P1/record_issue", body)


def stop_machine(settings: Settings) -> None:
    """Let the mark be of another start of the machine than the service will be in."""
    mark = settings.autonomous_runs_dir / durability.MARK
    noted = json.loads(mark.read_text())
    mark.write_text(json.dumps({**noted, "boot": "an earlier start"}))


def files_of(settings: Settings) -> list[Path]:
    """Return all files of the runs, and the project's backlog."""
    folder = settings.autonomous_runs_dir
    return [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]


def lose_marks(settings: Settings) -> None:
    """Take from `mirrored_revision` what it became last, as an asynchronous commit may."""
    engine = create_engine(settings.database_url or "")
    with engine.begin() as connection:
        connection.execute(text("UPDATE runs SET mirrored_revision = mirrored_revision - 1"))
    engine.dispose()


@pytest.fixture
def work(settings: Settings, git_repo: GitRepo) -> Settings:
    """A run with two patches on its branch and issues, left by a service that was closed."""
    base = git_repo.commit({"text.txt": "".join(LINES)})
    with service(settings) as client:
        start(client, phases=3)
        submit(client, "P0", edit({2: "two\n"}))
        report(client, "a_failing_test")
        submit(client, "P1", edit({19: "nineteen\n"}), base_commit=base)
    return settings


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("is_over", [False, True], ids=["under way", "over"])
def test_files_that_a_power_cut_damaged_are_right_after_the_next_start(
    work: Settings, loss: Callable[[Path], None], is_over: bool
) -> None:
    if is_over:
        with service(work) as client:
            must(client, f"/runs/{RUN}/cancel", {"reason": "enough"})
    for path in files_of(work):
        loss(path)
    stop_machine(work)
    with service(work):
        pass
    assert_consistent(work)


def test_files_and_branch_of_an_earlier_state_are_brought_up_to_date(
    work: Settings, git_repo: GitRepo, tmp_path: Path
) -> None:
    earlier = git_repo.git("rev-parse", BRANCH).strip()
    shutil.copytree(work.autonomous_runs_dir, tmp_path / "earlier")
    with service(work) as client:
        submit(
            client, "P2", edit({10: "ten\n"}), base_commit=git_repo.git("rev-parse", "main").strip()
        )
    shutil.rmtree(work.autonomous_runs_dir)
    shutil.copytree(tmp_path / "earlier", work.autonomous_runs_dir)
    git_repo.git("update-ref", BRANCH, earlier)
    lose_marks(work)
    stop_machine(work)
    with service(work):
        pass
    assert_consistent(work)


def test_a_lost_mark_of_what_is_mirrored_costs_a_second_writing_of_the_same(
    work: Settings,
) -> None:
    lose_marks(work)
    with service(work):
        pass
    assert_consistent(work)


def test_files_are_not_written_again_while_the_machine_has_not_stopped(work: Settings) -> None:
    before = {path: path.stat().st_mtime_ns for path in (work.autonomous_runs_dir / RUN).rglob("*")}
    with service(work):
        pass
    after = {path: path.stat().st_mtime_ns for path in (work.autonomous_runs_dir / RUN).rglob("*")}
    assert after == before


@pytest.mark.parametrize("by", ["a request", "the upkeep"])
def test_files_that_were_written_again_without_an_event_survive_a_power_cut(
    work: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by: str
) -> None:
    """Their events are older than all that is doubted after the stop."""
    folder, on_disk = work.autonomous_runs_dir, tmp_path / "on disk"
    sync = syncing.sync_file_system

    def sync_and_copy(descriptor: int) -> None:
        sync(descriptor)
        shutil.rmtree(on_disk, ignore_errors=True)
        shutil.copytree(folder, on_disk)

    monkeypatch.setattr(upkeep, "EVENTS_UNDER_WAY", 0)
    monkeypatch.setattr(projection, "EVENTS_UNDER_WAY", 0)
    with service(work) as client:
        context = client.app.state.context  # type: ignore[attr-defined]  # an ASGI app to its type
        keep_up(context)
        for path in (folder / RUN).rglob("*.md"):
            halve(path)  # a write that failed: the run lags
        shutil.copytree(folder, on_disk)
        lose_marks(work)
        monkeypatch.setattr(syncing, "sync_file_system", sync_and_copy)
        if by == "a request":
            start(client, phases=3)  # the same plan again: it only brings the run up to date
        keep_up(context)
        assert_consistent(work)
    monkeypatch.undo()
    monkeypatch.setattr(upkeep, "EVENTS_UNDER_WAY", 0)
    monkeypatch.setattr(projection, "EVENTS_UNDER_WAY", 0)
    shutil.rmtree(folder)
    shutil.copytree(on_disk, folder)
    stop_machine(work)
    with service(work):
        pass
    assert_consistent(work)


def test_runs_that_were_synced_long_before_are_not_written_again(work: Settings) -> None:
    """Only what came after the mark is doubted, and what was then under way."""
    engine = create_engine(work.database_url or "")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE events ALTER id RESTART WITH 50000"))
    engine.dispose()
    with service(work) as client:
        plan = {
            "run": {"run_id": "another"},
            "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
            "phases": [{"phase_id": "P0", "phase_index": 0, "tier_id": "T1", "name": "Do it"}],
        }
        must(client, "/runs/start", plan)
    with service(work):
        pass  # notes that all is on the disk
    for path in files_of(work):
        path.write_bytes(b"")
    stop_machine(work)
    with service(work):
        pass
    assert (work.autonomous_runs_dir / "another" / "run_summary.md").read_bytes()
    assert not (work.autonomous_runs_dir / RUN / "run_summary.md").read_bytes()
