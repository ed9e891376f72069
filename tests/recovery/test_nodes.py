"""Nodes with a clone and a runs directory each: whichever answers is right, the others follow."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import httpx
import psycopg2
import pytest
from tests.conftest import GitRepo
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.contexts import as_node, beside_database, retain

from .conftest import Stage
from .test_parallel import result

if TYPE_CHECKING:
    from pathlib import Path

    from tests.processes import ForkServer

    from autopack.config import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]
RUNS = ("run-001", "run-002")
AGENTS = 20


def plan(run_id: str, phases: int) -> Json:
    """Return a plan whose phases may all be built at the same time."""
    return {
        "run": {"run_id": run_id},
        "tiers": [{"tier_id": "T0", "tier_index": 0, "name": "All at once"}],
        "phases": [
            {
                "phase_id": f"P{at}",
                "phase_index": at,
                "tier_id": "T0",
                "name": f"Part {at}",
                "allowed_paths": [f"src/p{at}/**"],
                "depends_on": [],
            }
            for at in range(phases)
        ],
    }


@pytest.fixture
def nodes(
    settings: Settings,
    git_repo: GitRepo,
    fork_server: ForkServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[list[Stage]]:
    """Three started nodes on one database, or as many as the test's parameter says."""
    number = getattr(request, "param", 3)
    with made_nodes(number, settings, git_repo, fork_server, tmp_path) as stages:
        yield stages


@contextmanager
def made_nodes(
    number: int, settings: Settings, git_repo: GitRepo, fork_server: ForkServer, top: Path
) -> Iterator[list[Stage]]:
    """Start nodes with a clone and folders of their own each; they are gone at the end."""
    with running(stages_of(number, settings, git_repo, fork_server, top)) as stages:
        yield stages


def stages_of(
    number: int, settings: Settings, git_repo: GitRepo, fork_server: ForkServer, top: Path
) -> list[Stage]:
    """Make clones with folders of their own for nodes, which are not started."""
    stages = []
    for at in range(number):
        folder = top / f"node{at}"
        folder.mkdir()
        git_repo.git("clone", "--quiet", str(git_repo.path), str(folder / "repo"))
        places = {
            "repo_path": folder / "repo",
            "home": folder / "home",
            "autonomous_runs_dir": folder / "runs",
        }
        own = settings.model_copy(update=places)
        stages.append(Stage(own, GitRepo(folder / "repo"), fork_server, folder))
    return stages


@contextmanager
def running(stages: list[Stage]) -> Iterator[list[Stage]]:
    """Start nodes, all at the same time; they are gone at the end."""
    try:
        for stage in stages:
            stage.begin()
        for stage in stages:
            stage.await_start()
        yield stages
    finally:
        for stage in stages:
            stage.terminate()
        for stage in stages:
            stage.stop()


def head(stage: Stage, run_id: str) -> str:
    ref = f"refs/heads/autonomous/{run_id}"
    return stage.repo.git("for-each-ref", "--format=%(objectname)", ref)


def await_following(node: Stage) -> None:
    """Wait until a node shows all changes of the others."""
    wait_until(lambda: not node.is_behind(), node.log.read_text)


def assert_equal(nodes: list[Stage]) -> None:
    """See that all nodes come to show the same, and that this is what is recorded."""
    heads = {run_id: nodes[0].must("GET", f"/runs/{run_id}")["head_commit"] for run_id in RUNS}

    def is_level() -> bool:
        return all(head(node, run_id) == heads[run_id] for node in nodes for run_id in RUNS)

    wait_until(is_level, lambda: str([[head(node, run_id) for run_id in RUNS] for node in nodes]))
    for node in nodes:
        await_following(node)
        node.assert_consistent()


