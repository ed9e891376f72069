"""Nodes: any number of clones of one repository serve a database, and no other repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from tests.outbound.receiver import Receiver
from tests.recovery.consistency import assert_consistent
from tests.waiting import wait_until

from autopack.background import UPKEEP_SECONDS
from autopack.config import Settings
from autopack.contexts import as_node, open_context
from autopack.domain.plan import Plan
from autopack.domain.results import BuilderReport
from autopack.domain.ruleset import Ruleset
from autopack.gitrepo.node import Generations
from autopack.gitrepo.process import GitRunner
from autopack.migrating import DatabaseError
from autopack.mirror import durability
from autopack.models import Run
from autopack.outbound import send
from autopack.services import following, health, nodes, opening, rulesets
from autopack.services.building import submit_builder_result
from autopack.services.context import AppContext
from autopack.services.deliveries import deliver_webhook
from autopack.services.following import follow_events, look_at_all
from autopack.services.nodes import NodeMember
from autopack.services.notifications import tell_webhooks
from autopack.services.starting import start_run
from autopack.services.upkeep import PULSE, start_up, tend_node
from autopack.store import nodes as store
from autopack.store import pulses
from autopack.store.session import RowSession

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.testclient import TestClient
    from tests.conftest import GitRepo

Serve = Callable[..., AbstractContextManager[AppContext]]

PLAN: dict[str, Any] = {
    "run": {"run_id": "run-001"},
    "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "Tier"}],
    "phases": [{"phase_id": "P1", "phase_index": 0, "tier_id": "T1", "name": "Phase"}],
}
NEW_FILE = """\
diff --git a/NAME.txt b/NAME.txt
new file mode 100644
--- /dev/null
+++ b/NAME.txt
@@ -0,0 +1 @@
+NAME
"""


@pytest.fixture(autouse=True)
def _stays_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "ALIVE_SECONDS", 600)  # no stall of the machine looks like an end


@pytest.fixture
def serve(settings: Settings) -> Serve:
    """Serve the database as another process would, until the block ends."""

    @contextmanager
    def serve(*, has_ci_alone: bool = False, **places: Path) -> Iterator[AppContext]:
        with (
            open_context(settings.model_copy(update=places)) as opened,
            as_node(opened, has_ci_alone=has_ci_alone) as context,
        ):
            yield context

    return serve


@pytest.fixture
def other_clone(git_repo: GitRepo, tmp_path: Path) -> dict[str, Path]:
    git_repo.git("clone", "--quiet", str(git_repo.path), str(tmp_path / "clone"))
    return places_at(tmp_path, "clone")


@pytest.fixture
def other_repository(tmp_path: Path) -> dict[str, Path]:
    from tests.conftest import make_git_repo

    make_git_repo(tmp_path / "stranger").git("commit", "--amend", "--quiet", "-m", "Another start")
    return places_at(tmp_path, "stranger")


def places_at(folder: Path, name: str) -> dict[str, Path]:
    return {
        "repo_path": folder / name,
        "home": folder / f"{name}-home",
        "autonomous_runs_dir": folder / f"{name}-runs",
    }


def test_services_on_two_clones_of_one_repository_are_two_nodes(
    serve: Serve, other_clone: dict[str, Path]
) -> None:
    with serve() as first, serve(**other_clone) as second:
        assert first.node_id != second.node_id


def test_processes_of_one_home_are_one_node(serve: Serve) -> None:
    with serve() as first, serve() as second:
        assert first.node_id == second.node_id


@pytest.mark.parametrize("name", ["home", "autonomous_runs_dir"])
def test_another_home_or_runs_directory_makes_another_node(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    with serve() as first, serve(**{name: tmp_path / "another"}) as second:
        assert first.node_id != second.node_id


def test_a_copy_of_the_clone_with_its_home_is_another_node(
    serve: Serve, git_repo: GitRepo, settings: Settings, tmp_path: Path
) -> None:
    with serve() as first:
        copies = places_at(tmp_path, "copy")
        shutil.copytree(git_repo.path, copies["repo_path"])
        shutil.copytree(settings.home, copies["home"])
        runs_dir = settings.autonomous_runs_dir
        with serve(**copies | {"autonomous_runs_dir": runs_dir}) as second:
            assert first.node_id != second.node_id


def test_a_clone_that_was_moved_with_its_home_is_the_same_node(
    serve: Serve, git_repo: GitRepo, settings: Settings, tmp_path: Path
) -> None:
    with serve() as first:
        moved = places_at(tmp_path, "moved")
        git_repo.path.rename(moved["repo_path"])
        settings.home.rename(moved["home"])
        with serve(**moved | {"autonomous_runs_dir": settings.autonomous_runs_dir}) as second:
            assert first.node_id == second.node_id


def _generations(context: AppContext) -> Path:
    return context.repository.node_identity().file


def test_a_frozen_process_loses_its_turn_to_another_one_and_finds_out_when_it_goes_on(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one node that is frozen within the upkeep makes all others unhealthy."""
    assert health.PATIENCE_SECONDS - pulses.IDLE_MILLISECONDS / 1_000 > 4 * UPKEEP_SECONDS
    monkeypatch.setattr(pulses, "IDLE_MILLISECONDS", 50)
    context: AppContext = app.state.context

    def is_mine(session: RowSession) -> bool:
        found = pulses.try_turn(session, PULSE)
        session.rollback()
        return found

    frozen = context.writing()
    assert pulses.try_turn(frozen, PULSE)
    with context.writing() as session:
        wait_until(lambda: is_mine(session), lambda: "the turn is still held")
    with pytest.raises(DBAPIError):
        pulses.keep_turn(frozen)
    frozen.invalidate()


