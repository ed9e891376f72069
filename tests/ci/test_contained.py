"""Real hostile commands in the real sandbox: what they reach, what is left of them.

What a promise of these says is true of bubblewrap alone; without it the tests say why they skip.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from autopack.ci import CheckRunner, CommandOutcome, Job, StoppedError, checks, usage
from autopack.config import Settings
from autopack.domain.terms import Verdict
from autopack.gitrepo import Repository
from autopack.gitrepo.checkout import checked_out

if TYPE_CHECKING:
    from tests.conftest import GitRepo

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

SECRET = "a-secret-of-the-service"


@dataclass
class Stage:
    """A service's folders with secrets in them, and a runner of commands with small limits."""

    settings: Settings
    folder: Path
    runner: CheckRunner
    # On the command line of each process of a command, naps too, by which they are found.
    token: str = field(default_factory=lambda: f"600.{secrets.randbelow(10**9)}")

    def run(
        self,
        command: str,
        *,
        seconds: float = 20,
        should_stop: Callable[[], bool] = lambda: False,
        **job: Any,
    ) -> CommandOutcome:
        tree, objects = self.folder / "run" / "tree", self.folder / "objects"
        for folder in (tree, objects):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            outcome = self.runner.run(
                Job(
                    tree=tree,
                    objects=objects,
                    command=f": {self.token}; {command}",
                    timeout_seconds=seconds,
                    environment={"CI_PROFILE": "normal"},
                    **job,
                ),
                should_stop,
            )
        finally:
            assert processes_of(self.token) == []
        assert outcome.sandbox == "bubblewrap"
        return outcome


