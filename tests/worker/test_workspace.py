"""A worker's own folder, which a worker that is killed leaves to the next one. (docs/worker.md)"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.dying import EACH_CALL, killed_after_calls

from autopack.worker import workspace

pytestmark = pytest.mark.integration


@EACH_CALL
def test_the_next_worker_removes_what_one_left_wherever_it_was_killed(
    tmp_path: Path, every: int
) -> None:
    def work() -> None:
        with workspace.enter(tmp_path) as mine, mine.desk() as desk:
            (desk / "file").touch()

    for calls in killed_after_calls(work, every):
        with workspace.enter(tmp_path) as mine:
            own = {mine.folder, mine.folder.with_name(f"{mine.folder.name}.lock")}
            assert {*(tmp_path / "work").iterdir()} == own, calls
    assert [*(tmp_path / "work").iterdir()] == []


def test_a_worker_that_ends_while_another_one_begins_is_not_in_its_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workspace.enter(tmp_path)
    first.__enter__()
    glob = Path.glob

    def glob_late(path: Path, pattern: str) -> list[Path]:
        found = [*glob(path, pattern)]
        first.__exit__(None, None, None)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", glob_late)
        with workspace.enter(tmp_path) as mine:
            assert mine.folder.is_dir()
