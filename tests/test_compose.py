"""docker-compose.yml: what a team starts asks for keys, and holds no password."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from tests.conftest import GitRepo

from autopack.config import Settings

pytestmark = pytest.mark.unit

FILE = Path(__file__).resolve().parents[1] / "docker-compose.yml"
PROXY = FILE.with_name("docs") / "replicas.nginx.conf"
REPLICAS = ("scale-1", "scale-2", "scale-3")
NODES = (*REPLICAS, "scale-jobs")
DOCKERFILE = FILE.with_name("Dockerfile")


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def test_a_plain_start_is_for_this_machine_and_without_the_team(services: dict[str, Any]) -> None:
    plain = {name for name, service in services.items() if "profiles" not in service}
    assert plain == {"db", "api"}
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_a_public_name_of_a_team_is_beside_those_of_the_machine(services: dict[str, Any]) -> None:
    hosts = services["team"]["environment"]["AUTOPACK_ALLOWED_HOSTS"]
    for public in ("", "autopack.example.org"):
        given = hosts.replace("${AUTOPACK_ALLOWED_HOSTS:-}", public)
        settings = Settings(allowed_hosts=given)
        assert settings.allowed_hosts == ("localhost", "127.0.0.1", *filter(None, [public]))


@pytest.mark.parametrize(
    ("environment", "code"),
    [
        ({"AUTOPACK_AUTH": "required", "AUTOPACK_ALLOWED_HOSTS": "a.example, localhost"}, 0),
        ({"AUTOPACK_AUTH": "required"}, 1),
        ({"AUTOPACK_ALLOWED_HOSTS": "a.example"}, 1),
    ],
)
def test_the_images_health_check_asks_under_a_name_that_is_answered(
    environment: dict[str, str], code: int
) -> None:
    """Here only `/health/live` of `a.example` is well; no proxy of the container is asked."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_well = (self.path, self.headers["Host"]) == ("/health/live", "a.example")
            self.send_response(200 if is_well else 421)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    (line,) = re.findall(r'(?m)^    CMD (\["python", "-c", .*\])$', DOCKERFILE.read_text())
    check = json.loads(line)
    with HTTPServer(("127.0.0.1", 0), Service) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        program = check[2].replace("8000", str(server.server_port))
        ours = {**environment, "http_proxy": "http://127.0.0.1:1"}
        ended = subprocess.run([sys.executable, "-c", program], env=ours)
        thread.join()
    assert ended.returncode == code


def test_a_teams_service_asks_for_keys(services: dict[str, Any]) -> None:
    environment = services["team"]["environment"]
    assert environment["AUTOPACK_AUTH"] == "required"
    assert "ports" not in services["team-db"]


def test_no_password_of_a_team_is_in_the_file(services: dict[str, Any]) -> None:
    team = yaml.safe_dump({name: services[name] for name in ("team", "team-db", "team-password")})
    assert not re.search(r"postgresql://[^@\s]*:[^@\s]+@", team)
    assert "POSTGRES_PASSWORD:" not in team


def test_the_password_is_random_made_once_and_readable_by_its_two_users_alone(
    services: dict[str, Any], tmp_path: Path
) -> None:
    """Runs the script of `team-password` on a folder of ours; who owns the files is left out."""
    entry = services["team-password"]["entrypoint"]
    script = entry[2].replace("$$", "$").replace("/secrets", str(tmp_path))
    script = re.sub(r"(?m)^chown.*$", "", script)

    def make() -> tuple[str, str]:
        environment = {"PATH": os.environ["PATH"], "OWNER": "1000"}
        subprocess.run([*entry[:2], script], env=environment, check=True)
        return (tmp_path / "postgres").read_text(), (tmp_path / "pgpass").read_text()

    password, passfile = make()
    assert re.fullmatch("[0-9a-f]{64}", password)
    assert passfile == f"team-db:5432:autopack:autopack:{password}\n"
    for name in ("postgres", "pgpass"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert make() == (password, passfile)


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Return the names of a service's volumes by their folders, without those that end in `:ro`."""
    matches = (re.fullmatch("(.+):(/[^:]+)", each) for each in service["volumes"])
    return {found[2]: found[1] for found in matches if found}


def test_each_node_of_scale_has_a_clone_and_a_home_of_its_own_and_the_same_database(
    services: dict[str, Any],
) -> None:
    folders = {"/repo", "/var/lib/autopack"}
    volumes = [volume for node in NODES for volume in mounts(services[node]).values()]
    assert all(set(mounts(services[node])) == folders for node in NODES)
    assert len(set(volumes)) == len(volumes) == len(NODES) * len(folders)
    assert set(volumes) <= set(yaml.safe_load(FILE.read_text())["volumes"])
    clones = {mounts(services[node])["/repo"] for node in NODES}
    assert set(mounts(services["scale-clones"]).values()) == clones
    environments = [services[node]["environment"] for node in (*NODES, "team")]
    assert all(each == environments[0] for each in environments)


def test_scale_starts_all_that_it_needs_by_its_name_and_publishes_the_proxy_alone(
    services: dict[str, Any],
) -> None:
    needed, left = set(), ["scale"]
    while left:
        name = left.pop()
        needed.add(name)
        left += services[name].get("depends_on", ())
    scale = {name for name, service in services.items() if "scale" in service.get("profiles", ())}
    assert needed == scale >= {"scale", *NODES, "scale-clones", "team-db", "team-password"}
    assert [name for name in scale if "ports" in services[name]] == ["scale"]
    assert services["scale-jobs"]["command"][-1] == "jobs"


def test_the_proxy_names_all_replicas_and_holds_no_event_back(services: dict[str, Any]) -> None:
    written = re.sub(r"(?m)\s*#.*$", "", PROXY.read_text())
    assert re.findall(r"server ([\w-]+):8000;", written) == list(REPLICAS)
    for directive in ("proxy_buffering off;", "proxy_next_upstream error timeout;", "listen 8000;"):
        assert directive in written
    (mounted,) = services["scale"]["volumes"]
    assert mounted == "./docs/replicas.nginx.conf:/etc/nginx/conf.d/default.conf:ro"


def test_the_clones_are_made_once_and_then_follow_the_repository(
    services: dict[str, Any], git_repo: GitRepo, tmp_path: Path
) -> None:
    """Runs the script of `scale-clones` on folders of ours, as the user of the test."""
    entry = services["scale-clones"]["entrypoint"]
    clones = tmp_path / "clones"
    script = entry[2].replace("$$", "$").replace("/clones", str(clones))
    script = script.replace(" /repo ", f" {git_repo.path} ")
    script = re.sub(r"(?m)^ *chown.*$", "", script)
    script = re.sub(r"setpriv .*? (?=\"\$@\")", "", script)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    for folder in mounts(services["scale-clones"]):
        (tmp_path / folder.lstrip("/")).mkdir(parents=True)
    for content in ("first\n", "second\n"):
        head = git_repo.commit({"new.txt": content})
        subprocess.run([*entry[:2], script], env=environment, check=True)
        for clone in clones.iterdir():
            assert GitRepo(clone).git("rev-parse", "HEAD") == head
