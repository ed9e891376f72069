"""A worker that is killed in the middle of CI: another does it again, and it counts once."""

from __future__ import annotations

import os
import secrets
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.background import queues_of
from autopack.config import Settings
from autopack.jobs.worker import Workers
from autopack.services.runners import checks_of

if TYPE_CHECKING:
    from fastapi import FastAPI
    from tests.api.conftest import Api
    from tests.processes import ForkServer

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

STALLED_SECONDS = 3
WORKER = f"""\
import signal
from autopack.config import load_settings
from autopack.jobs.worker import Workers
from autopack.background import queues_of
from autopack.contexts import open_context
with open_context(load_settings()) as context:
    Workers(context.engine, queues_of(context), stalled_seconds={STALLED_SECONDS}).start()
    signal.pause()
"""


def processes_of(token: str) -> list[int]:
    """Return what runs, here or in a sandbox, with a word on its command line."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if token.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    lent = tmp_path / "lent"
    lent.mkdir()
    return settings.model_copy(update={"ci_readable_paths": (lent,)})


@pytest.mark.parametrize("evidence", [[], ["baseline"]])
def test_a_killed_workers_ci_ends_with_it_and_is_done_again_by_another(
    api: Api,
    app: FastAPI,
    settings: Settings,
    fork_server: ForkServer,
    tmp_path: Path,
    evidence: list[str],
) -> None:
    """With evidence, it is killed while it measures the base, whose tree does not have the file."""
    (lent,) = settings.ci_readable_paths
    nap = f"600.{secrets.randbelow(10**9)}"
    quick = "-e src/P0.0.txt -o " if evidence else ""
    profile = {
        "command": f"[ {quick}-e {lent}/go_on ] || sleep {nap}",
        "timeout_seconds": 700,
        "evidence": evidence,
    }
    document = {
        "project_id": "Autopack",
        "ci": {"mode": "local", "profiles": {"normal": profile, "strict": profile}},
    }
    assert api.client.put("/project/ruleset", json=document).status_code == 200
    api.start()
    api.result()
    environment = {
        "PATH": os.environ["PATH"],
        "AUTOPACK_REPO_PATH": str(settings.repo_path),
        "AUTOPACK_HOME": str(settings.home),
        "AUTOPACK_PROJECT_ID": settings.project_id,
        "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
        "AUTOPACK_CI_READABLE_PATHS": str(lent),
        "DATABASE_URL": str(settings.database_url),
        "TESTING": "1",
    }
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    process = fork_server.start(folder=tmp_path, environment=environment, first=worker)
    try:
        wait_until(lambda: bool(processes_of(f"sleep\0{nap}")) or process.poll() is not None)
        process.kill()
        said = process.communicate(PATIENCE_SECONDS)
        assert process.wait() == -signal.SIGKILL, said
        if checks_of(settings).sandbox == "bubblewrap":
            wait_until(lambda: not processes_of(nap))
    finally:
        for pid in processes_of(nap):  # without a sandbox they outlive a worker that is killed
            with suppress(ProcessLookupError):  # it has ended with another one
                os.kill(pid, signal.SIGKILL)
    (lent / "go_on").touch()
    context = app.state.context
    workers = Workers(context.engine, queues_of(context), stalled_seconds=STALLED_SECONDS)
    workers.start()
    try:
        wait_until(lambda: bool(api.run()["ended_at"]))
    finally:
        workers.stop()
    assert api.run()["state"] == "DONE_SUCCESS"
    assert api.run()["tiers"][0]["ci_runs_count"] == 1
    events = api.client.get("/runs/run-001/events", params={"limit": 100}).json()["events"]
    kinds = [event["kind"] for event in events]
    assert kinds.count("CiVerdictReceived") == 1
    assert kinds.count("CiStarted") >= 2 or evidence
    assert [each["kind"] for each in api.phase()["evidence"]] == evidence
    assert kinds.count("BaselineMeasured") <= len(evidence)
