"""Objects that the repository lost are made again, to the same ids. (docs/architecture.md)"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from starlette.testclient import TestClient

from autopack.config import Settings
from autopack.main import create_app

from .consistency import assert_consistent

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]
RUN = "run-001"
BRANCH = f"refs/heads/autonomous/{RUN}"
LINES = [f"line {number}\n" for number in range(1, 21)]


def empty(path: Path) -> None:
    """Leave what a power cut leaves: git stops at a file that is there and holds nothing."""
    path.chmod(0o644)
    path.write_bytes(b"")


LOSSES: dict[str, Callable[[Path], None]] = {"lost": Path.unlink, "emptied": empty}


def service(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), base_url="http://localhost", client=("127.0.0.1", 1))


def must(client: TestClient, path: str, body: Json) -> Json:
    response = client.post(path, json=body)
    assert response.is_success, response.text
    answer: Json = response.json()
    return answer


def start(client: TestClient, phases: int) -> None:
    must(
        client,
        "/runs/start",
        {
            "run": {"run_id": RUN},
            "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
            "phases": [
                {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T1", "name": "Do it"}
                for index in range(phases)
            ],
        },
    )


def submit(client: TestClient, phase_id: str, patch: str, **fields: Any) -> Json:
    body = {"status": "success", "patch_content": patch, **fields}
    return must(client, f"/runs/{RUN}/phases/{phase_id}/builder_result", body)


def edit(changes: dict[int, str]) -> str:
    """Write the patch that changes lines of the file as it is in the base."""
    new = [changes.get(number, line) for number, line in enumerate(LINES, start=1)]
    return "diff --git a/text.txt b/text.txt\n" + "".join(
        difflib.unified_diff(LINES, new, "a/text.txt", "b/text.txt")
    )


def binary_file() -> str:
    """Write a patch that adds a binary file, and takes the mode of another to executable."""
    return (
        "diff --git a/data.bin b/data.bin\nnew file mode 100644\n"
        "index 0000000000000000000000000000000000000000..f76dd238ade08917e6712764a16a22005a50573d\n"
        "GIT binary patch\nliteral 1\nIcmZPo000310RR91\n\nliteral 0\nHcmV?d00001\n\n"
        "diff --git a/src/app.py b/src/app.py\nold mode 100644\nnew mode 100755\n"
    )


@pytest.fixture
def base(git_repo: GitRepo) -> str:
    return git_repo.commit({"text.txt": "".join(LINES)})


@pytest.fixture
def worked(settings: Settings, git_repo: GitRepo, base: str) -> Settings:
    """A service that stopped amid a run: a mended patch, a merged one, a binary one; P3 to go."""
    with service(settings) as client:
        start(client, phases=4)
        mended = submit(client, "P0", "So:\n```diff\n" + edit({2: "two\n"}) + "```\n")
        assert [repair["kind"] for repair in mended["repairs"]] == ["fence"]
        merged = submit(client, "P1", edit({5: "five\n"}), base_commit=base)
        submit(client, "P2", binary_file())
        assert git_repo.git("show", f"{merged['commit_sha']}:text.txt").split("\n")[1] == "two"
    return settings


def objects_of_run(repo: GitRepo) -> list[Path]:
    """Return the files of all that the run put into the repository, tags included."""
    tags = repo.git("for-each-ref", "--format=%(objectname)", "refs/tags/").split()
    listed = repo.git("rev-list", "--objects", BRANCH, *tags, "--not", "main").splitlines()
    oids = [line.split(" ")[0] for line in listed]
    return [repo.path / ".git/objects" / oid[:2] / oid[2:] for oid in oids]


def refs_of_run(repo: GitRepo) -> str:
    return repo.git("for-each-ref", "refs/heads/autonomous", "refs/tags")


@pytest.mark.parametrize("loss", LOSSES)
def test_all_objects_of_a_run_are_made_again_to_the_same_ids(
    worked: Settings, git_repo: GitRepo, loss: str
) -> None:
    before = refs_of_run(git_repo)
    for path in objects_of_run(git_repo):
        LOSSES[loss](path)
    with service(worked) as client:
        assert refs_of_run(git_repo) == before
        assert_consistent(worked)
        submit(
            client, "P3", edit({19: "nineteen\n"}), base_commit=git_repo.git("rev-parse", BRANCH)
        )
    assert_consistent(worked)


def test_objects_lost_with_their_refs_come_back_with_them(
    worked: Settings, git_repo: GitRepo
) -> None:
    """As of a repository that was put back from a copy taken before the run."""
    before = refs_of_run(git_repo)
    lost = objects_of_run(git_repo)
    git_repo.git("update-ref", "-d", BRANCH)
    for tag in git_repo.git("tag").split():
        git_repo.git("tag", "-d", tag)
    for path in lost:
        path.unlink()
    with service(worked):
        assert refs_of_run(git_repo) == before
    assert_consistent(worked)


def test_objects_lost_while_the_service_runs_are_made_again_by_the_next_request(
    worked: Settings, git_repo: GitRepo
) -> None:
    with service(worked) as client:
        for path in objects_of_run(git_repo):
            path.unlink()
        body = {"status": "success", "patch_content": edit({19: "nineteen\n"})}
        address = f"/runs/{RUN}/phases/P3/builder_result"
        refused = client.post(address, json=body)  # some of them were still in memory
        assert refused.status_code == 503
        assert "try again" in refused.json()["detail"]
        must(client, address, body)
    assert_consistent(worked)


def test_a_tree_that_is_lost_is_made_again_when_a_request_misses_it(
    worked: Settings, git_repo: GitRepo
) -> None:
    tree = git_repo.git("rev-parse", f"{BRANCH}^{{tree}}")
    (git_repo.path / ".git/objects" / tree[:2] / tree[2:]).unlink()
    body = {"status": "success", "patch_content": edit({19: "nineteen\n"})}
    with service(worked) as client:
        path = f"/runs/{RUN}/phases/P3/builder_result"
        assert client.post(path, json=body).status_code == 503
        must(client, path, body)
    assert_consistent(worked)


def test_a_base_that_is_lost_is_asked_for_and_the_run_can_still_be_cancelled(
    worked: Settings, git_repo: GitRepo, base: str
) -> None:
    path = git_repo.path / ".git/objects" / base[:2] / base[2:]
    kept = path.read_bytes()
    lost = objects_of_run(git_repo)
    with service(worked) as client:
        for each in [*lost, path]:
            each.unlink()
        refused = client.post(
            f"/runs/{RUN}/phases/P3/builder_result",
            json={"status": "success", "patch_content": edit({19: "nineteen\n"})},
        )
        assert refused.status_code == 503
        assert refused.json()["code"] == "repository_unusable"
        assert client.post(f"/runs/{RUN}/cancel", json={"reason": "it is gone"}).is_success
        path.write_bytes(kept)
