"""`python -m autopack serve` as its users meet it: a folder, a terminal, signals."""

from __future__ import annotations

import json
import os
import pickle
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest
from tests.processes import answering as processes_of
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.cli.answering import Answering
from autopack.config import Settings

if TYPE_CHECKING:
    from tests.conftest import GitRepo
    from tests.processes import ForkedProcess, ForkServer

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Service:
    """A started service, and what it has printed."""

    process: subprocess.Popen[str] | ForkedProcess
    output: Path

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def url(self) -> str:
        return str(re.findall(r"^  API +(\S+)$", self.text, re.MULTILINE)[0])

    def wait_for(self, words: str) -> None:
        def is_told() -> bool:
            is_alive = self.process.poll() is None  # before its last words are read
            text = self.text
            assert words in text or is_alive, text
            return words in text

        wait_until(is_told, lambda: self.text)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)


STREAM = {"Accept": "text/event-stream"}
Serve = Callable[..., Service]


@pytest.fixture
def serve(tmp_path: Path, fork_server: ForkServer) -> Iterator[Serve]:
    """Start `autopack serve` in a folder; nothing of it is left after the test."""
    services: list[Service] = []

    def start(folder: Path, *arguments: str, is_fresh: bool = False, **environment: str) -> Service:
        output = tmp_path / f"output-{len(services)}"
        words = ("serve", "--port", "0", *arguments)
        process: subprocess.Popen[str] | ForkedProcess
        with output.open("w") as file:
            if is_fresh:
                process = subprocess.Popen(
                    [sys.executable, "-m", "autopack", *words],
                    cwd=folder,
                    env=_environment(),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            else:
                process = fork_server.start(
                    *words, folder=folder, environment=_environment(**environment), output=file
                )
        services.append(Service(process, output))
        return services[-1]

    yield start
    for service in services:
        if service.process.poll() is None:
            service.process.kill()
            service.process.wait()
    for process in _postgres_below(tmp_path):
        with suppress(psutil.NoSuchProcess):  # it has ended with its server
            process.kill()


@pytest.mark.campaigns
def test_a_service_can_be_used_killed_started_again_and_stopped(
    serve: Serve, git_repo: GitRepo
) -> None:
    folder = git_repo.path / "src"  # anywhere inside the repository will do
    first = serve(folder, is_fresh=True)
    first.wait_for("Ctrl-C stops")
    assert f"serves {git_repo.path} (base: main)" in first.text
    assert _get(f"{first.url}/docs").status_code == 200

    method, url, body = _next_step(first.text)
    answer = httpx.request(method, url, json=body, timeout=PATIENCE_SECONDS)
    assert answer.status_code == 201, answer.text
    assert git_repo.git("status", "--porcelain") == ""
    assert (git_repo.path / ".autonomous_runs" / "first-run" / "run_summary.md").is_file()
    assert (git_repo.path / ".autopack" / "postgres").is_dir()

    first.process.kill()
    first.process.wait()
    second = serve(git_repo.path)
    second.wait_for("Ctrl-C stops")
    assert _get(f"{second.url}/runs/first-run").json()["run_id"] == "first-run"

    # A stream that is open when the service stops comes to its end, and is no reason to wait.
    with httpx.stream(
        "GET", f"{second.url}/events/stream", headers=STREAM, timeout=PATIENCE_SECONDS
    ) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("retry")
        assert second.end(signal.SIGTERM) == 0
        assert [line for line in lines if line] == []
    assert _postgres_below(git_repo.path) == []
    assert "Traceback" not in first.text + second.text


def test_ctrl_c_stops_everything_even_while_a_client_is_connected(
    serve: Serve, git_repo: GitRepo
) -> None:
    service = serve(git_repo.path)
    service.wait_for("Ctrl-C stops")
    with httpx.Client(base_url=service.url, timeout=PATIENCE_SECONDS) as client:
        assert client.get("/health").json()["status"] == "healthy"
        assert service.end(signal.SIGINT) == 130
    assert _postgres_below(git_repo.path) == []
    assert "Traceback" not in service.text


def test_closing_the_terminal_stops_everything(serve: Serve, git_repo: GitRepo) -> None:
    service = serve(git_repo.path)
    service.wait_for("Ctrl-C stops")
    assert service.end(signal.SIGHUP) == 0
    assert _postgres_below(git_repo.path) == []


def test_several_processes_answer_and_one_that_is_killed_is_replaced(
    serve: Serve, git_repo: GitRepo
) -> None:
    own = {"AUTOPACK_JOBS": "outside", "AUTOPACK_LOG_FORMAT": "json"}
    service = serve(git_repo.path, "--processes", "2", **own)
    service.wait_for("Ctrl-C stops")
    method, url, body = _next_step(service.text)
    assert httpx.request(method, url, json=body, timeout=PATIENCE_SECONDS).status_code == 201
    first, second = processes_of(service.process.pid)
    first.kill()
    first.wait(PATIENCE_SECONDS)
    for _ in range(5):  # the other one answers
        assert _get(f"{service.url}/runs/first-run").status_code == 200
    service.wait_for("process_ended")
    assert any(
        json.loads(line)["exit_code"] == -9
        for line in service.text.split("\n")
        if "process_ended" in line
    )
    while len(processes_of(service.process.pid)) < 2:
        assert service.process.poll() is None, service.text
    # What the killed one had counted is still counted, and its requests are not open for ever.
    figures = _get(f"{service.url}/metrics").text
    counted = re.findall(r"^autopack_http_requests_total{.*} ([0-9.]+)$", figures, re.MULTILINE)
    assert sum(map(float, counted)) == 6
    open_now = re.findall(r"^autopack_http_requests_in_flight{.*} (.+)$", figures, re.MULTILINE)
    assert [*map(float, open_now)] == [1]  # this very request
    answering = processes_of(service.process.pid)
    assert service.end(signal.SIGTERM) == 0
    assert not [process for process in answering if process.is_running()]
    assert second in answering


@pytest.mark.campaigns
def test_the_processes_of_a_service_end_with_its_first_one(serve: Serve, git_repo: GitRepo) -> None:
    service = serve(git_repo.path, "--processes", "2")
    service.wait_for("Ctrl-C stops")
    answering = processes_of(service.process.pid)
    service.process.kill()
    _, alive = psutil.wait_procs(answering, PATIENCE_SECONDS)
    assert alive == []
    left = [*(git_repo.path / ".autopack" / "scratch").iterdir()]
    for folder in left:
        os.utime(folder, (0, 0))  # as if some time had passed
    again = serve(git_repo.path, "--port", service.url.rpartition(":")[2])
    again.wait_for("Ctrl-C stops")
    assert [folder for folder in left if folder.exists()] == []


@pytest.mark.campaigns
def test_several_processes_go_on_without_reader_and_descriptors_until_a_second_signal(
    git_repo: GitRepo, tmp_path: Path
) -> None:
    with (tmp_path / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "autopack", "serve", "--port", "0", "--processes", "2"],
            cwd=git_repo.path,
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        service = Service(process, tmp_path / "errors")
        itself = psutil.Process(process.pid)
        with process:
            assert process.stdout is not None
            url = next(line.split()[1] for line in process.stdout if line.startswith("  API "))
            process.stdout.close()
            first, second = processes_of(service.process.pid)
            before = itself.rlimit(psutil.RLIMIT_NOFILE)
            itself.rlimit(psutil.RLIMIT_NOFILE, (3, before[1]))
            first.kill()
            first.wait(PATIENCE_SECONDS)
            assert _get(f"{url}/health/live").status_code == 200
            itself.rlimit(psutil.RLIMIT_NOFILE, before)
            # Until the new one has its handlers its first process may not have it on its list yet.
            while sum(map(_has_handler, answering := processes_of(service.process.pid))) < 2:
                assert process.poll() is None, service.text
            assert second in answering
            for each in answering:
                _suspend(each)
            process.send_signal(signal.SIGTERM)
            while not all(map(_is_asked_to_end, answering)):
                assert process.poll() is None, service.text
            service.end(signal.SIGTERM)
            assert not [each for each in answering if each.is_running()]
        assert "Traceback" not in service.text


def test_a_process_that_cannot_answer_says_why_in_one_line(
    git_repo: GitRepo, tmp_path: Path, fork_server: ForkServer
) -> None:
    settings = Settings(
        _env_file=None,
        repo_path=git_repo.path,
        home=tmp_path / "home",
        autonomous_runs_dir=tmp_path / "runs",
        database_url="postgresql://a:secret@127.0.0.1:1/b",
    )
    sent = pickle.dumps(Answering(settings, "http://127.0.0.1:1", is_answering_only=True))
    result = _beside(fork_server, tmp_path, sent)
    assert result.returncode == 2
    assert re.fullmatch(r"autopack: .*127\.0\.0\.1:1/b.*\n", result.stderr)
    assert "secret" not in result.stderr


def test_a_process_whose_first_one_has_ended_before_it_began_ends_without_a_word(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    result = _beside(fork_server, tmp_path, b"")
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_the_demonstration_drives_a_whole_run(serve: Serve, tmp_path: Path) -> None:
    service = serve(tmp_path, "--demo")
    service.wait_for("What to look at")
    assert "refused (patch_conflict)" in service.text
    assert "DONE_SUCCESS" in service.text
    sample = Path(re.findall(r"serves (\S+)", service.text)[0])
    log = subprocess.run(
        ["git", "-C", sample, "log", "--format=%s", "autonomous/demo-001"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(log.stdout.splitlines()) == 6  # the first commit, four phases, the record
    assert service.end(signal.SIGTERM) == 0
    assert not sample.exists()


def test_without_a_repository_one_line_says_what_to_do(
    tmp_path: Path, fork_server: ForkServer
) -> None:
    assert "git init" in _refusal(fork_server, tmp_path)


def test_without_a_commit_one_line_says_what_to_do(tmp_path: Path, fork_server: ForkServer) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    assert "commit" in _refusal(fork_server, tmp_path)


def test_a_wrong_setting_is_named(git_repo: GitRepo, fork_server: ForkServer) -> None:
    assert "AUTOPACK_PORT ('x')" in _refusal(fork_server, git_repo.path, AUTOPACK_PORT="x")


def test_an_unreachable_database_is_named(git_repo: GitRepo, fork_server: ForkServer) -> None:
    line = _refusal(
        fork_server,
        git_repo.path,
        DATABASE_URL="postgresql://a:secret@127.0.0.1:1/b",
        AUTOPACK_PORT="0",
    )
    assert "127.0.0.1:1/b" in line
    assert "secret" not in line


def test_a_repository_that_tracks_settings_of_ours_is_not_served(
    git_repo: GitRepo, fork_server: ForkServer
) -> None:
    git_repo.commit({".autopack/.env": "AUTOPACK_AUTH=disabled\nAUTOPACK_CI_SANDBOX=none\n"})
    assert ".autopack/.env" in _refusal(fork_server, git_repo.path)


def test_a_file_of_settings_that_the_served_repository_tracks_is_refused(
    git_repo: GitRepo, fork_server: ForkServer
) -> None:
    git_repo.commit({"service.env": "AUTOPACK_AUTH=disabled\n"})
    line = _refusal(fork_server, git_repo.path, AUTOPACK_ENV_FILE="service.env", AUTOPACK_PORT="0")
    assert line.startswith("autopack: AUTOPACK_ENV_FILE")


def test_a_port_in_use_is_named(git_repo: GitRepo, fork_server: ForkServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in _refusal(fork_server, git_repo.path, AUTOPACK_PORT=port)


@pytest.mark.parametrize("name", ["settings_table.py", "command_table.py"])
def test_reference_pages_are_in_step_with_the_code(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [name, "--check"])
    monkeypatch.setattr(sys, "path", [*sys.path])  # the script adds to it
    script = runpy.run_path(str(ROOT / "scripts" / name))
    assert script["main"]() == 0, capsys.readouterr().err


def _environment(**more: str) -> dict[str, str]:
    inherited = {
        name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ
    }
    return {**inherited, "PYTHONPATH": str(ROOT / "src"), "PYTHONUNBUFFERED": "1", **more}


def _refusal(fork_server: ForkServer, folder: Path, **environment: str) -> str:
    """Start where it must not start; return the one line that says why."""
    result = fork_server.run("serve", folder=folder, environment=_environment(**environment))
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("autopack: ")
    return result.stderr


def _next_step(text: str) -> tuple[str, str, object]:
    """Read the curl that a start suggests, as a shell would."""
    command = text[text.index("curl ") : text.index("Ctrl-C")]
    words = shlex.split(command)
    assert words[:2] == ["curl", "-X"]
    return words[2], words[3], json.loads(words[words.index("-d") + 1])


def _get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=PATIENCE_SECONDS)


def _suspend(process: psutil.Process) -> None:
    """Suspend a process, and wait until each of its threads stands still."""
    process.suspend()
    while {psutil.Process(thread.id).status() for thread in process.threads()} != {"stopped"}:
        pass


def _has_handler(process: psutil.Process) -> bool:
    """Tell whether a process has a handler of SIGTERM."""
    return _has_sigterm(process, "SigCgt")


def _is_asked_to_end(process: psutil.Process) -> bool:
    """Tell whether SIGTERM waits for a suspended process."""
    return _has_sigterm(process, "ShdPnd")


def _has_sigterm(process: psutil.Process, signals: str) -> bool:
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = int(re.findall(rf"^{signals}:\s*(\w+)$", status, re.MULTILINE)[0], 16)
    return bool(found >> (signal.SIGTERM - 1) & 1)


def _beside(fork_server: ForkServer, folder: Path, sent: bytes) -> subprocess.CompletedProcess[str]:
    """Start a process that answers, and send this to it as its first process."""
    file = folder / "sent"
    file.write_bytes(sent)
    return fork_server.run(
        folder=folder,
        environment=_environment(FROM_FIRST=str(file)),
        first=ROOT / "tests" / "answering.py",
    )


def _postgres_below(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.name() == "postgres" and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