def test_an_old_backup_of_a_home_becomes_a_new_node(serve: Serve) -> None:
    """What the database notes of the node was written after the backup."""
    with serve() as first:
        backup = _generations(first).read_text()
    for _ in range(2):
        with serve() as later:
            assert later.node_id == first.node_id
    _generations(first).write_text(backup)
    with serve() as restored:
        assert restored.node_id != first.node_id
    with serve() as again:
        assert again.node_id == restored.node_id


def test_a_start_that_was_cut_before_the_database_knew_it_keeps_the_node(serve: Serve) -> None:
    with serve() as first:
        pass
    known = first.repository.node_identity().generations()
    first.repository.node_identity().put(Generations(before=known.last, last="not committed"))
    with serve() as second:
        assert second.node_id == first.node_id


def test_a_service_answers_no_more_once_a_copy_of_its_home_was_started(
    app: FastAPI, client: TestClient, member: NodeMember
) -> None:
    """The copy of a disk on another machine: same files, even the same inodes."""
    assert client.post("/runs/start", json=PLAN).status_code == 201
    copied = _generations(member.context).read_text()
    nodes.register(member.context)  # the copy, on its own disk …
    _generations(member.context).write_text(copied)  # … so here nothing has changed
    member.look()
    answer = client.post("/runs/start", json=PLAN | {"run": {"run_id": "run-002"}})
    assert (answer.status_code, answer.json()["code"]) == (503, "superseded")
    health = client.get("/health")
    assert health.status_code == 503
    assert "copy of this one's home" in health.json()["checks"]["database"]["detail"]
    with member.context.reading() as session:  # the copy trusts none of its files and branches
        [mark] = session.fetch("SELECT mirrored_revision FROM runs")
    assert mark == (0,)


def test_a_repository_without_common_history_is_refused_once_there_are_runs(
    app: FastAPI, serve: Serve, other_repository: dict[str, Path]
) -> None:
    from starlette.testclient import TestClient

    with serve():
        pass
    with serve(**other_repository):  # no run is lost by it
        pass
    with serve():
        pass
    with TestClient(app, base_url="http://localhost", client=("127.0.0.1", 50000)) as client:
        assert client.post("/runs/start", json=PLAN).status_code == 201
    with pytest.raises(DatabaseError, match="no history"), serve(**other_repository):
        pass


def test_only_ci_may_run_in_any_clone_of_the_repository(
    client: TestClient,
    serve: Serve,
    other_clone: dict[str, Path],
    other_repository: dict[str, Path],
) -> None:
    assert client.post("/runs/start", json=PLAN).status_code == 201
    with serve(has_ci_alone=True, **other_clone):
        pass
    with pytest.raises(DatabaseError), serve(has_ci_alone=True, **other_repository):
        pass


