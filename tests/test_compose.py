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

from autopack.config import Settings

pytestmark = pytest.mark.unit

FILE = Path(__file__).resolve().parents[1] / "docker-compose.yml"
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
