"""Background work of several projects, and a service of several projects that is killed."""

from __future__ import annotations

import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psycopg2
import pytest
from pydantic import SecretStr
from sqlalchemy import text
from tests.api.conftest import Api
from tests.conftest import GitRepo, make_git_repo, serve_here, start_server, stop_server
from tests.outbound.receiver import Receiver
from tests.processes import ForkServer
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.background import jobs_process
from autopack.config import Settings
from autopack.contexts import of_project
from autopack.main import create_app

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

Json = dict[str, Any]
DEFAULT, FURTHER = "", "/projects/shop"


def add_remote(repo: GitRepo, bare: Path) -> Path:
    subprocess.run(["git", "init", "--quiet", "--bare", str(bare)], check=True)
    repo.git("remote", "add", "backup", str(bare))
    return bare


def must(answer: httpx.Response) -> Json:
    assert answer.is_success, f"{answer.request.url}: {answer.text}"
    found: Json = answer.json()
    return found


@pytest.mark.campaigns
def test_each_project_has_its_pushes_webhooks_and_deadlines(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, dropped_projects: None
) -> None:
    shop = make_git_repo(tmp_path / "shop")
    bare = {
        DEFAULT: add_remote(git_repo, tmp_path / "default.git"),
        FURTHER: add_remote(shop, tmp_path / "shop.git"),
    }
    changes = {"jobs": "inside", "webhook_private": True, "git_remote": SecretStr("backup")}
    app = create_app(settings.model_copy(update=changes))
    with (
        serve_here(app, settings) as server,
        Receiver() as receiver,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client,
    ):
        wanted = {"name": "shop", "repository": str(shop.path), "git_remote": "backup"}
        must(client.post("/projects", json=wanted))
        for at in (DEFAULT, FURTHER):
            name = at.rpartition("/")[2] or "default"
            hook = {
                "name": "hook",
                "url": f"http://127.0.0.1:{receiver.port}/{name}",
                "kinds": ["RunStarted"],
            }
            must(client.post(f"{at}/webhooks", json=hook))
            must(client.post(f"{at}/runs/start", json=Api.plan(f"run-{name}", phases=2)))
            result = {"status": "success", "patch_content": Api.new_file("src/one.txt")}
            phase = f"{at}/runs/run-{name}/phases/P0.0"
            must(client.post(f"{phase}/builder_result", json=result))
            claim = {"role": "builder", "agent": "a", "lease_seconds": 900}
            must(client.post(f"{at}/claim", json=claim))
        for name in ("Autopack", "shop"):
            context = app.state.places.find(name).state.context
            with context.engine.begin() as connection:
                connection.execute(text("UPDATE leases SET expires_at = now()"))
                connection.execute(
                    text("UPDATE phases SET deadline_at = now() WHERE deadline_at IS NOT NULL")
                )

        def has_lapsed(at: str, name: str) -> bool:
            run = must(client.get(f"{at}/runs/run-{name}"))
            return bool(run["tiers"][0]["phases"][1]["state"] == "QUEUED" and not run["leases"])

        def pushed_to(at: str) -> str:
            git_dir = str(bare[at])
            return out(["git", "--git-dir", git_dir, "for-each-ref", "--format=%(refname)"])

        def is_pushed(at: str, ref: str) -> bool:
            return ref in pushed_to(at)

        for at, name in ((DEFAULT, "default"), (FURTHER, "shop")):
            wait_until(partial(has_lapsed, at, name))
            wait_until(partial(is_pushed, at, f"refs/heads/autonomous/run-{name}"))
            other = "shop" if name == "default" else "default"
            assert f"run-{other}" not in pushed_to(at)
        wait_until(lambda: {m.path for m in receiver.messages} >= {"/default", "/shop"})
        for message in receiver.messages:
            assert f"run-{message.path[1:]}".encode() in message.body
        wait_until(lambda: must(client.get("/projects/shop/health"))["status"] == "healthy")


def test_a_process_for_jobs_alone_takes_up_a_project_that_is_added(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, dropped_projects: None
) -> None:
    shop = make_git_repo(tmp_path / "shop")
    app = create_app(settings)  # without workers of its own
    with (
        serve_here(app, settings) as server,
        jobs_process(settings, (), None),
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client,
    ):
        must(client.post("/projects", json={"name": "shop", "repository": str(shop.path)}))
        wait_until(lambda: client.get("/projects/shop/health").json()["status"] == "healthy")
        assert must(client.get("/health"))["projects"].keys() == {"Autopack", "shop"}


