"""`autopack keys` beside the database, and `login`, `logout`, `whoami` with a key."""

from __future__ import annotations

import io
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine, text
from tests.cli.test_commands import configure
from tests.conftest import make_git_repo

from autopack.cli import service
from autopack.cli.app import main
from autopack.client import Autopack, ClientError
from autopack.client.credentials import find_key, login_file
from autopack.domain.keys import is_well_formed, make_key
from autopack.main import create_app

if TYPE_CHECKING:
    from collections.abc import Iterator

    from autopack.config import Settings

ADDRESS = "http://localhost:8000"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def required(home: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """A service that asks for keys, which every command of this test asks."""
    from starlette.testclient import TestClient
    from tests.conftest import InProcess

    configure(monkeypatch, settings)
    monkeypatch.delenv("AUTOPACK_PORT")
    app = create_app(settings.model_copy(update={"auth": "required"}))
    with TestClient(app, base_url="http://localhost", client=("10.0.0.7", 50_000)) as client:

        def asking(url: str | None, **given: object) -> Autopack:
            return Autopack(url, transport=InProcess(client), **given)  # type: ignore[arg-type]

        monkeypatch.setattr(service, "Autopack", asking)
        yield settings


@pytest.mark.integration
def test_a_key_is_made_beside_the_database_and_printed_alone(
    required: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["keys", "create", "--name", "codex-3", "--role", "builder", "--expires", "90d"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    key = out.strip()
    assert is_well_formed(key)
    assert key not in err
    assert "codex-3" in err
    assert main(arguments) == 2
    assert "key_name_taken" in capsys.readouterr().err
    assert main(["keys", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["keys"]
    assert (listed["name"], listed["state"], listed["roles"]) == ("codex-3", "live", ["builder"])
    assert listed["created_by"].startswith("local:")
    assert main(["keys", "rotate", "codex-3"]) == 0
    rotated = capsys.readouterr().out.strip()
    assert is_well_formed(rotated)
    assert rotated != key
    assert main(["keys", "revoke", "codex-3"]) == 0
    assert main(["keys", "revoke", "nobody"]) == 2
    assert main(["keys", "list"]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["keys", "audit", "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    actions = [entry["action"] for entry in log["entries"]]
    assert (log["first_broken"], actions) == (None, ["key_created", "key_rotated", "key_revoked"])


@pytest.mark.integration
def test_a_log_that_was_changed_is_told_and_ends_with_1(
    required: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two", "three"):
        assert main(["keys", "create", "--name", name, "--role", "viewer"]) == 0
    assert main(["keys", "audit"]) == 0
    engine = create_engine(required.database_url or "")
    with engine.begin() as connection:
        connection.execute(text("UPDATE audit_log SET actor = 'eve' WHERE sequence = 2"))
    engine.dispose()
    capsys.readouterr()
    assert main(["keys", "audit"]) == 1
    assert "Entry 2 does not follow from those before it." in capsys.readouterr().out
    assert main(["keys", "audit", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["first_broken"] == 2


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--name", "a/b", "--role", "builder"], "--name"),
        (["--name", "a", "--role", "root"], "--role"),
        (["--name", "a", "--role", "ci", "--expires", "soon"], "--expires"),
        (["--name", "a", "--role", "ci", "--project", "../b"], "--project"),
        (["--name", "a", "--role", "ci", "--project", "Shop"], "project_not_found"),
        (["--name", "a"], "--role"),
    ],
)
def test_a_wrong_wish_is_refused_by_its_option(
    required: Settings, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert main(["keys", "create", *arguments]) == 2
    out, err = capsys.readouterr()
    assert told in err
    assert out == ""


@pytest.mark.integration
def test_a_stored_key_is_used_until_it_is_removed(
    required: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["whoami"]) == 2
    assert "autopack keys create" in capsys.readouterr().err
    main(["keys", "create", "--name", "ada", "--role", "operator"])
    key = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO(make_key()))
    assert main(["login"]) == 2  # the service does not know it
    assert not login_file().exists()
    monkeypatch.setattr("sys.stdin", io.StringIO(key))
    assert main(["login"]) == 0
    told = "".join(capsys.readouterr())
    assert key.strip() not in told
    assert stat.S_IMODE(login_file().stat().st_mode) == 0o600
    assert stat.S_IMODE(login_file().parent.stat().st_mode) == 0o700
    assert main(["whoami", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == "ada"
    assert main(["run", "list"]) == 0
    assert main(["logout"]) == 0
    assert main(["logout"]) == 1
    assert main(["whoami"]) == 2


@pytest.mark.unit
def test_a_key_comes_from_the_environment_a_file_or_the_login_in_this_order(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_key(ADDRESS) is None
    file = login_file()
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({ADDRESS: "ap_login", "https://other.example": "ap_other"}))
    file.chmod(0o600)
    assert find_key(ADDRESS) == "ap_login"
    assert find_key("http://localhost:9000") is None  # no other service gets it
    named = home / "key"
    named.write_text("ap_file\n")
    named.chmod(0o600)
    monkeypatch.setenv("AUTOPACK_API_KEY_FILE", str(named))
    assert find_key(ADDRESS) == "ap_file"
    monkeypatch.setenv("AUTOPACK_API_KEY", "ap_environment")
    assert find_key(ADDRESS) == "ap_environment"


@pytest.mark.unit
def test_a_file_that_others_may_read_is_refused_and_its_key_not_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = home / "key"
    monkeypatch.setenv("AUTOPACK_API_KEY_FILE", str(named))
    with pytest.raises(ClientError, match="no such file"):
        find_key(ADDRESS)
    named.write_text("ap_secret")
    for mode in (0o644, 0o640, 0o604, 0o660):
        named.chmod(mode)
        with pytest.raises(ClientError, match="chmod 600") as refusal:
            find_key(ADDRESS)
        assert "ap_secret" not in str(refusal.value)
    named.chmod(0o400)
    assert find_key(ADDRESS) == "ap_secret"
    named.chmod(0o600)
    for wrong in ("", "a\nb", "schlüssel"):
        named.write_text(wrong)
        with pytest.raises(ClientError, match="character that a header"):
            find_key(ADDRESS)


@pytest.mark.unit
def test_no_command_takes_a_key_as_an_argument() -> None:
    """Arguments are readable by every process of the machine."""
    import re

    for file in (Path(service.__file__).parent).glob("*.py"):
        assert not re.search(r'"--(api-)?(key|token)"', file.read_text()), file
    assert "AUTOPACK_API_KEY" not in os.environ


@pytest.mark.unit
def test_the_operators_file_has_the_address_and_the_key_for_it_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("AUTOPACK_URL", "API_URL", "AUTOPACK_API_KEY", "AUTOPACK_API_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    key = tmp_path / "key"
    key.write_text("apk_file\n")
    key.chmod(0o600)
    file = tmp_path / "autopack" / "autopack.toml"
    file.parent.mkdir()
    file.write_text(f'url = "http://localhost:8123/"\napi_key_file = "{key}"\n')
    with Autopack() as client:
        assert client.address == "http://localhost:8123"
    assert find_key("http://localhost:8123") == "apk_file"
    assert find_key("http://elsewhere.example") is None
    monkeypatch.setenv("API_URL", "http://localhost:1")
    with Autopack() as client:
        assert client.address == "http://localhost:1"
    monkeypatch.setenv("AUTOPACK_URL", "http://localhost:2")
    with Autopack() as client:
        assert client.address == "http://localhost:2"
    with Autopack("http://localhost:3") as client:
        assert client.address == "http://localhost:3"
    monkeypatch.setenv("AUTOPACK_URL", "")  # as if it were not set
    with Autopack() as client:
        assert client.address == "http://localhost:1"
    key.chmod(0o644)
    with pytest.raises(ClientError, match="others may read it"):
        find_key("http://localhost:8123")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("url = ", "autopack.toml is not TOML"),
        ("adress = 'x'", "'adress' is not a setting; the nearest known one is"),
        ("api_key = 'x'", "the nearest known one is api_key_file"),
        ("url = 3", "autopack.toml: url must be a text"),
    ],
)
def test_a_wrong_operators_file_is_named(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str,
    told: str,
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("API_URL", raising=False)
    (tmp_path / "autopack").mkdir()
    (tmp_path / "autopack" / "autopack.toml").write_text(content)
    assert main(["run", "list"]) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


@pytest.mark.integration
def test_projects_are_managed_and_chosen_by_an_option_or_the_environment(
    required: Settings,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    copied_databases: None,
) -> None:
    def told(*arguments: str) -> str:
        assert main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    key = told("keys", "create", "--name", "ada", "--role", "operator")
    monkeypatch.setenv("AUTOPACK_API_KEY", key.strip())
    folder = str(make_git_repo(tmp_path / "shop").path)
    assert "'shop' is served" in told("projects", "create", "shop", folder)
    assert folder in told("projects", "list")
    told("keys", "create", "--project", "shop", "--name", "codex", "--role", "builder")
    assert "codex" in told("--project", "shop", "keys", "list")
    assert "codex" not in told("keys", "list")
    assert "/projects/shop" in told("--project", "shop", "whoami")
    monkeypatch.setenv("AUTOPACK_PROJECT", "shop")
    assert "codex" in told("keys", "list")
    assert "/projects/shop" in told("whoami")
    assert folder in told("projects", "change", "shop", folder, "--base-branch", "main")
    assert "'shop' is closed" in told("projects", "close", "shop")
    assert main(["run", "list"]) == 2
    assert "project_not_found" in capsys.readouterr().err
    assert "'shop' is open" in told("projects", "reopen", "shop")
    # The settings are those of the default project: nothing is done to another one by mistake.
    assert main(["--project", "shop", "db", "upgrade"]) == 2
    assert "works on the default project" in capsys.readouterr().err
    monkeypatch.delenv("AUTOPACK_PROJECT")
    assert "_project_" not in told("db", "status")
    assert "_project_" in told("--project", "shop", "db", "status")
    for command in (["backup"], ["restore"], ["export", "run-1"], ["import"]):
        assert main(["--project", "hsop", "db", *command, str(tmp_path / "file.tar")]) == 2
        line = capsys.readouterr().err
        assert "there is no open project 'hsop'" in line
        assert ("`autopack projects create`" in line) == (command == ["restore"])
        assert line.count("\n") == 1
