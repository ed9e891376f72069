"""Three nodes behind nginx with the file that the product ships (docs/replicas.nginx.conf)."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.test_compose import PROXY, REPLICAS
from tests.waiting import wait_until

from autopack.contexts import beside_database, create_key
from autopack.domain.access import AccessRole
from autopack.domain.keys import NewKey

from .conftest import Stage
from .networks import Network, made_network
from .test_nodes import RUNS, Campaign, ask, assert_equal, endure, plan, running, stages_of
from .test_parallel import result

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.processes import ForkServer

    from autopack.config import Settings

pytestmark = [pytest.mark.e2e, pytest.mark.safety_critical]

IN_NAMESPACE = Path(__file__).resolve().with_name("in_namespace.py")
MAIN = """\
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr error;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/shipped.conf;
}}
"""


SILENCE = "proxy_read_timeout 50s;"


@contextmanager
def proxy_before(network: Network, silence: str) -> Iterator[str]:
    """Start nginx with the shipped file, which names our nodes; yields the socket of its server.

    `silence` is how long it waits for an answer.
    """
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed")
    # The path of a Unix socket has at most 107 bytes.
    with tempfile.TemporaryDirectory(prefix="proxy-") as name:
        folder = Path(name)
        shipped = PROXY.read_text()
        lines = {f"server {name}:8000;": at for at, name in enumerate(REPLICAS)}
        changes = {line: f"server {network.seats[at].address}:8000;" for line, at in lines.items()}
        changes["listen 8000;"] = f"listen unix:{folder}/socket;"
        changes[SILENCE] = silence
        for line, ours in changes.items():
            assert line in shipped
            shipped = shipped.replace(line, ours)
        (folder / "shipped.conf").write_text(shipped)
        (folder / "nginx.conf").write_text(MAIN.format(folder=folder))
        words = [program, "-p", name, "-c", f"{name}/nginx.conf", "-e", "stderr"]
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(network.switch.command(*words), stderr=log)
        try:
            log_file = folder / "log"
            wait_until((folder / "socket").exists, log_file.read_text)
            yield f"{name}/socket"
        finally:
            process.terminate()
            process.wait()


@pytest.fixture
def network() -> Iterator[Network]:
    with made_network(3) as made:
        yield made


@pytest.fixture
def nodes(
    network: Network,
    settings: Settings,
    git_repo: GitRepo,
    fork_server: ForkServer,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[list[Stage]]:
    """Three nodes on machines of their own; all requests go through the proxy.

    A test's parameter says how long it waits for the answer of a node.
    """
    with ExitStack() as stack:
        silence = getattr(request, "param", SILENCE)
        proxy = stack.enter_context(proxy_before(network, silence))
        with beside_database(settings, "test") as context:
            made = create_key(context, NewKey(name="ada", roles=tuple(AccessRole)))
        stages = []
        for seat, stage in zip(
            network.seats, stages_of(3, settings, git_repo, fork_server, tmp_path), strict=True
        ):
            environment = {
                "AUTOPACK_AUTH": "required",
                "AUTOPACK_HOST": seat.address,
                "AUTOPACK_PORT": "8000",
                "AUTOPACK_ALLOWED_HOSTS": "localhost",
            }
            first = stage.first
            if seat.namespace is not None:
                environment["NETWORK_NAMESPACE"] = str(seat.namespace)
                first = IN_NAMESPACE
            headers = {"Authorization": f"Bearer {made.api_key}"}
            place: dict[str, Any] = {"proxy": proxy, "url": "http://localhost", "headers": headers}
            stages.append(replace(stage, environment=environment, first=first, **place))
        yield stack.enter_context(running(stages))


@pytest.mark.parametrize(
    ("agents", "kills"), [(8, 1), pytest.param(20, 5, marks=pytest.mark.campaigns)]
)
def test_every_acknowledged_patch_is_on_each_node_whatever_is_killed_behind_the_proxy(
    nodes: list[Stage], agents: int, kills: int
) -> None:
    endure(nodes, agents, kills)


def await_level(nodes: list[Stage]) -> None:
    def listed() -> list[Any]:
        found: list[Any] = nodes[0].must("GET", "/health")["nodes"]
        return found

    def is_level() -> bool:
        lacks = ("lag_runs", "unseen_runs", "lacking_runs")
        return not any(node[name] for node in listed() for name in lacks)

    wait_until(is_level, lambda: str(listed()))


def test_a_change_within_which_a_node_dies_is_sent_to_no_other_and_has_one_effect_when_repeated(
    nodes: list[Stage],
) -> None:
    """Each node would die of it: before its commit in Postgres, then after it."""
    nodes[0].must("POST", "/runs/start", plan("run-001", 2))
    path = "/runs/run-001/phases/P0/builder_result"
    body = result("src/p0/a", "text")
    for step in ("refs_prepared", "committed"):
        await_level(nodes)  # to follow another node passes these steps too
        for node in nodes:
            node.kill_at(step)
        answer = nodes[0].call("POST", path, body, "key")
        assert answer.status_code == 502, answer.text
        wait_until(lambda: not all(node.is_running() for node in nodes), lambda: "none has died")
        [dead] = [node for node in nodes if not node.is_running()]
        for node in nodes:
            node.fate.unlink(missing_ok=True)
        dead.await_death()
        dead.start()
    again = nodes[0].call("POST", path, body, "key")
    assert (again.status_code, again.headers.get("Idempotency-Replayed")) == (
        200,
        "true",
    ), again.text
    assert ask(nodes[0].settings, "SELECT count(*) FROM submissions") == [(1,)]


def test_with_one_node_dead_every_request_is_answered_and_health_tells_of_it(
    nodes: list[Stage],
) -> None:
    for run_id in RUNS:
        nodes[0].must("POST", "/runs/start", plan(run_id, 3))
    nodes[1].kill()
    for step in range(3):
        for run_id in RUNS:
            path = f"/runs/{run_id}/phases/P{step}/builder_result"
            nodes[0].must("POST", path, result(f"src/p{step}/a", run_id))
            assert nodes[0].must("GET", f"/runs/{run_id}/integration_status")
    assert len(nodes[0].must("GET", "/health")["nodes"]) == 3
    nodes[1].start()
    assert_equal(nodes)


@pytest.mark.parametrize("nodes", ["proxy_read_timeout 3s;"], indirect=True)
@pytest.mark.parametrize("fate", ["frozen", "cut off"])
@pytest.mark.campaigns
def test_a_node_that_is_frozen_or_cut_off_holds_up_no_request_for_long_and_is_level_afterwards(
    nodes: list[Stage], network: Network, fate: str
) -> None:
    for run_id in RUNS:
        nodes[0].must("POST", "/runs/start", plan(run_id, 2))
    campaign = Campaign(nodes, seed=1)
    if fate == "frozen":
        nodes[2].send_signal(signal.SIGSTOP)
    else:
        network.cut(2)
    for number in range(4):
        campaign.work(number)
        for run_id in RUNS:
            assert nodes[0].must("GET", f"/runs/{run_id}/integration_status")
    if fate == "frozen":
        nodes[2].send_signal(signal.SIGCONT)
    else:
        network.mend(2)
    assert_equal(nodes)
    campaign.assert_answered_once()
