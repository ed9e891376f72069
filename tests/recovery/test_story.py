"""The service is killed between its commit and the ref, and what people find afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from .test_kill import new_file, result, started

if TYPE_CHECKING:
    from .conftest import Stage

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]
RUN = "run-001"


def test_a_service_that_dies_before_the_ref_moves_leaves_a_finished_phase_to_read(
    stage: Stage,
) -> None:
    started(stage, RUN)
    branch = f"refs/heads/autonomous/{RUN}"
    before = stage.repo.git("rev-parse", branch)
    path, body = result(RUN, "P1", new_file("src/one.txt"))
    stage.kill_at("committed")
    with pytest.raises(httpx.TransportError):
        stage.call("POST", path, body)
    stage.await_death()
    assert stage.repo.git("rev-parse", branch) == before
    stage.start()
    assert stage.repo.git("log", "--format=%s", f"main..{branch}") == "Do P1"
    summary = (stage.settings.autonomous_runs_dir / RUN / "run_summary.md").read_text()
    rows = [
        line.split(" | ")[1:4]
        for line in summary.splitlines()
        if line.startswith("| [") and "(phases/" in line
    ]
    assert rows == [["Do P1", "complete", "1"], ["Do P2", "queued", "0"]]
