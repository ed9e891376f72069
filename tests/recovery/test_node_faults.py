"""What befalls one node: its disk, its folders, its database. The others go on, and it heals."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.conftest import GitRepo
from tests.waiting import wait_until

from autopack.config import Settings
from autopack.embedded_postgres import EmbeddedPostgres
from autopack.gitrepo import Repository

from .conftest import Stage
from .test_full_disks import Disk, disk_at, new_file
from .test_nodes import ask, assert_equal, head, made_nodes, plan, stages_of
from .test_parallel import result

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import ForkServer

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]


@pytest.fixture
def nodes(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, tmp_path: Path
) -> Iterator[list[Stage]]:
    """Two nodes on one database; the first has started two runs, the second shows them."""
    with made_nodes(2, settings, git_repo, fork_server, tmp_path) as stages:
        begin(stages)
        yield stages


def begin(nodes: list[Stage]) -> None:
    for run_id in ("run-001", "run-002"):
        nodes[0].must("POST", "/runs/start", plan(run_id, 4))
    assert_equal(nodes)


def build(node: Stage, step: int, run_id: str = "run-001") -> None:
    path = f"/runs/{run_id}/phases/P{step}/builder_result"
    node.must("POST", path, result(f"src/p{step}/{step}", run_id))


@pytest.fixture(
    params=[
        "objects",
        pytest.param("home", marks=pytest.mark.campaigns),
        pytest.param("runs", marks=pytest.mark.campaigns),
    ]
)
def full(request: pytest.FixtureRequest, nodes: list[Stage]) -> Iterator[Disk]:
    """A small disk of the second node, which is full."""
    settings = nodes[1].settings
    places = {
        "home": settings.home,
        "objects": settings.repo_path / ".git/objects",
        "runs": settings.autonomous_runs_dir,
    }
    nodes[1].stop()
    with ExitStack() as held:
        disk = held.enter_context(disk_at(places[request.param]))
        nodes[1].start()
        held.callback(nodes[1].stop)
        disk.fill()
        yield disk


def test_a_node_with_a_full_disk_says_so_while_the_others_go_on_and_heals_by_itself(
    nodes: list[Stage], full: Disk
) -> None:
    first, second = nodes
    refused = second.call("POST", "/runs/run-001/phases/P0/builder_result", new_file("src/p0/a"))
    assert refused.status_code == 503, refused.text
    assert any(
        words in refused.json()["detail"]
        for words in ("No space left", "Free some space", "free space", "not show it")
    ), refused.text
    health = second.call("GET", "/health")
    assert health.status_code == 503
    assert "No space left" in health.text
    assert second.call("GET", "/runs/run-001").status_code == 200  # it needs no disk
    build(first, 1)
    build(first, 1, "run-002")
    assert first.call("GET", "/health").status_code == 200
    full.free()
    build(second, 2)
    assert_equal(nodes)


def test_all_nodes_go_on_after_their_connections_are_cut(nodes: list[Stage]) -> None:
    for step in range(2):
        cut_all(nodes[0].settings)
        wait_until(lambda: all(is_answering(node) for node in nodes), nodes[0].log.read_text)
        build(nodes[step], step)
    assert_equal(nodes)


def cut_all(settings: Settings) -> None:
    """Cut all connections, and wait until they are gone: Postgres waits for each at least 0.1 s."""
    cut = ask(
        settings,
        "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    assert cut
    pids = ",".join(str(pid) for pid, _ in cut)
    left = f"SELECT query FROM pg_stat_activity WHERE pid IN ({pids})"
    wait_until(lambda: not ask(settings, left), lambda: str(ask(settings, left)))


def is_answering(node: Stage) -> bool:
    return node.call("GET", "/health").status_code == 200


@pytest.mark.campaigns
def test_all_nodes_go_on_after_postgres_was_stopped_and_started(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, tmp_path: Path
) -> None:
    with EmbeddedPostgres(tmp_path / "postgres") as server:
        own = settings.model_copy(update={"database_url": server.url})
        with made_nodes(2, own, git_repo, fork_server, tmp_path) as nodes:
            begin(nodes)
            build(nodes[0], 0)
            server.stop()
            for node in nodes:
                refused = node.call(
                    "POST", "/runs/run-001/phases/P1/builder_result", result("src/p1/1", "text")
                )
                assert (refused.status_code, refused.json()["code"]) == (
                    503,
                    "database_unavailable",
                )
            server.start()
            wait_until(lambda: all(is_answering(node) for node in nodes), nodes[0].log.read_text)
            build(nodes[1], 1)
            build(nodes[0], 2)
            assert_equal(nodes)


@pytest.mark.campaigns
def test_a_node_whose_runs_directory_was_deleted_writes_it_again(nodes: list[Stage]) -> None:
    first, second = nodes
    build(first, 0)
    assert_equal(nodes)
    shutil.rmtree(second.settings.autonomous_runs_dir)
    build(first, 1)
    page = second.settings.autonomous_runs_dir / "run-002" / "run_summary.md"
    wait_until(page.is_file, second.log.read_text)
    assert_equal(nodes)


@pytest.mark.campaigns
def test_a_node_whose_clone_was_deleted_gets_all_branches_after_it_is_cloned_again(
    nodes: list[Stage], git_repo: GitRepo
) -> None:
    """Also those of runs that are over; until then it refuses, and the other node goes on."""
    first, second = nodes
    first.must("POST", "/runs/run-002/cancel", {"reason": "enough"})
    assert_equal(nodes)
    shutil.rmtree(second.settings.repo_path)
    path = "/runs/run-001/phases/P0/builder_result"
    refused = second.call("POST", path, result("src/p0/0", "text"))
    assert refused.status_code == 503, refused.text
    assert second.call("GET", "/health").status_code == 503
    build(first, 0)
    subprocess.run(
        ["git", "clone", "--quiet", str(git_repo.path), str(second.settings.repo_path)], check=True
    )

    def is_told() -> bool:
        code: str = second.call("POST", path, result("src/p0/0", "text")).json()["code"]
        return code == "superseded"

    wait_until(is_told, second.log.read_text)
    second.stop()
    before = Repository.open(first.settings).node_identity().node_id
    second.start()
    build(second, 1)
    assert_equal(nodes)
    assert head(second, "run-002") == head(first, "run-002")
    assert Repository.open(second.settings).node_identity().node_id != before


@pytest.mark.campaigns
def test_three_nodes_that_start_at_once_on_an_empty_database_are_three_nodes_of_one_schema(
    settings: Settings,
    git_repo: GitRepo,
    fork_server: ForkServer,
    tmp_path: Path,
    empty_database_url: str,
) -> None:
    url = Settings(_env_file=None, database_url=empty_database_url).database_url
    own = settings.model_copy(update={"database_url": url})
    nodes = stages_of(3, own, git_repo, fork_server, tmp_path)
    with ExitStack() as stopping:
        for node in nodes:
            stopping.callback(node.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Stage.start, nodes))
        begin(nodes)
        for step, node in enumerate(nodes):
            build(node, step)
        assert_equal(nodes)
        assert len(nodes[0].must("GET", "/nodes")["nodes"]) == 3


@pytest.mark.campaigns
def test_a_shallow_clone_is_a_node_and_says_which_commit_it_lacks(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, tmp_path: Path
) -> None:
    first, second = stages_of(2, settings, git_repo, fork_server, tmp_path)
    with ExitStack() as stopping:
        for node in (first, second):
            stopping.callback(node.stop)
        first.start()
        for run_id in ("run-001", "run-002"):
            first.must("POST", "/runs/start", plan(run_id, 4))
        base = git_repo.git("rev-parse", "main")
        git_repo.commit({"new.txt": "new\n"})
        clone = second.settings.repo_path
        shutil.rmtree(clone)
        origin = f"file://{git_repo.path}"
        git_repo.git("clone", "--quiet", "--depth", "1", origin, str(clone))
        second.start()
        path = "/runs/run-001/phases/P1/builder_result"
        refused = second.call("POST", path, result("src/p1/1", "text"))
        assert (refused.status_code, refused.json()["commit"]) == (503, base)
        second.repo.git("fetch", "--quiet", "--unshallow")
        second.must("POST", path, result("src/p1/1", "text"))
        assert_equal([first, second])