def test_a_change_on_one_node_is_built_upon_by_the_next_and_shown_by_all(
    nodes: list[Stage],
) -> None:
    for at, run_id in enumerate(RUNS):
        nodes[at].must("POST", "/runs/start", plan(run_id, 3))
    for step in range(3):
        for at, run_id in enumerate(RUNS):
            path = f"/runs/{run_id}/phases/P{step}/builder_result"
            nodes[(at + step + 1) % 3].must("POST", path, result(f"src/p{step}/{step}", run_id))
    assert_equal(nodes)


def test_a_read_of_a_branch_waits_for_nothing_and_is_right_on_each_node(
    nodes: list[Stage],
) -> None:
    nodes[0].must("POST", "/runs/start", plan("run-001", 2))
    for step in range(2):
        path = f"/runs/run-001/phases/P{step}/builder_result"
        nodes[step].must("POST", path, result(f"src/p{step}/{step}", "text"))
        for node in nodes:
            status = node.must("GET", "/runs/run-001/integration_status")
            assert status["current_commit"] == status["recorded_commit"]
            assert f"src/p{step}/{step}" in status["files_changed"]
            assert b"+text" in node.call("GET", "/runs/run-001/diff").content


def ask(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of a query to the nodes' database."""
    assert settings.database_url is not None
    connection = psycopg2.connect(settings.database_url.replace("+psycopg2", ""))
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute(query)
        return list(cursor.fetchall())


def test_a_ruleset_that_one_node_puts_in_force_holds_for_a_run_that_another_starts(
    nodes: list[Stage],
) -> None:
    for number in range(2):
        version = number + 2
        ruleset = {"project_id": "Autopack", "version": version}
        nodes[number].must("PUT", "/project/ruleset", ruleset)
        run_id = f"run-{number}"
        nodes[2 - number].must("POST", "/runs/start", plan(run_id, 1))
        versions = nodes[2].must("GET", "/project/ruleset/versions")["versions"]
        assert versions[0]["document"]["version"] == version


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_a_run_on_a_commit_that_a_clone_lacks_is_503_there_until_it_has_it(
    nodes: list[Stage],
) -> None:
    first, second = nodes
    base = first.repo.commit({"new.txt": "new\n"})
    first.must("POST", "/runs/start", plan("run-001", 1))
    path = "/runs/run-001/phases/P0/builder_result"
    refused = second.call("POST", path, result("src/p0/a", "text"))
    assert (refused.status_code, refused.json()["code"]) == (503, "commit_missing")
    assert refused.json()["commit"] == base
    assert refused.headers["Retry-After"]
    wait_until(second.is_behind, second.log.read_text)
    second.repo.git("pull", "--quiet", str(first.repo.path), "main")
    second.must("POST", path, result("src/p0/a", "text"))
    wait_until(lambda: not second.is_behind(), second.log.read_text)
    second.assert_consistent()


class Campaign:
    """Agents that change the node at every call, while nodes and connections die."""

    def __init__(self, nodes: list[Stage], seed: int) -> None:
        self.nodes = nodes
        self.random = random.Random(seed)
        self.acknowledged: list[tuple[str, str]] = []
        self._answered: list[tuple[str, Json, str, Json]] = []
        self.is_over = threading.Event()
        self._guard = threading.Lock()

    def ask(self, chance: random.Random, path: str, body: Json, key: str) -> httpx.Response:
        """Send a request to one node after another until one answers it for good."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        answer: httpx.Response | None = None
        while time.monotonic() < deadline:
            try:
                answer = chance.choice(self.nodes).call("POST", path, body, key)
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            if answer.status_code == 503:
                assert answer.json()["code"] in GIVEN_UP, answer.text
            elif answer.status_code not in OF_PROXY:
                return answer
            time.sleep(0.05)
        raise AssertionError(f"no node answered {path}: {answer and answer.text}")

    def work(self, number: int) -> None:
        """Build one phase: claim it, send its patch."""
        chance = random.Random(number)
        run = f"/runs/{RUNS[number % len(RUNS)]}"
        agent = f"agent-{number}"
        # Each run has a phase for each of its agents: none is lost with the answer of a claim.
        claimed = self.ask(
            chance, f"{run}/claim", {"role": "builder", "agent": agent}, f"claim-{number}"
        )
        assert claimed.status_code == 200, claimed.text
        item = claimed.json()
        phase_id = item["phase_id"]
        body = result(f"src/{phase_id.lower()}/{number}", agent)
        body["lease_token"] = item["lease"]["token"]
        path = f"{run}/phases/{phase_id}/builder_result"
        key = f"result-{number}"
        done = self.ask(chance, path, body, key)
        assert done.status_code == 200, done.text
        self.note(path, body, key, done.json())
        with self._guard:
            self.acknowledged.append((run.rpartition("/")[2], agent))

    def note(self, path: str, body: Json, key: str, answer: Json) -> None:
        """Note what a request was answered, for `assert_answered_once`."""
        with self._guard:
            self._answered.append((path, body, key, answer))

    def disturb(self, killed: int) -> None:
        """Kill a node and a connection, and start the node again."""
        ask(
            self.nodes[0].settings,
            "SELECT pg_terminate_backend(pid, 5000) FROM (SELECT pid FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " ORDER BY random() LIMIT 1) one",
        )
        self.nodes[killed].kill()
        self.nodes[killed].start()

    def assert_answered_once(self) -> None:
        """See that each request had one effect: sent again, it gets the same answer again."""
        for path, body, key, answer in self._answered:
            again = self.nodes[0].call("POST", path, body, key)
            assert again.headers["Idempotency-Replayed"] == "true"
            assert again.json() == answer


# Answers of a proxy whose node ended within the request, or is frozen.
OF_PROXY = (502, 504)
# Answers after which the same request is sent again, as the guide tells clients.
GIVEN_UP = {
    "database_unavailable",
    "outcome_unknown",
    "projection_lagging",
    "repository_unusable",
    "unavailable",
    "git_timeout",
}


@pytest.mark.parametrize(
    ("agents", "kills"), [(6, 1), pytest.param(AGENTS, 2, marks=pytest.mark.campaigns)]
)
def test_every_acknowledged_patch_is_on_each_node_whatever_is_killed(
    nodes: list[Stage], agents: int, kills: int
) -> None:
    endure(nodes, agents, kills)


def endure(nodes: list[Stage], agents: int, kills: int) -> None:
    """Let agents build two runs while nodes are killed; each patch and each event is there once."""
    for at, run_id in enumerate(RUNS):
        nodes[at].must("POST", "/runs/start", plan(run_id, agents // len(RUNS)))
    campaign = Campaign(nodes, seed=1)
    streams = [Stream(nodes[0], "/events/stream", RUNS)]
    streams += [Stream(nodes[1], f"/runs/{run_id}/events", (run_id,)) for run_id in RUNS]
    with ThreadPoolExecutor(agents + len(streams)) as pool, ExitStack() as held:
        for stream in streams:  # the pool waits for its threads, also after an error
            held.callback(stream.is_over.set)
        reading = [pool.submit(stream.read) for stream in streams]
        working = [pool.submit(campaign.work, number) for number in range(agents)]
        order = campaign.random.sample(range(len(nodes)), len(nodes))
        for at in range(kills):
            wait_until(lambda: bool(campaign.acknowledged), lambda: "no patch was taken")
            campaign.disturb(killed=order[at % len(nodes)])
        for each in working:
            each.result(PATIENCE_SECONDS)
        assert len(campaign.acknowledged) == agents
        for run_id in RUNS:
            assert nodes[1].must("GET", f"/runs/{run_id}")["state"] == "DONE_SUCCESS"
        assert_equal(nodes)
        for each in reading:
            each.result(PATIENCE_SECONDS)
    for run_id, agent in campaign.acknowledged:
        files = nodes[2].repo.git("grep", "-h", agent, f"autonomous/{run_id}", "--", "src")
        assert agent in files.split()
    campaign.assert_answered_once()
    for stream in streams:
        assert stream.told == stream.recorded()


class Stream:
    """A client that reads the events of runs, and continues where it was interrupted."""

    def __init__(self, node: Stage, path: str, run_ids: Sequence[str]) -> None:
        self.node = node
        self.told: list[tuple[str, int]] = []
        self._path = path
        self._run_ids = set(run_ids)
        self.is_over = threading.Event()

    def read(self) -> None:
        last = "0"
        ended: set[str] = set()
        while ended != self._run_ids and not self.is_over.is_set():
            headers = {"Last-Event-ID": last, "Accept": "text/event-stream"}
            try:
                with (
                    self.node.client() as client,
                    client.stream("GET", self._path, headers=headers) as answer,
                ):
                    answer.raise_for_status()
                    for line in answer.iter_lines():
                        if line.startswith("id:"):
                            last = line.partition(":")[2].strip()
                        elif line.startswith("data:") and line != "data: {}":
                            document = json.loads(line.partition(":")[2])
                            self.told.append((document["run_id"], document["sequence"]))
                            if document["kind"] == "RunEnded":
                                ended.add(document["run_id"])
                        if ended == self._run_ids or self.is_over.is_set():
                            return
            except (httpx.TransportError, httpx.HTTPStatusError):
                time.sleep(0.05)

    def recorded(self) -> list[tuple[str, int]]:
        query = (
            "SELECT r.run_id, e.sequence FROM events e JOIN runs r ON r.id = e.run_pk ORDER BY e.id"
        )
        found = ask(self.node.settings, query)
        return [(run_id, number) for run_id, number in found if run_id in self._run_ids]


@pytest.mark.parametrize("nodes", [2], indirect=True)
def test_every_node_removes_its_own_files_of_a_run_whose_details_were_removed(
    nodes: list[Stage],
) -> None:
    """The one that made the last change, one that was away, and a new one have the summary."""
    first, second = nodes
    for at, run_id in enumerate(RUNS):
        nodes[at].must("POST", "/runs/start", plan(run_id, 1))
        nodes[at].must("POST", f"/runs/{run_id}/phases/P0/builder_result", result("src/p0/a", "x"))
    for item in first.must("GET", "/attention")["items"]:
        first.must("POST", f"/attention/{item['id']}/dismiss", {})
    assert_equal(nodes)
    before = ask(first.settings, REVISIONS)

    remove_details(second, "run-001")
    for node in nodes:
        await_summary_alone(node, "run-001")
        assert len(files(node, "run-002")) > 1
    first.stop()
    remove_details(second, "run-002")
    first.start()
    await_summary_alone(first, "run-002")
    first.stop()
    for place in (first.settings.home, first.settings.autonomous_runs_dir):
        shutil.rmtree(place)
    first.start()
    for node in nodes:
        for run_id in RUNS:
            await_summary_alone(node, run_id)
        await_following(node)
    assert ask(first.settings, REVISIONS) == before


REVISIONS = "SELECT run_id, revision FROM runs ORDER BY run_id"


def remove_details(node: Stage, run_id: str) -> None:
    """Let a year pass for a run that was dismissed, and remove its details on a node."""
    ask(
        node.settings,
        "UPDATE runs SET is_counted = true, ended_at = ended_at - interval '1 year',"
        f" closed_at = closed_at - interval '1 year' WHERE run_id = '{run_id}' RETURNING id",
    )
    with beside_database(node.settings, "test") as opened, as_node(opened) as context:
        assert retain(context, timedelta(days=90)).runs == 1


def files(node: Stage, run_id: str) -> list[str]:
    """Return the names of a run's files, in any of its folders."""
    folder = node.settings.autonomous_runs_dir / run_id
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def await_summary_alone(node: Stage, run_id: str) -> None:
    wait_until(lambda: files(node, run_id) == ["run_summary.md"], lambda: str(files(node, run_id)))