def out(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, check=True, text=True).stdout


def test_twenty_agents_on_two_projects_lose_nothing_when_the_service_is_killed(
    settings: Settings,
    git_repo: GitRepo,
    tmp_path: Path,
    dropped_projects: None,
    fork_server: ForkServer,
) -> None:
    """Every result that was acknowledged is on the branch of its own project in the end."""
    shop = make_git_repo(tmp_path / "shop")
    repos = {DEFAULT: git_repo, FURTHER: shop}
    server = start_server(fork_server, settings, tmp_path / "first.log")
    url = server.url
    try:
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            wanted = {"name": "shop", "repository": str(shop.path)}
            must(client.post("/projects", json=wanted))
            for at in repos:
                must(client.post(f"{at}/runs/start", json=Api.plan(phases=6)))
        acknowledged: dict[str, set[str]] = {DEFAULT: set(), FURTHER: set()}
        with of_project(settings, "shop") as found:
            databases = {DEFAULT: settings.database_url, FURTHER: found.settings.database_url}
        half = threading.Event()

        def agent(number: int) -> None:
            at = (DEFAULT, FURTHER)[number % 2]
            name = f"agent-{number}"
            with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
                end = time.monotonic() + PATIENCE_SECONDS
                while time.monotonic() < end:
                    try:
                        if work(client, at, name, acknowledged[at]):
                            return
                    except httpx.TransportError:
                        time.sleep(0.1)  # the service is being started again
                        let_lapse(databases[at] or "", name)
                    if len(acknowledged[DEFAULT]) > 2 and len(acknowledged[FURTHER]) > 2:
                        half.set()

        with ThreadPoolExecutor(20) as agents:
            ends = [agents.submit(agent, number) for number in range(20)]
            wait_until(
                lambda: half.is_set() or any(each.done() and each.exception() for each in ends)
            )
            assert half.is_set(), [each.exception() for each in ends if each.done()]
            server.process.kill()
            server.process.wait()
            port = int(url.rpartition(":")[2])
            server = start_server(fork_server, settings, tmp_path / "second.log", port)
            for each in ends:
                each.result()
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            for at, repo in repos.items():
                run = must(client.get(f"{at}/runs/run-001"))
                assert run["state"] == "DONE_SUCCESS", run["failure_reason"]
                names = repo.git("ls-tree", "-r", "--name-only", "autonomous/run-001").split()
                mine = {name for name in names if name.startswith(f"src/of{len(at)}-")}
                assert mine >= acknowledged[at]
                assert len(mine) == 6
                other = len(FURTHER if at == DEFAULT else DEFAULT)
                assert not [name for name in names if name.startswith(f"src/of{other}-")]
    finally:
        stop_server(server)


def let_lapse(database: str, agent: str) -> None:
    """End the time of the lease that an agent lost with an answer, as no other agent gets it."""
    connection = psycopg2.connect(database.replace("+psycopg2", ""))
    with closing(connection), connection, connection.cursor() as cursor:
        cursor.execute("SELECT FROM runs FOR UPDATE")  # first, as the service does
        cursor.execute(
            "WITH lost AS (UPDATE leases SET expires_at = now() WHERE agent = %s"
            " AND ended_at IS NULL RETURNING phase_pk) UPDATE phases SET deadline_at = now()"
            " FROM lost WHERE phases.id = phase_pk",
            (agent,),
        )


def work(client: httpx.Client, at: str, agent: str, acknowledged: set[str]) -> bool:
    """Build a phase, if there is one. Return whether the run is over."""
    claim = {"role": "builder", "agent": agent, "lease_seconds": 900}
    given = client.post(f"{at}/runs/run-001/claim", json=claim)
    if given.status_code == 409 and given.json()["code"] == "run_over":
        return True
    if given.status_code != 200:
        time.sleep(0.05)
        return False
    item = given.json()
    phase_id = item["phase_id"]
    path = f"src/of{len(at)}-{phase_id}.txt"
    report = {
        "status": "success",
        "patch_content": Api.new_file(path),
        "lease_token": item["lease"]["token"],
    }
    built = client.post(f"{at}/runs/run-001/phases/{phase_id}/builder_result", json=report)
    if built.is_success:
        acknowledged.add(path)
    return False