@pytest.fixture
def member(app: FastAPI, client: TestClient) -> Iterator[NodeMember]:
    """A second process of the application's node, with the application's own context."""
    member = NodeMember(app.state.context)
    yield member
    member.close()


@pytest.fixture
def gone(app: FastAPI, client: TestClient, serve: Serve, other_clone: dict[str, Path]) -> str:
    """A node beside the application's own, which started a run and has ended a while ago."""
    with serve(**other_clone) as context:
        start_run(context, Plan.model_validate(PLAN))
    silence(app.state.context, context.node_id)
    return context.node_id


def silence(context: AppContext, node_id: str) -> None:
    """Let the last sign of life of a node be an hour ago."""
    query = "UPDATE nodes SET heartbeat_at = now() - interval '1 hour' WHERE id = :id"
    with context.writing() as session:
        session.execute(text(query), {"id": node_id})
        session.commit()


def test_a_node_that_is_gone_is_removed_with_its_marks(
    app: FastAPI, client: TestClient, gone: str
) -> None:
    context: AppContext = app.state.context
    with context.writing() as session:
        store.note_lack(session, "run-001", gone, "a commit is missing")
        session.execute(text("UPDATE runs SET mirrored_revision = 0"))  # it was killed in between
        session.commit()
    listed = client.get("/nodes").json()["nodes"]
    assert [node["id"] for node in listed] == [context.node_id, gone]
    assert [node["is_alive"] for node in listed] == [True, False]
    removed = client.delete(f"/nodes/{gone}")
    assert (removed.status_code, removed.json()["id"]) == (200, gone)
    assert removed.json()["lacks"] == ["run-001: a commit is missing"]
    for path in ("/nodes", "/health"):
        assert [node["id"] for node in client.get(path).json()["nodes"]] == [context.node_id]
    with context.reading() as session:
        assert not session.fetch("SELECT FROM node_runs WHERE node_id = %s", (gone,))
        [mark] = session.fetch("SELECT mirrored_by, mirrored_revision = revision FROM runs")
    assert mark == (None, True), "no run waits for a node that is gone"
    entry = client.get("/audit").json()["entries"][-1]
    assert (entry["action"], entry["subject"]) == ("node_removed", gone)
    assert entry["data"] == {"place": removed.json()["place"]}
    assert client.delete(f"/nodes/{gone}").status_code == 404


def test_a_job_process_of_a_home_leaves_the_address_of_its_service(
    app: FastAPI, client: TestClient
) -> None:
    context: AppContext = app.state.context

    def address() -> object:
        [node] = client.get("/nodes").json()["nodes"]
        return node["address"]

    nodes.register(context, "http://10.0.0.7:8000")
    nodes.register(context)
    assert address() == "http://10.0.0.7:8000"
    nodes.register(context, "http://10.0.0.8:8000")
    assert address() == "http://10.0.0.8:8000"


def test_a_node_that_is_alive_or_unknown_is_not_removed(app: FastAPI, client: TestClient) -> None:
    own = app.state.context.node_id
    place = client.get("/nodes").json()["nodes"][0]["place"]
    for node_id, status, code, named in (
        (own, 409, "node_alive", f"'{own}' at {place} "),
        ("unknown", 404, "not_found", "'unknown'"),
        ("%1b[31m", 422, "invalid_request", "node_id"),
    ):
        refused = client.delete(f"/nodes/{node_id}")
        assert (refused.status_code, refused.json()["code"]) == (status, code)
        assert named in refused.text
    assert [node["id"] for node in client.get("/nodes").json()["nodes"]] == [own]
    assert not client.get("/audit").json()["entries"]


