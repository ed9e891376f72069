"""The files of the runs directory, and their state after a failed write."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from autopack import syncing
from autopack.domain.errors import ErrorKind, InvalidError
from autopack.mirror import Mirror, MirrorUnusableError, durability
from autopack.views.issues import PhaseIssue
from autopack.views.runs import PhaseDetail, RunDetail

pytestmark = pytest.mark.integration

SOURCE = Path(__file__).resolve().parents[2] / "src"
MakeRun = Callable[..., RunDetail]
MakePhase = Callable[..., PhaseDetail]
MakeIssue = Callable[..., PhaseIssue]


def names_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def contents_below(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names_below(folder)}


def plan(a_phase: MakePhase, count: int) -> list[PhaseDetail]:
    return [a_phase(f"P{n // 9 + 1}.{n % 9 + 1}", tier=n // 9, index=n) for n in range(count)]


def test_a_run_has_the_files_of_the_guide_and_no_other(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, an_issue: MakeIssue
) -> None:
    phases = [
        a_phase("P1.1", issues=[an_issue()]),
        a_phase("P1.2", index=1),
        a_phase("P2.1", tier=1, index=2),
    ]
    strategy = {"project_implementation_strategy_v1.json": b"{}\n"}
    mirror.write_run(a_run(phases), documents=strategy)
    mirror.write_backlog("Autopack", list)
    mirror.write_ruleset("Autopack", b"{}")

    assert names_below(mirror.runs_dir) == {
        ".gitignore",
        "project_issue_backlog.json",
        "project_ruleset_Autopack.json",
        "run-001/run_summary.md",
        "run-001/project_implementation_strategy_v1.json",
        "run-001/tiers/tier_0_T1.md",
        "run-001/tiers/tier_1_T2.md",
        "run-001/phases/phase_0_P1.1.md",
        "run-001/phases/phase_1_P1.2.md",
        "run-001/phases/phase_2_P2.1.md",
        "run-001/issues/phase_0_P1.1_issues.json",
        "run-001/issues/phase_1_P1.2_issues.json",
        "run-001/issues/phase_2_P2.1_issues.json",
    }
    assert (mirror.runs_dir / ".gitignore").read_text() == "*\n"
    issues = mirror.phase_issue_file("run-001", 0, "P1.1")
    assert Path(issues).is_file()


def test_an_issue_file_without_issues_left_is_kept_up_to_date(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, an_issue: MakeIssue
) -> None:
    mirror.write_run(a_run([a_phase(issues=[an_issue()])]))
    mirror.write_run(a_run([a_phase()], revision=2))
    path = mirror.runs_dir / mirror.phase_issue_file("run-001", 0, "P1.1")
    assert '"revision": 2' in path.read_text()


def test_only_what_changed_is_written(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(plan(a_phase, 25))
    renamed: list[str] = []
    rename = os.rename

    def spy(source: str, target: str, **where: Any) -> None:
        renamed.append(target)
        rename(source, target, **where)

    monkeypatch.setattr(os, "rename", spy)
    mirror.write_run(run)
    assert len(renamed) == 25 + 25 + 3 + 1
    renamed.clear()
    mirror.write_run(run.model_copy(update={"revision": 2}), phases={"P2.1"})
    assert renamed == ["phase_9_P2.1.md", "tier_1_T2.md", "run_summary.md"]
    renamed.clear()
    mirror.write_run(run.model_copy(update={"revision": 3}), phases=())
    assert renamed == ["run_summary.md"]


def test_a_lost_summary_is_written_again_and_the_other_files_stay(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    run = a_run(plan(a_phase, 3))
    mirror.write_run(run)
    whole = names_below(mirror.runs_dir)
    (mirror.runs_dir / "run-001" / "run_summary.md").unlink()
    mirror.write_run(run.model_copy(update={"revision": 2}), phases={"P1.1"})
    assert names_below(mirror.runs_dir) == whole


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done to the disk from here on, in order."""
    done: list[str] = []

    def spy(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            done.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("rename")
    return done


def test_a_run_waits_for_no_disk(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase, steps: list[str]
) -> None:
    mirror.write_run(a_run(plan(a_phase, 25)))
    assert steps == ["rename"] * (25 + 25 + 3 + 1)


def test_an_operators_ruleset_is_on_the_disk_before_the_answer(
    mirror: Mirror, steps: list[str]
) -> None:
    mirror.write_ruleset("Autopack", b"{}")
    assert steps == ["fsync", "rename", "fsync"]  # the last one is the folder's


class TestTheMachineStops:
    def test_nothing_is_doubted_before_the_first_mark_or_while_the_machine_runs(
        self, mirror: Mirror
    ) -> None:
        assert mirror.unsynced_since() is None
        mirror.sync(7)
        assert mirror.unsynced_since() is None

    @pytest.mark.parametrize("boot", ["another start", ""])
    def test_after_another_boot_runs_with_events_after_the_mark_are_unsynced(
        self, mirror: Mirror, monkeypatch: pytest.MonkeyPatch, boot: str
    ) -> None:
        mirror.sync(7)
        monkeypatch.setattr(durability, "boot_id", lambda: boot)
        assert mirror.unsynced_since() == 7

    def test_a_system_that_names_no_start_may_have_stopped_at_any_time(
        self, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(durability, "boot_id", lambda: "")
        mirror.sync(7)
        assert mirror.unsynced_since() == 7

    @pytest.mark.parametrize(
        "content", ["", "{", "[]", '{"event": "x", "boot": ""}', '{"event": 3}', "null"]
    )
    def test_a_mark_that_is_no_mark_vouches_for_nothing(self, mirror: Mirror, content: str) -> None:
        (mirror.runs_dir / durability.MARK).write_text(content)
        assert mirror.unsynced_since() == 0

    def test_the_disk_is_synced_again_only_when_there_is_something_new(
        self, mirror: Mirror, steps: list[str]
    ) -> None:
        mirror.sync(7)
        steps.clear()
        mirror.sync(7)
        assert steps == []
        mirror.sync(8)
        assert steps == ["fsync", "rename", "fsync"]

    def test_a_disk_that_cannot_be_synced_gets_no_mark(
        self, mirror: Mirror, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(_folder: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(syncing, "sync_file_system", fail)
        with pytest.raises(MirrorUnusableError, match="Input/output error"):
            mirror.sync(7)
        assert not (mirror.runs_dir / durability.MARK).exists()


@pytest.mark.parametrize("call", ["write", "open"])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_full_disk_changes_no_file_and_is_named(
    mirror: Mirror,
    a_run: MakeRun,
    call: str,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror.write_run(a_run())
    before = contents_below(mirror.runs_dir)
    real = getattr(os, call)
    calls = 0

    def full(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        writes = call != "open" or bool(arguments[1] & os.O_CREAT)
        calls += writes
        if writes and calls == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(MirrorUnusableError) as caught:
            mirror.write_run(a_run(revision=2))
    assert "No space left on device" in caught.value.detail
    assert str(mirror.folder("run-001")) in caught.value.detail
    assert (caught.value.kind, caught.value.code) == (ErrorKind.UNAVAILABLE, "runs_dir_unusable")
    assert contents_below(mirror.runs_dir) == before


def test_a_limit_of_the_system_on_file_sizes_changes_no_file(mirror: Mirror) -> None:
    mirror.write_ruleset("Autopack", b"old")
    script = """
import resource, sys
from pathlib import Path
from autopack import syncing
from autopack.mirror import Mirror, MirrorUnusableError
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    Mirror(Path(sys.argv[1])).write_ruleset("Autopack", b"x" * 10_000)
except MirrorUnusableError as error:
    sys.stdout.write(error.detail)
"""
    said = run_python(script, str(mirror.runs_dir))
    assert "project_ruleset_Autopack.json cannot be written: File too large" in said
    assert names_below(mirror.runs_dir) == {".gitignore", "project_ruleset_Autopack.json"}
    assert mirror.read_ruleset("Autopack") == b"old"


def test_what_a_crash_left_behind_is_healed_by_the_same_revision(
    mirror: Mirror, a_run: MakeRun, a_phase: MakePhase
) -> None:
    run = a_run(plan(a_phase, 4))
    mirror.write_run(run)
    whole = contents_below(mirror.runs_dir)
    script = """
import os, sys
from pathlib import Path
from autopack.mirror.files import NewFile, locked_folder, open_folder, open_top, replace_files
rename, left = os.rename, 2
def crash(*names, **where):
    global left
    if not left:
        os._exit(9)
    left -= 1
    rename(*names, **where)
os.rename = crash
names = ["phase_0_P1.1.md", "phase_1_P1.2.md", "phase_2_P1.3.md"]
with open_top(Path(sys.argv[1])) as top, locked_folder(top, "run-001") as run:
    with open_folder(run, "phases") as phases:
        replace_files(run, [NewFile(phases, name, b"half of another state") for name in names])
"""
    run_python(script, str(mirror.runs_dir), expected=9)
    assert ".phase_2_P1.3.md.tmp" in os.listdir(mirror.folder("run-001"))
    mirror.write_run(run)
    assert contents_below(mirror.runs_dir) == whole


@pytest.mark.parametrize(
    "write",
    [
        lambda mirror: mirror.write_ruleset("Autopack", b"new"),
        lambda mirror: mirror.write_backlog("Autopack", list),
    ],
)
def test_leftover_temporary_files_are_not_in_the_way(
    mirror: Mirror, write: Callable[[Mirror], None]
) -> None:
    write(mirror)
    names = names_below(mirror.runs_dir)
    for name in names:
        path = mirror.runs_dir / name
        path.with_name(f".{path.name}.tmp").write_text("half a fi")
    (mirror.runs_dir / "..gitignore.tmp").unlink()
    write(mirror)
    assert names_below(mirror.runs_dir) == names


def test_leftovers_of_files_that_are_never_written_again_are_removed(
    mirror: Mirror, a_run: MakeRun
) -> None:
    mirror.write_run(a_run())
    leftover = mirror.folder("run-001") / ".phase_9_P9.9.md.tmp"
    leftover.write_text("half a fi")
    mirror.write_run(a_run(revision=2), phases=())
    assert not leftover.exists()
    leftover = mirror.runs_dir / ".project_ruleset_Autopack.json.tmp"
    leftover.write_text("half a fi")
    mirror.prepare()  # a start
    assert not leftover.exists()


def test_a_folder_deleted_while_its_lock_was_awaited_is_made_again(
    mirror: Mirror, a_run: MakeRun
) -> None:
    mirror.write_run(a_run())
    folder = mirror.folder("run-001")
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(mirror.write_run, a_run(revision=2))
        with pytest.raises(TimeoutError):
            writing.result(0.2)  # it waits
        shutil.rmtree(folder)
        os.close(descriptor)
        writing.result(10)
    assert (folder / "run_summary.md").is_file()


def test_a_runs_directory_that_cannot_be_made_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mirror = Mirror(tmp_path / "file" / "runs")
    for use in (mirror.prepare, mirror.check, lambda: mirror.write_ruleset("Autopack", b"{}")):
        with pytest.raises(MirrorUnusableError, match="Not a directory") as caught:
            use()
        assert str(mirror.runs_dir) in caught.value.detail


def test_check_fails_where_nothing_can_be_written(mirror: Mirror) -> None:
    mirror.check()
    assert names_below(mirror.runs_dir) == {".gitignore"}
    shutil.rmtree(mirror.runs_dir)
    with pytest.raises(MirrorUnusableError, match="No such file or directory"):
        mirror.check()


def test_a_removed_runs_directory_is_made_again(mirror: Mirror, a_run: MakeRun) -> None:
    shutil.rmtree(mirror.runs_dir)
    mirror.write_run(a_run())
    assert (mirror.folder("run-001") / "run_summary.md").is_file()
    assert (mirror.runs_dir / ".gitignore").is_file()


def test_the_operators_own_gitignore_is_kept(mirror: Mirror) -> None:
    (mirror.runs_dir / ".gitignore").write_text("!run-001\n")
    mirror.prepare()
    assert (mirror.runs_dir / ".gitignore").read_text() == "!run-001\n"


def test_a_link_planted_in_a_run_leads_nowhere(
    mirror: Mirror, a_run: MakeRun, tmp_path: Path
) -> None:
    mirror.write_run(a_run())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    run = mirror.folder("run-001")
    (run / "run_summary.md").unlink()
    (run / "run_summary.md").symlink_to(outside / "precious")
    mirror.write_run(a_run())
    assert not (run / "run_summary.md").is_symlink()

    shutil.rmtree(run / "phases")
    (run / "phases").symlink_to(outside)
    with pytest.raises(MirrorUnusableError):
        mirror.write_run(a_run())
    assert contents_below(outside) == {"precious": b"kept"}


@pytest.mark.parametrize(
    "run_id",
    ["..", "a/b", "", ".hidden", "project_issue_backlog.json", "Project_Ruleset_x.json"],
)
def test_an_id_that_cannot_be_a_folder_is_refused(mirror: Mirror, run_id: str) -> None:
    with pytest.raises(InvalidError):
        mirror.folder(run_id)


def test_a_ruleset_is_written_once_if_only_absent(mirror: Mirror) -> None:
    assert mirror.read_ruleset("Autopack") is None
    assert mirror.write_ruleset("Autopack", b"default", only_if_absent=True)
    assert not mirror.write_ruleset("Autopack", b"other", only_if_absent=True)
    assert mirror.read_ruleset("Autopack") == b"default"
    assert mirror.write_ruleset("Autopack", b"given")
    assert mirror.read_ruleset("Autopack") == b"given"
    assert mirror.read_ruleset("Another") is None


def run_python(script: str, *arguments: str, expected: int = 0) -> str:
    """Run a script in a process of its own and return what it said."""
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == expected, result.stderr
    return result.stdout