def processes_of(token: str) -> list[str]:
    """Return what runs with a word on its command line, in whatever pid space."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        if token in line:
            found.append(line)
    return found


@pytest.fixture
def stage(tmp_path: Path, git_repo: GitRepo, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(checks, "WATCH_SECONDS", 0.05)
    settings = Settings(
        _env_file=None,
        repo_path=git_repo.path,
        home=tmp_path / "home",
        autonomous_runs_dir=tmp_path / "runs",
        ci_processes=40,
        ci_disk_bytes=20_000_000,
        ci_memory_bytes=200_000_000,
        ci_log_bytes=10_000,
    )
    for folder in (settings.home, settings.autonomous_runs_dir, git_repo.path):
        folder.mkdir(exist_ok=True)
        (folder / "secret").write_text(SECRET)
    runner = CheckRunner(settings)
    if runner.problem is not None:
        pytest.skip(f"no sandbox on this machine: {runner.problem}")
    return Stage(settings, tmp_path, runner)


def test_a_fork_bomb_is_held_and_nothing_of_it_is_left(stage: Stage) -> None:
    outcome = stage.run("f() { f | f & f; }; f", seconds=0.5)
    assert outcome.verdict is Verdict.RED


def test_a_hang_that_ignores_signals_ends_with_its_background_children(stage: Stage) -> None:
    nap = f"sleep {stage.token}"
    command = f"trap '' TERM INT HUP; setsid sh -c 'trap \"\" TERM; {nap}' & {nap}"
    outcome = stage.run(command, seconds=0.3)
    assert (outcome.verdict, outcome.reason) == (Verdict.RED, "it was not done after 0.3 seconds")


def test_what_a_command_leaves_running_ends_with_it(stage: Stage) -> None:
    nap = f"sleep {stage.token}"
    outcome = stage.run(f"setsid {nap} >/dev/null 2>&1 & ({nap} &) ; echo done")
    assert (outcome.verdict, outcome.log) == (Verdict.GREEN, b"done\n")


@pytest.mark.parametrize(
    "command",
    [
        "cat /dev/zero > big",
        "i=0; while :; do i=$((i+1)); head -c 9000000 /dev/zero > f$i; done",
        "mkdir d; cd d; seq 1000000 | xargs touch",
    ],
)
def test_a_command_that_fills_the_disk_is_stopped(stage: Stage, command: str) -> None:
    outcome = stage.run(command)
    assert outcome.verdict is Verdict.RED, outcome
    assert "AUTOPACK_CI_DISK_BYTES" in outcome.reason or "exit 15" in outcome.reason, outcome


def test_memory_has_an_end_in_one_process_or_many(stage: Stage) -> None:
    hog = "head -c 150000000 /dev/zero | tail -c 150000000 | sleep 600"
    outcome = stage.run(f"({hog}) & ({hog}) & wait")
    assert outcome.verdict is Verdict.RED
    assert "AUTOPACK_CI_MEMORY_BYTES" in outcome.reason
    assert stage.run("head -c 15000000000 /dev/zero | tail -c 15000000000").verdict is Verdict.RED


HOLD = "; sleep 600"


@pytest.fixture
def narrow(stage: Stage) -> Stage:
    """A stage where disk is plenty and memory is not."""
    limits = {"ci_disk_bytes": 1_000_000_000, "ci_memory_bytes": 60_000_000}
    stage.runner = CheckRunner(stage.settings.model_copy(update=limits))
    return stage


PYTHON = "/usr/bin/python3 -c"


@pytest.mark.parametrize(
    "command",
    [
        "head -c 40000000 /dev/zero > /tmp/a; head -c 40000000 /dev/zero > /dev/shm/b",
        "cd /tmp; seq 100000 | xargs touch",  # empty files are not for nothing in memory either
        "exec 3> /tmp/a 4> /dev/shm/b; rm /tmp/a /dev/shm/b; head -c 40000000 /dev/zero >&3;"
        " head -c 40000000 /dev/zero >&4",
        "unshare -Urm sh -c 'mount -t tmpfs -o size=1g x /tmp;"
        " head -c 90000000 /dev/zero > /tmp/a; sleep 600'",
        "unshare -Urm sh -c 'mount -t tmpfs x /tmp; cd /tmp; mount --bind /usr /tmp; sleep 600'",
        "unshare -Urm sh -c 'mount -t ramfs x /tmp; sleep 600'",
    ],
)
def test_files_in_a_file_system_in_memory_count_as_memory(narrow: Stage, command: str) -> None:
    outcome = narrow.run(command + HOLD)
    if b"unshare failed" in outcome.log:
        pytest.skip("this machine does not allow namespaces in a sandbox")
    assert outcome.verdict is Verdict.RED, outcome
    assert "AUTOPACK_CI_MEMORY_BYTES" in outcome.reason or "mounted" in outcome.reason, outcome


FILL = "[os.write(f, b'x' * 1000000) for f in fs for _ in range(15)]"


@pytest.mark.parametrize(
    "program",
    [
        f"import os, time; fs = [os.memfd_create('a') for _ in range(6)]; {FILL}",
        # Mapped, then closed: no process has it open any more, nor its pages in use.
        f"import mmap, os, time; fs = [os.memfd_create('a') for _ in range(6)]; {FILL};"
        " ms = [mmap.mmap(f, 15000000) for f in fs]; os.closerange(3, 3 + len(fs))",
        "import ctypes, time; c = ctypes.CDLL(None, use_errno=True); c.shmat.restype ="
        " ctypes.c_void_p; [(lambda i: (ctypes.memset(c.shmat(i, None, 0), 1, 15000000)))"
        "(c.shmget(0, 15000000, 0o1600)) for _ in range(10)]",
    ],
)
def test_memory_that_no_process_maps_is_counted(narrow: Stage, program: str) -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("the system has no Python")
    outcome = narrow.run(f'{PYTHON} "{program}; time.sleep(600)"')
    assert (outcome.verdict, outcome.reason[-26:]) == (
        Verdict.RED,
        "(AUTOPACK_CI_MEMORY_BYTES)",
    ), outcome


def test_a_deleted_file_that_is_still_open_is_disk(stage: Stage) -> None:
    files = "".join(f"exec {n}> f{n}; rm f{n}; head -c 9000000 /dev/zero >&{n};" for n in (3, 4, 5))
    outcome = stage.run(f"{files} sleep 600")
    assert outcome.verdict is Verdict.RED
    assert "AUTOPACK_CI_DISK_BYTES" in outcome.reason, outcome


def test_a_tree_too_deep_to_look_at_is_red_and_goes_away(stage: Stage) -> None:
    outcome = stage.run(
        "d=$(printf 'd%.0s' $(seq 200)); for i in $(seq 40); do mkdir $d; cd -P $d; done;"
        f" head -c 9000000 /dev/zero > big{HOLD}"
    )
    assert (outcome.verdict, outcome.reason) == (
        Verdict.RED,
        "it created a path that is too long to measure",
    )


class TestAMachineThatIsShort:
    """What fails for want of this machine's disk or memory says nothing of the commit."""

    def test_a_full_disk_is_no_red(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "FREE_DISK_BYTES", 1 << 60)
        outcome = stage.run(f"sleep {stage.token}")
        assert (outcome.verdict, outcome.reason) == (
            Verdict.DID_NOT_RUN,
            "this machine's disk is full",
        )

    def test_what_fails_at_once_on_a_full_disk_is_no_red(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "FREE_DISK_BYTES", 1 << 60)
        outcome = stage.run("echo no space left >&2; exit 1")
        assert outcome.verdict is Verdict.DID_NOT_RUN
        assert outcome.reason.startswith("this machine's disk is full")

    def test_no_memory_is_no_red(self, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(checks, "FREE_MEMORY_BYTES", 1 << 60)
        outcome = stage.run(f"sleep {stage.token}")
        assert (outcome.verdict, outcome.reason) == (
            Verdict.DID_NOT_RUN,
            "this machine is out of memory",
        )

    def test_who_passes_his_own_limit_is_red_on_a_full_machine_too(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checks, "FREE_DISK_BYTES", 1 << 60)
        monkeypatch.setattr(checks, "WATCH_SECONDS", 3.0)
        # It is looked at as soon as a line of output comes, which here is after the files.
        outcome = stage.run(
            "for i in 1 2 3; do head -c 9000000 /dev/zero > f$i; done; echo written; sleep 600"
        )
        assert outcome.verdict is Verdict.RED
        assert "AUTOPACK_CI_DISK_BYTES" in outcome.reason

    @pytest.mark.parametrize(
        ("command", "verdict"),
        [("exit 1", Verdict.DID_NOT_RUN), ("true", Verdict.GREEN)],
    )
    def test_what_fails_while_the_kernel_kills_for_memory_is_no_red(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch, command: str, verdict: Verdict
    ) -> None:
        vmstat = stage.folder / "vmstat"
        vmstat.write_text("nr_free_pages 1\noom_kill 4\n")
        monkeypatch.setattr(usage, "VMSTAT", vmstat)

        def kill() -> bool:
            vmstat.write_text("nr_free_pages 1\noom_kill 6\n")
            (stage.folder / "run" / "tree" / "go").touch()
            return False

        outcome = stage.run(f"until [ -e go ]; do sleep 0.01; done; {command}", should_stop=kill)
        assert outcome.verdict is verdict
        if verdict is Verdict.DID_NOT_RUN:
            assert "the kernel killed 2 processes: exit 1" in outcome.reason

    def test_what_was_not_done_in_time_while_the_kernel_kills_for_memory_is_no_red(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A machine out of memory is slow, so the time is not the command's own limit there."""
        vmstat = stage.folder / "vmstat"
        vmstat.write_text("nr_free_pages 1\noom_kill 4\n")
        monkeypatch.setattr(usage, "VMSTAT", vmstat)

        def kill() -> bool:
            vmstat.write_text("nr_free_pages 1\noom_kill 5\n")
            return False

        outcome = stage.run(f"sleep {stage.token}", seconds=0.5, should_stop=kill)
        assert outcome.verdict is Verdict.DID_NOT_RUN
        assert "the kernel killed 1 processes: it was not done after 0.5 seconds" in outcome.reason


def test_the_log_of_an_endless_output_is_its_beginning_and_end(stage: Stage) -> None:
    outcome = stage.run("echo first; yes", seconds=0.5)
    assert outcome.verdict is Verdict.RED
    assert outcome.log.startswith(b"first\n")
    assert b"left out by AUTOPACK_CI_LOG_BYTES" in outcome.log
    assert len(outcome.log) < 10_200


@pytest.mark.parametrize("is_all_lent", [False, True])
def test_no_environment_and_no_file_of_the_service_is_seen(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, is_all_lent: bool
) -> None:
    monkeypatch.setenv("DATABASE_URL", SECRET)
    settings = stage.settings
    if is_all_lent:  # the folder above, by an operator who did not think of what lies within
        lent = {"ci_readable_paths": (stage.folder,)}
        stage.runner = CheckRunner(settings.model_copy(update=lent))
    places = (settings.home, settings.autonomous_runs_dir, settings.repo_path, "/root", "/home")
    outcome = stage.run(
        "env; cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; echo; ls /proc/self/fd | wc -w;"
        f"cat {' '.join(f'{place}/secret' for place in places)} {stage.folder}/*/secret;"
        "cat /etc/shadow /etc/autopack*; (cd /proc/1 && cat root/etc/shadow);"
        "ls /var /srv /home; true"
    )
    assert outcome.verdict is Verdict.GREEN
    assert SECRET.encode() not in outcome.log
    assert b"root:" not in outcome.log
    assert b"CI_PROFILE=normal" in outcome.log
    assert b"\n4\n" in outcome.log  # three streams and the folder that ls reads


@pytest.fixture
def listening() -> Iterator[tuple[int, threading.Event]]:
    """A port on this machine, and whether it was called."""
    called = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                server.accept()
                called.set()
            except OSError:
                pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], called
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_nothing_is_called_not_even_this_machine(
    stage: Stage, listening: tuple[int, threading.Event]
) -> None:
    port, called = listening
    calls = f"for h in 127.0.0.1 1.1.1.1; do (exec 3<>/dev/tcp/$h/{port}) && echo reached; done"
    outcome = stage.run(f"bash -c '{calls}' 2>&-; tail -n +3 /proc/net/dev | cut -d: -f1")
    assert (outcome.verdict, outcome.log.split()) == (Verdict.GREEN, [b"lo"])
    assert not called.is_set()


def test_kill_all_ends_nothing_outside(stage: Stage) -> None:
    outcome = stage.run("kill -9 -1; kill -9 1; echo alive")
    assert (outcome.verdict, outcome.log[-6:]) == (Verdict.GREEN, b"alive\n")


def test_nothing_is_written_outside_the_work_tree(stage: Stage) -> None:
    place = stage.settings.repo_path
    outcome = stage.run(
        f"for f in / /usr /etc /opt /dev {place}/.. /proc/sys/kernel; do touch $f/x && echo wrote;"
        " done 2>/dev/null; mount -t tmpfs x /usr; chroot / true; touch ok /tmp/ok ~/ok"
    )
    assert outcome.verdict is Verdict.GREEN, outcome.log
    assert b"wrote" not in outcome.log
    assert (stage.folder / "run" / "tree" / "ok").exists()
    assert not Path("/tmp/ok").exists()  # noqa: S108 - it had one of its own


def test_a_stop_from_outside_ends_it_at_once(stage: Stage) -> None:
    with pytest.raises(StoppedError):
        stage.run(f"setsid sleep {stage.token} & sleep {stage.token}", should_stop=lambda: True)


def test_git_works_in_the_checkout_and_the_repository_stays_as_it_was(
    stage: Stage, git_repo: GitRepo
) -> None:
    git_repo.git("checkout", "--quiet", "-b", "autonomous/run-001")
    commit = git_repo.commit({"src/new.py": "NEW = 1\n"})
    git_repo.git("checkout", "--quiet", "main")
    repository = Repository.open(stage.settings)
    before = git_repo.git("for-each-ref") + git_repo.git("status", "--porcelain")
    with checked_out(stage.settings, repository, "autonomous/run-001", commit) as checkout:
        outcome = stage.runner.run(
            Job(
                tree=checkout.tree,
                objects=checkout.objects,
                command="set -e; pwd; git log --format=%H; git status --porcelain; cat src/new.py;"
                " git checkout -q -b mine; git -c user.name=x -c user.email=x commit -q"
                " --allow-empty -m x; chmod 0 src; mkdir -p a/b; chmod 0 a/b",
                timeout_seconds=20,
                environment={},
            ),
            lambda: False,
        )
    assert outcome.verdict is Verdict.GREEN, outcome
    history = git_repo.git("log", "--format=%H", commit)
    assert outcome.log.decode() == f"{stage.settings.repo_path}\n{history}\nNEW = 1\n"
    assert git_repo.git("for-each-ref") + git_repo.git("status", "--porcelain") == before
    assert list((stage.settings.home / "ci").iterdir()) == []


def test_a_virtual_environment_in_the_checkout_is_lent_but_through_no_link(
    stage: Stage, git_repo: GitRepo
) -> None:
    tool = git_repo.path / ".venv" / "bin" / "my-check"
    tool.parent.mkdir(parents=True)
    tool.write_text("#!/bin/sh\necho checked\n")
    tool.chmod(0o755)
    readable = {"ci_readable_paths": (git_repo.path / ".venv",)}
    stage.runner = CheckRunner(stage.settings.model_copy(update=readable))
    outcome = stage.run("my-check && ! touch .venv/x")
    assert (outcome.verdict, outcome.log.splitlines()[0]) == (Verdict.GREEN, b"checked")
    tree = stage.folder / "run" / "tree"
    (tree / ".venv").rmdir()
    (tree / ".venv").symlink_to("/oldroot")
    assert stage.run("ls .venv/ || exit 1").verdict is Verdict.RED


def test_where_a_sandbox_is_required_and_none_is_to_be_had_nothing_runs(stage: Stage) -> None:
    empty = stage.folder / "bin"
    empty.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(empty))
        runner = CheckRunner(stage.settings.model_copy(update={"ci_sandbox": "required"}))
    job = Job(
        tree=stage.folder,
        objects=stage.folder,
        command="touch ran",
        timeout_seconds=5,
        environment={},
    )
    outcome = runner.run(job, lambda: False)
    assert outcome.verdict is Verdict.DID_NOT_RUN
    assert "bwrap is not installed" in outcome.reason
    assert not (stage.folder / "ran").exists()
