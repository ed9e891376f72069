"""A run's branch ends in a commit of its record."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest

from autopack.gitrepo import Repository, RepositoryUnusableError
from autopack.services import settling

if TYPE_CHECKING:
    from tests.api.conftest import Api

    from autopack.config import Settings

pytestmark = pytest.mark.integration

BRANCH = "autonomous/run-001"
FOLDER = ".autonomous_runs/run-001"


def files(api: Api, commit: str = BRANCH) -> set[str]:
    listed = api.repo.git("ls-tree", "-r", "--name-only", commit, f"{FOLDER}/").splitlines()
    return {path.removeprefix(f"{FOLDER}/") for path in listed}


def test_it_holds_the_files_of_the_run_and_the_patches(api: Api) -> None:
    api.repo.commit({f"{FOLDER}/of-an-earlier-run.md": "old\n", ".autonomous_runs/x.md": "x\n"})
    api.start()
    api.result()
    run = api.run()
    assert run["head_commit"] == api.repo.git("rev-parse", BRANCH)
    changed = api.repo.git("diff", "--name-only", f"{BRANCH}~1", BRANCH).splitlines()
    assert all(path.startswith(f"{FOLDER}/") for path in changed)
    record = json.loads(api.repo.git("show", f"{BRANCH}:{FOLDER}/run.json"))
    (commit,) = record["commits"]
    assert commit["sha"] == api.head() == api.repo.git("rev-parse", f"{BRANCH}~1")
    patch = f"patches/{commit['patch_sha256']}.patch"
    on_disk = {
        path.relative_to(api.runs_dir / "run-001").as_posix()
        for path in (api.runs_dir / "run-001").rglob("*")
        if path.is_file()
    }
    assert files(api) == on_disk | {patch}
    for name in on_disk:
        committed = api.repo.git("show", f"{BRANCH}:{FOLDER}/{name}")
        assert committed == api.file("run-001", name).removesuffix("\n"), name
    status = api.client.get("/runs/run-001/integration_status").json()
    assert status["commits_ahead_of_main"] == 2
    assert status["files_changed"] == ["src/P0.0.txt"]
    assert FOLDER not in api.client.get("/runs/run-001/diff").text


@pytest.mark.parametrize(("short_of", "kept"), [(0, 2), (1, 1)])
def test_it_holds_the_first_patches_up_to_a_total_size(
    api: Api, monkeypatch: pytest.MonkeyPatch, short_of: int, kept: int
) -> None:
    patches = [api.new_file(f"src/{name}.txt", name) for name in ("one", "two", "three")]
    most = sum(len(patch.encode()) for patch in patches[:2])
    monkeypatch.setattr(settling, "MAX_RECORDED_PATCH_BYTES", most - short_of)
    api.start(phases=3)
    for number, patch in enumerate(patches):
        api.result(phase_id=f"P0.{number}", patch=patch)
    names = [f"patches/{sha256(patch.encode()).hexdigest()}.patch" for patch in patches]
    assert {name for name in files(api) if name.startswith("patches/")} == {*names[:kept]}


@pytest.mark.parametrize("complexity", ["medium", "high"])
def test_the_record_asks_ci_for_the_strict_profile_where_a_strict_phase_completed(
    api: Api, complexity: str
) -> None:
    api.start(phase={"complexity": complexity})
    api.result()
    subject = api.repo.git("log", "-1", "--format=%s", BRANCH)
    assert ("[strict]" in subject) is (complexity == "high")


def test_the_record_of_a_strict_phase_that_failed_asks_for_no_strict_profile(api: Api) -> None:
    api.start(phase={"complexity": "high"})
    api.client.post("/runs/run-001/cancel", json={"reason": "enough"})
    assert "[strict]" not in api.repo.git("log", "-1", "--format=%s", BRANCH)


def test_a_rollback_adds_a_record_that_names_the_earlier_one(api: Api) -> None:
    api.start(phases=2)
    api.result()
    api.result(phase_id="P0.1")
    first = api.run()["head_commit"]
    body = {"to_phase": "P0.0", "reason": "P0.1 is wrong"}
    assert api.client.post("/runs/run-001/rollback", json=body).status_code == 200
    record = json.loads(api.repo.git("show", f"{BRANCH}:{FOLDER}/run.json"))
    kinds = [(commit["kind"], commit["sha"] == first) for commit in record["commits"]]
    assert kinds == [("patch", False), ("patch", False), ("record", True), ("rollback", False)]
    assert api.repo.git("rev-list", "--count", f"main..{BRANCH}") == "5"


def test_a_success_waits_for_its_record_and_a_failure_does_not(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.start()
    api.start("run-002")

    def fail(*_: Any, **__: Any) -> str:
        raise RepositoryUnusableError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Repository, "put_folder", fail)
        api.refused(api.result(), 503, None, "the disk is full")
        assert api.run()["state"] == "RUN_CREATED"
        cancelled = api.client.post("/runs/run-002/cancel", json={"reason": "enough"})
        assert cancelled.status_code == 200
        assert api.run("run-002")["head_commit"] == api.run("run-002")["base_commit"]
    assert api.result().json()["run_state"] == "DONE_SUCCESS"
    assert "run.json" in files(api)


def test_a_file_in_the_records_place_leaves_the_run_without_one(api: Api) -> None:
    api.repo.commit({".autonomous_runs": "a file\n"})
    api.start()
    answer = api.result().json()
    assert answer["run_state"] == "DONE_SUCCESS"
    assert api.run()["head_commit"] == answer["commit_sha"]


class TestWithoutRecords:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"commit_run_record": False})

    def test_the_branch_ends_in_the_work(self, api: Api) -> None:
        api.start()
        answer = api.result().json()
        assert api.run()["head_commit"] == answer["commit_sha"]
        assert api.document("run-001", "run.json")["commits"][0]["sha"] == answer["commit_sha"]