@pytest.mark.parametrize("is_by_hand", [True, False], ids=["by an operator", "after days"])
def test_a_removed_node_comes_back_as_itself_and_trusts_none_of_its_files(
    app: FastAPI,
    client: TestClient,
    serve: Serve,
    other_clone: dict[str, Path],
    gone: str,
    is_by_hand: bool,
) -> None:
    """It may be an old backup of its home, which only the row that was removed would show."""
    if is_by_hand:
        assert client.delete(f"/nodes/{gone}").status_code == 200
    else:
        with app.state.context.writing() as session:
            session.execute(
                text("UPDATE nodes SET heartbeat_at = now() - interval '8 days' WHERE id = :id"),
                {"id": gone},
            )
            assert len(store.remove_silent(session)) == 1
            session.commit()
    [page] = other_clone["autonomous_runs_dir"].rglob("run_summary.md")
    today = page.read_text()
    page.write_text("as it was then")
    with serve(**other_clone) as again:
        assert again.node_id == gone

        def state() -> tuple[str, bool, int]:
            listed = client.get("/nodes").json()["nodes"]
            [node] = [node for node in listed if node["id"] == gone]
            return page.read_text(), node["is_alive"], node["lag_runs"]

        wait_until(lambda: state() == (today, True, 0), lambda: str(state()))


def test_a_node_that_only_seemed_to_be_gone_comes_back_with_its_next_sign_of_life(
    member: NodeMember, client: TestClient
) -> None:
    member.look()
    with member.context.writing() as session:
        store.remove_node(session, member.context.node_id)
        session.commit()
    member.look()
    [node] = client.get("/nodes").json()["nodes"]
    assert node["id"] == member.context.node_id


