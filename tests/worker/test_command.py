"""No process of a command outlives it, however it was stopped. (docs/worker.md)"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.waiting import PATIENCE_SECONDS, wait_until

from autopack.worker.command import TAIL_BYTES, AgentCommand

pytestmark = pytest.mark.integration

# Ignores SIGTERM, forks, and puts one of its children out of reach of its process group.
STUBBORN = """\
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for is_far in (False, True):
    if os.fork() == 0:
        if is_far:
            os.setsid()
            if os.fork():
                os._exit(0)
        break
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(1000)
"""


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    yield descriptor
    os.close(descriptor)


def start(
    tmp_path: Path, lock: int, *command: str, ended: threading.Event | None = None
) -> AgentCommand:
    prompt = tmp_path / "prompt"
    prompt.write_text("Do it.\n")
    return AgentCommand(
        command,
        folder=tmp_path,
        environment={"PATH": os.environ["PATH"]},
        prompt=prompt,
        lock=lock,
        on_end=(ended or threading.Event()).set,
        grace_seconds=0.1,
    )


def test_stopping_also_ends_processes_that_ignore_it_or_left_the_session(
    tmp_path: Path, lock: int
) -> None:
    pids = tmp_path / "pids"
    command = start(tmp_path, lock, "python3", "-c", STUBBORN, str(pids))
    wait_until(
        lambda: pids.exists() and len(pids.read_text().splitlines()) >= 3,
        lambda: str(command.stderr),
    )
    assert command.finish() == 128 + 9
    assert [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)] == []


def test_what_a_command_leaves_behind_is_ended_with_it(tmp_path: Path, lock: int) -> None:
    ended = threading.Event()
    script = "setsid sleep 1000 & echo $! > left; cat; exit 3"
    command = start(tmp_path, lock, "sh", "-c", script, ended=ended)
    assert ended.wait(PATIENCE_SECONDS)
    assert command.finish() == 3
    assert command.stdout == "Do it.\n"
    assert not psutil.pid_exists(int((tmp_path / "left").read_text()))


@pytest.mark.parametrize(
    ("words", "exit_code"), [(["sh", "-c", "kill -15 $$"], 143), (["/none/such"], 127)]
)
def test_exit_codes_are_reported_as_a_shell_does(
    tmp_path: Path, lock: int, words: list[str], exit_code: int
) -> None:
    ended = threading.Event()
    command = start(tmp_path, lock, *words, ended=ended)
    assert ended.wait(PATIENCE_SECONDS)
    assert command.finish() == exit_code


def test_the_last_output_is_kept(tmp_path: Path, lock: int) -> None:
    ended = threading.Event()
    command = start(tmp_path, lock, "sh", "-c", "yes | head -c 1000000; echo last", ended=ended)
    assert ended.wait(PATIENCE_SECONDS)
    assert command.finish() == 0
    assert len(command.stdout) == TAIL_BYTES
    assert command.stdout.endswith("y\nlast\n")