@pytest.fixture
def second(
    client: TestClient,
    serve: Serve,
    other_clone: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[AppContext]:
    """Another node beside the application's own; both follow each other only when told to."""
    monkeypatch.setattr(store, "has_others", lambda *_, **__: False)
    with serve(**other_clone) as context:
        yield context


BRANCH = "refs/heads/autonomous/run-001"


def build(node: AppContext, phase_id: str, **fields: str) -> None:
    """Let a phase be completed by a patch that a node takes."""
    patch = NEW_FILE.replace("NAME", phase_id)
    built = BuilderReport.model_validate({"status": "success", "patch_content": patch} | fields)
    submit_builder_result(node, "run-001", phase_id, built)


PHASES = [PLAN["phases"][0] | {"phase_id": f"P{at + 1}", "phase_index": at} for at in range(2)]
TWO_PHASES = PLAN | {"phases": PHASES}


@pytest.mark.parametrize("is_level", [True, False], ids=["level", "behind"])
def test_a_branch_that_a_stranger_moved_on_one_node_ends_the_run_once_for_all_nodes(
    app: FastAPI,
    client: TestClient,
    git_repo: GitRepo,
    second: AppContext,
    other_clone: dict[str, Path],
    is_level: bool,
) -> None:
    """Whether the other node is behind then or not, its branch comes to be as recorded."""
    from tests.conftest import GitRepo

    first: AppContext = app.state.context
    clone = GitRepo(other_clone["repo_path"])
    assert client.post("/runs/start", json=TWO_PHASES).status_code == 201
    tend_node(second)
    build(second, "P1")
    if is_level:
        tend_node(first)
    theirs = clone.git("commit-tree", "-m", "theirs", "-p", BRANCH, "main^{tree}")
    clone.git("update-ref", BRANCH, theirs)

    for _ in range(2):
        for node in (second, first):
            tend_node(node)

    run = client.get("/runs/run-001").json()
    assert run["failure_code"] == "branch_moved"
    assert theirs in run["failure_reason"]
    ends = [
        each
        for each in client.get("/runs/run-001/events").json()["events"]
        if each["kind"] == "RunEnded"
    ]
    assert len(ends) == 1
    assert clone.git("rev-parse", BRANCH) == theirs
    assert git_repo.git("rev-parse", BRANCH) == run["head_commit"]
    for node in (first, second):
        [page] = node.settings.autonomous_runs_dir.rglob("run_summary.md")
        assert theirs in page.read_text()
    assert [node["lag_runs"] for node in client.get("/nodes").json()["nodes"]] == [0, 0]


def test_no_event_is_before_its_predecessor_when_the_time_of_a_node_is_an_hour_back(
    app: FastAPI, client: TestClient, second: AppContext
) -> None:
    slow = replace(second, now=lambda: second.now() - timedelta(hours=1))
    assert client.post("/runs/start", json=TWO_PHASES).status_code == 201
    build(slow, "P1")
    claim = {"role": "builder", "agent": "codex", "lease_seconds": 60}
    lease = client.post("/runs/run-001/claim", json=claim).json()["lease"]
    build(slow, "P2", lease_token=lease["token"])
    tend_node(app.state.context)
    run = client.get("/runs/run-001").json()
    assert run["state"].startswith("DONE_SUCCESS")
    events = client.get("/runs/run-001/events?limit=1000").json()["events"]
    moments = [datetime.fromisoformat(each["at"]) for each in events]
    assert moments == sorted(moments)
    for thing in (run, *run["tiers"], *run["tiers"][0]["phases"]):
        began = thing.get("started_at") or run["created_at"]
        assert began <= (thing.get("ended_at") or run["ended_at"])


class TestWebhooks:
    @pytest.fixture
    def settings(self, settings: Settings) -> Settings:
        return settings.model_copy(update={"webhook_private": True})

    def test_an_event_is_told_once_whichever_nodes_work_at_the_same_time(
        self, app: FastAPI, client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # A machine that stalls for seconds is no receiver that is silent.
        monkeypatch.setattr("autopack.services.deliveries.send", partial(send, seconds=60))
        both = (app.state.context, second)
        with Receiver() as receiver, ThreadPoolExecutor() as pool:
            hook = {"name": "hook", "url": receiver.url, "kinds": ["*"]}
            assert client.post("/webhooks", json=hook).status_code == 201
            assert client.post("/runs/start", json=TWO_PHASES).status_code == 201
            for phase_id, node in zip(("P1", "P2"), both, strict=True):
                build(node, phase_id)
                for _ in range(2):
                    list(pool.map(tell_webhooks, both))
                    list(pool.map(deliver_webhook, both, [1, 1]))
            told = [json.loads(each.body) for each in receiver.messages]
        events = client.get("/runs/run-001/events?limit=1000").json()["events"]
        sequences = [each["data"]["sequence"] for each in told if ".event." in each["type"]]
        assert sorted(sequences) == [each["sequence"] for each in events]
        assert len({each["id"] for each in told}) == len(told)
        with app.state.context.reading() as session:
            [jobs] = session.fetch(
                "SELECT count(*) FROM procrastinate_jobs WHERE task_name = 'deliver_webhook'"
            )
        assert jobs == (1,)


def test_a_branch_that_a_stranger_moved_on_a_node_that_is_behind_ends_the_run_too(
    app: FastAPI, client: TestClient, git_repo: GitRepo, second: AppContext
) -> None:
    first: AppContext = app.state.context
    assert client.post("/runs/start", json=TWO_PHASES).status_code == 201
    build(second, "P1")
    theirs = git_repo.git("commit-tree", "-m", "theirs", "-p", BRANCH, "main^{tree}")
    git_repo.git("update-ref", BRANCH, theirs)
    for _ in range(2):
        for node in (second, first):
            tend_node(node)
    run = client.get("/runs/run-001").json()
    assert (run["failure_code"], theirs in run["failure_reason"]) == ("branch_moved", True)
    assert git_repo.git("rev-parse", BRANCH) == theirs
    assert second.repository.read_ref(BRANCH) == run["head_commit"]
    assert [node["lag_runs"] for node in client.get("/nodes").json()["nodes"]] == [0, 0]


def start(client: TestClient, *run_ids: str) -> None:
    for run_id in run_ids:
        plan = TWO_PHASES | {"run": {"run_id": run_id}}
        assert client.post("/runs/start", json=plan).status_code == 201


def node_of(client: TestClient, context: AppContext) -> dict[str, Any]:
    listed: list[dict[str, Any]] = client.get("/nodes").json()["nodes"]
    [node] = [node for node in listed if node["id"] == context.node_id]
    return node


def branches(context: AppContext) -> list[str]:
    """Return the runs whose branches a node shows, in the order in which it made them."""
    folder = context.settings.repo_path / ".git/refs/heads/autonomous"
    made = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime_ns)
    return [path.name for path in made]


def test_a_new_node_answers_at_once_and_then_catches_up_with_live_runs_first(
    app: FastAPI, client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"run-{number}" for number in range(6)]
    start(client, *names)
    for name in names[4:]:
        assert client.post(f"/runs/{name}/cancel", json={"reason": "enough"}).is_success
    start_up(second)
    assert branches(second) == []
    assert node_of(client, second)["unseen_runs"] == 6

    monkeypatch.setattr(following, "RUNS_AT_ONCE", 2)
    monkeypatch.setattr(following, "FOLLOWING_SECONDS", -1.0)  # one batch at a time
    assert tend_node(second)
    start(client, "run-9")  # what happens meanwhile is followed too
    while tend_node(second):
        pass
    order = branches(second)
    assert order.index("run-9") < 4
    assert [name for name in order if name != "run-9"] == [
        *("run-3", "run-2", "run-1", "run-0"),
        *("run-5", "run-4"),
    ]
    assert node_of(client, second)["unseen_runs"] == 0
    assert node_of(client, second)["lag_runs"] == 0


def test_health_says_that_a_node_catches_up_and_lets_it_be_asked(
    app: FastAPI, client: TestClient
) -> None:
    start(client, "run-001", "run-002")
    with app.state.context.autocommitting() as session:
        followed = store.Followed(position=1, unseen_before=store.next_run_pk(session))
        store.set_followed(session, app.state.context.node_id, followed)
    health = client.get("/health")
    assert health.json()["checks"]["node"]["detail"] == "catching up: 2 runs to look at"
    assert (health.status_code, health.json()["status"]) == (200, "healthy")
    tend_node(app.state.context)
    assert "node" not in client.get("/health").json()["checks"]


def test_a_node_that_was_away_longer_than_events_are_followed_looks_at_every_run(
    client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "run-001", "run-002")
    tend_node(second)
    build_on(client, "run-001", "P1")
    monkeypatch.setattr(following, "EVENTS_AT_ONCE", 1)
    look_at_all(second)
    assert node_of(client, second)["unseen_runs"] == 2
    tend_node(second)
    assert node_of(client, second)["unseen_runs"] == 0
    assert second.repository.read_ref(BRANCH) == head_of(client, "run-001")


def test_all_runs_that_a_node_lacked_are_tried_again_at_once_when_the_first_ones_succeed(
    client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"run-{number}" for number in range(5)]
    start(client, *names)
    tend_node(second)
    with second.writing() as session:
        store.reset_checkpoints(session, names, second.node_id, "the files were removed")
        session.commit()
    assert node_of(client, second)["lacking_runs"] == 5
    monkeypatch.setattr(following, "RUNS_AT_ONCE", 2)
    tend_node(second)
    assert node_of(client, second)["lacking_runs"] == 0


def test_an_unexpected_error_of_one_run_keeps_a_node_from_following_no_other(
    client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "run-001", "run-002", "run-003")
    bring = opening.up_to_date

    def fail(context: AppContext, session: RowSession, run_id: str) -> Run:
        if run_id == "run-002":
            raise ZeroDivisionError("a fault of ours")
        return bring(context, session, run_id)

    with monkeypatch.context() as broken:
        broken.setattr(following, "up_to_date", fail)
        tend_node(second)
    assert set(branches(second)) == {"run-001", "run-003"}
    assert "ZeroDivisionError" in node_of(client, second)["lacks"][0]
    tend_node(second)
    assert set(branches(second)) == {"run-001", "run-002", "run-003"}
    assert node_of(client, second)["lacking_runs"] == 0


def test_a_node_writes_only_the_files_of_what_another_one_has_changed(
    app: FastAPI, client: TestClient, second: AppContext, settings: Settings
) -> None:
    first: AppContext = app.state.context
    start(client, "run-001")
    tend_node(second)
    for node, other, phase_id in ((first, second, "P1"), (second, first, "P2")):
        before = inodes(other)
        build(node, phase_id)
        tend_node(other)
        written = {name for name, inode in inodes(other).items() if before.get(name) != inode}
        if phase_id == "P1":  # the other phase ends the run, which writes its record
            assert {Path(name).name for name in written} >= {"phase_0_P1.md", "run_summary.md"}
            assert not any("P2" in name for name in written)
        for each in (first, second):
            assert_consistent(each.settings)


def inodes(node: AppContext) -> dict[str, int]:
    folder = node.settings.autonomous_runs_dir
    return {
        str(path.relative_to(folder)): path.stat().st_ino
        for path in folder.glob("run-*/**/*")
        if path.is_file()
    }


RULESET = {"project_id": "Autopack", "version": 2}


def test_a_ruleset_that_a_node_follows_amid_the_start_of_a_run_stays_in_force(
    serve: Serve, other_clone: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the start has read before is no edit of the operator's."""
    with serve() as first, serve(**other_clone) as second:
        rulesets.read_ruleset(second)
        rulesets.follow_ruleset(second)
        rulesets.write_ruleset(first, RULESET)
        read = rulesets.read_ruleset

        def read_just_before(context: AppContext) -> Ruleset:
            monkeypatch.setattr(rulesets, "read_ruleset", read)
            ruleset = read(context)
            rulesets.follow_ruleset(context)
            return ruleset

        monkeypatch.setattr(rulesets, "read_ruleset", read_just_before)
        start_run(second, Plan.model_validate(PLAN))
        [only], _ = rulesets.list_versions(first, limit=9, before=None)
        assert only.document["version"] == 2


def test_a_ruleset_that_is_put_in_force_on_a_node_amid_its_following_stays_in_force(
    serve: Serve, other_clone: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as first, serve(**other_clone) as second, ThreadPoolExecutor(1) as beside:
        rulesets.read_ruleset(second)
        rulesets.follow_ruleset(second)
        rulesets.write_ruleset(first, RULESET)
        parse = rulesets.parse_ruleset
        putting: list[Future[Ruleset]] = []

        def parse_just_before(content: bytes, project_id: str) -> Ruleset:
            monkeypatch.setattr(rulesets, "parse_ruleset", parse)
            newer = RULESET | {"version": 3}
            putting.append(beside.submit(rulesets.write_ruleset, second, newer))
            waiting = (
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            with first.reading() as session:
                wait_until(
                    lambda: session.scalar(text(waiting)) or putting[0].done(),
                    lambda: "nobody waits",
                )
            return parse(content, project_id)

        monkeypatch.setattr(rulesets, "parse_ruleset", parse_just_before)
        rulesets.follow_ruleset(second)
        putting[0].result()
        start_run(second, Plan.model_validate(PLAN))
        found, _ = rulesets.list_versions(first, limit=9, before=None)
        assert [each.document["version"] for each in found] == [3, 2]


def test_following_a_change_of_a_branch_starts_no_process_of_git(
    client: TestClient, second: AppContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(client, "run-001")
    tend_node(second)
    build_on(client, "run-001", "P1")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("git was started")

    with monkeypatch.context() as watched:
        watched.setattr(GitRunner, "run", refuse)
        watched.setattr(GitRunner, "start", refuse)
        follow_events(second)
    assert node_of(client, second)["lacking_runs"] == 0
    assert second.repository.read_ref(BRANCH) == head_of(client, "run-001")
    assert_consistent(second.settings)


def test_objects_that_a_node_made_again_survive_a_loss_that_their_heads_hide(
    client: TestClient, second: AppContext
) -> None:
    """As a power cut may leave them: they are not synced by the following itself."""
    start(client, "run-001")
    tend_node(second)
    build_on(client, "run-001", "P1")
    tend_node(second)
    head = head_of(client, "run-001")
    tree = second.repository.tree_of(head)
    lost = second.settings.repo_path / ".git/objects" / tree[:2] / tree[2:]
    lost.chmod(0o644)
    lost.write_bytes(lost.read_bytes()[:-5])
    mark = second.settings.autonomous_runs_dir / durability.MARK
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"boot": "an earlier start"}))
    start_up(second)
    tend_node(second)
    assert_consistent(second.settings)


def build_on(client: TestClient, run_id: str, phase_id: str) -> None:
    body = {"status": "success", "patch_content": NEW_FILE.replace("NAME", phase_id)}
    path = f"/runs/{run_id}/phases/{phase_id}/builder_result"
    assert client.post(path, json=body).status_code == 200


def head_of(client: TestClient, run_id: str) -> str:
    head: str = client.get(f"/runs/{run_id}").json()["head_commit"]
    return head
