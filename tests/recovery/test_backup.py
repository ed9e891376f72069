"""A backup gives everything back after the loss of all else. (docs/backup.md)"""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import make_url
from starlette.testclient import TestClient

from autopack.backup import make_backup, restore_backup
from autopack.checker.command import main as check
from autopack.config import Settings
from autopack.contexts import as_node, of_project
from autopack.database import open_database
from autopack.domain.errors import AutopackError
from autopack.main import create_app
from autopack.migrating import DatabaseError
from autopack.postgres_tools import PostgresToolError
from autopack.services.archives import (
    ArchiveError,
    ArchiveExistsError,
    chunks_of,
    new_archive,
)
from autopack.services.backups import MEMBERS, DatabaseInUseError, open_backup
from autopack.services.upkeep import tend_node
from autopack.store.projects import drop_database

from .consistency import REVISION, assert_consistent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import GitRepo
    from tests.processes import ForkServer

    from autopack.services.context import AppContext

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]


def service(settings: Settings) -> TestClient:
    return TestClient(create_app(settings), base_url="http://localhost", client=("127.0.0.1", 1))


def must(client: TestClient, path: str, body: Json | None = None) -> Json:
    response = client.post(path, json=body or {}) if body is not None else client.get(path)
    assert response.is_success, response.text
    answer: Json = response.json()
    return answer


def start(client: TestClient, run_id: str, phases: int = 1) -> None:
    must(
        client,
        "/runs/start",
        {
            "run": {"run_id": run_id},
            "tiers": [{"tier_id": "T1", "tier_index": 0, "name": "First tier"}],
            "phases": [
                {"phase_id": f"P{index}", "phase_index": index, "tier_id": "T1", "name": "Do it"}
                for index in range(phases)
            ],
        },
    )


def submit(client: TestClient, run_id: str, phase_id: str, name: str) -> Json:
    patch = (
        f"diff --git a/{name} b/{name}\nnew file mode 100644\n--- /dev/null\n+++ b/{name}\n"
        f"@@ -0,0 +1 @@\n+{name}\n"
    )
    body = {"status": "success", "patch_content": patch, "tokens_used": 5}
    return must(client, f"/runs/{run_id}/phases/{phase_id}/builder_result", body)


def work(client: TestClient) -> None:
    """One run that is over, one that goes on, one that was cancelled."""
    start(client, "done")
    submit(client, "done", "P0", "done.txt")
    start(client, "live", phases=2)
    submit(client, "live", "P0", "live.txt")
    start(client, "cancelled")
    must(client, "/runs/cancelled/cancel", {"reason": "not needed"})


def state_of(settings: Settings, repo: GitRepo) -> Json:
    """Return all that a user would miss."""
    runs: Json = {}
    with service(settings) as client:
        for run in must(client, "/runs")["runs"]:
            run_id = run["run_id"]
            runs[run_id] = {
                "run": must(client, f"/runs/{run_id}"),
                "events": must(client, f"/runs/{run_id}/events"),
                "promotion": must(client, f"/runs/{run_id}/promotion"),
            }
        backlog = must(client, "/project/issues/backlog")
    refs = repo.git("for-each-ref", "refs/heads", "refs/tags")
    files = {
        str(path.relative_to(settings.autonomous_runs_dir)): REVISION.sub(b"N", path.read_bytes())
        for path in settings.autonomous_runs_dir.rglob("*")
        if path.is_file() and path.name != ".synced.json"
    }
    return {"runs": runs, "backlog": backlog, "refs": refs, "files": files}


def elsewhere(settings: Settings, folder: Path, database_url: str, repo: Path) -> Settings:
    """Return the settings of a machine that has nothing yet."""
    return settings.model_copy(
        update={
            "database_url": Settings(_env_file=None, database_url=database_url).database_url,
            "repo_path": repo,
            "home": folder / "home",
            "autonomous_runs_dir": folder / "runs",
        }
    )


def verified(repo: GitRepo, capsys: pytest.CaptureFixture[str]) -> Json:
    """Return what `autopack verify` says of the run that is over."""
    capsys.readouterr()
    check(["--run-id=done", "--branch=autonomous/done", f"--repository={repo.path}", "--json"])
    verdict: Json = json.loads(capsys.readouterr().out)
    return verdict


@pytest.fixture
def backup(settings: Settings, tmp_path: Path) -> Path:
    """A backup of a service that has stopped."""
    with service(settings) as client:
        work(client)
    file = tmp_path / "backup.tar"
    make_backup(settings, file)
    return file


def test_everything_comes_back_into_an_empty_repository_and_an_empty_database(
    settings: Settings,
    git_repo: GitRepo,
    backup: Path,
    tmp_path: Path,
    empty_database_url: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.conftest import GitRepo as Repo

    before = state_of(settings, git_repo)
    verdict = verified(git_repo, capsys)
    shutil.rmtree(settings.home)
    shutil.rmtree(settings.autonomous_runs_dir)

    other = Repo(tmp_path / "other")
    other.path.mkdir()
    other.git("init", "--quiet", "--initial-branch=main", "--template=")
    restored = elsewhere(settings, tmp_path / "elsewhere", empty_database_url, other.path)
    report = restore_backup(restored, backup)

    assert [(run.run_id, run.problems) for run in report.runs] == [
        ("done", []),
        ("live", []),
        ("cancelled", []),
    ]
    assert_consistent(restored)
    assert state_of(restored, other) == before
    assert verified(other, capsys) == verdict
    assert verdict["eligible"], verdict["reasons"]
    with service(restored) as client:  # and work goes on
        submit(client, "live", "P1", "more.txt")


@pytest.mark.campaigns
def test_a_further_project_comes_back_when_its_database_and_folders_are_lost(
    settings: Settings,
    git_repo: GitRepo,
    tmp_path: Path,
    dropped_projects: None,
) -> None:
    from tests.conftest import GitRepo, make_git_repo

    shop = make_git_repo(tmp_path / "shop")
    file, cart = tmp_path / "shop.tar", tmp_path / "cart.tar"
    with service(settings) as client:
        start(client, "done")  # a run of the default project, of the same name
        for name, folder in (("shop", shop), ("cart", make_git_repo(tmp_path / "cart"))):
            must(client, "/projects", {"name": name, "repository": str(folder.path)})
        with of_project(settings, "shop") as found:
            its = found.settings
        client.base_url = client.base_url.join("/projects/shop/")
        work(client)
        make_backup(settings, file, "shop")  # beside the service
        make_backup(settings, cart, "cart")
    before, default = state_of(its, shop), state_of(settings, git_repo)
    with pytest.raises(AutopackError, match="3 rows in runs"):
        restore_backup(settings, file, "shop")
    with pytest.raises(AutopackError, match="is of the project 'cart', not of 'shop'"):
        restore_backup(settings, cart, "shop", is_replacing=True)
    assert state_of(its, shop) == before

    with open_database(settings) as database:
        drop_database(database.autocommit, make_url(its.database_url or "").database or "")
    with pytest.raises(DatabaseError, match="does not exist"):
        make_backup(settings, tmp_path / "none.tar", "shop")
    shutil.rmtree(its.home)
    shutil.rmtree(shop.path)
    shop = GitRepo(tmp_path / "elsewhere")
    shop.path.mkdir()
    shop.git("init", "--quiet", "--initial-branch=main", "--template=")
    with service(settings) as client:
        must(client, "/projects/shop/close", {})  # so that the service may go on with the others
        # The folder and the database are both lost: neither may wait for the other.
        moved = client.put("/projects/shop", json={"repository": str(shop.path)})
        assert moved.json()["repository"] == str(shop.path), moved.text
        its = its.model_copy(update={"repo_path": shop.path})
        report = restore_backup(settings, file, "shop")
        assert [(run.run_id, run.problems) for run in report.runs] == [
            ("done", []),
            ("live", []),
            ("cancelled", []),
        ]
        assert state_of(its, shop) == before
        shop.git("reset", "--quiet", "--hard")
        must(client, "/projects/shop/reopen", {})
        client.base_url = client.base_url.join("/projects/shop/")
        submit(client, "live", "P1", "more.txt")
        assert must(client, "/runs/done")["state"] == "DONE_SUCCESS"
    assert state_of(settings, git_repo) == default


def test_the_clone_of_the_backup_gets_its_refs_and_files_back(
    settings: Settings, git_repo: GitRepo, backup: Path, spare_database_url: str
) -> None:
    before = state_of(settings, git_repo)
    shutil.rmtree(settings.home)
    shutil.rmtree(settings.autonomous_runs_dir)
    for ref in git_repo.git("for-each-ref", "--format=%(refname)", "refs/heads/autonomous").split():
        git_repo.git("update-ref", "-d", ref)
    restored = settings.model_copy(
        update={
            "database_url": Settings(_env_file=None, database_url=spare_database_url).database_url
        }
    )
    report = restore_backup(restored, backup)
    assert (report.problems, report.set_aside) == (0, {})
    assert state_of(restored, git_repo) == before


def test_a_ruleset_that_no_run_has_used_comes_back_although_the_node_looks_after_itself_at_once(
    settings: Settings, tmp_path: Path, spare_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes of the backup make the restoring process follow them, as soon as it is a member."""
    with service(settings) as client:
        work(client)
    ruleset = settings.autonomous_runs_dir / "project_ruleset_Autopack.json"
    edited = ruleset.read_bytes() + b"\n"
    ruleset.write_bytes(edited)
    make_backup(settings, tmp_path / "edited.tar")
    shutil.rmtree(settings.home)
    shutil.rmtree(settings.autonomous_runs_dir)

    @contextmanager
    def as_quick_node(context: AppContext) -> Iterator[AppContext]:
        with as_node(context) as member:
            tend_node(member)
            yield member

    monkeypatch.setattr("autopack.backup.as_node", as_quick_node)
    url = Settings(_env_file=None, database_url=spare_database_url).database_url
    restored = settings.model_copy(update={"database_url": url})
    assert restore_backup(restored, tmp_path / "edited.tar").problems == 0
    assert ruleset.read_bytes() == edited


def test_work_after_the_backup_is_set_aside_and_the_older_state_returns(
    settings: Settings, git_repo: GitRepo, backup: Path
) -> None:
    before = state_of(settings, git_repo)
    with service(settings) as client:
        submit(client, "live", "P1", "more.txt")  # which ends the run
        start(client, "younger")
    later = git_repo.git("rev-parse", "autonomous/live")
    for _ in range(2):
        with pytest.raises(DatabaseInUseError, match=r"has 4 rows in runs\. --replace|3 rows"):
            restore_backup(settings, backup)
        report = restore_backup(settings, backup, is_replacing=True)
        assert report.problems == 0
        assert report.unknown_branches == ["autonomous/younger"]
        assert state_of(settings, git_repo) == {
            **before,
            "refs": git_repo.git("for-each-ref", "refs/heads", "refs/tags"),
            "files": state_of(settings, git_repo)["files"],
        }
    kept = git_repo.git("for-each-ref", "--format=%(objectname)", "refs/autopack/before-restore")
    assert later in kept.split()
    assert not (settings.autonomous_runs_dir / "live" / "run.json").exists()
    with service(settings) as client:
        submit(client, "live", "P1", "other.txt")
        assert must(client, "/runs/live")["state"] == "DONE_SUCCESS"


@pytest.mark.campaigns
def test_a_backup_of_a_service_at_work_has_every_patch_that_was_acknowledged_before(
    settings: Settings, git_repo: GitRepo, tmp_path: Path, empty_database_url: str
) -> None:
    agents, phases = 8, 4
    acknowledged: dict[str, list[str]] = {f"run-{number}": [] for number in range(agents)}
    with service(settings) as client:
        for run_id in acknowledged:
            start(client, run_id, phases + 1)

        def agent(run_id: str) -> None:
            for number in range(phases):
                done = submit(client, run_id, f"P{number}", f"{run_id}-{number}.txt")
                acknowledged[run_id].append(done["commit_sha"])

        with ThreadPoolExecutor(agents) as pool:
            working = [pool.submit(agent, run_id) for run_id in acknowledged]
            while not all(acknowledged.values()):
                assert not any(each.done() and each.exception() for each in working)
            at_least = {run_id: list(commits) for run_id, commits in acknowledged.items()}
            make_backup(settings, tmp_path / "backup.tar")
            for each in working:
                each.result()
    shutil.rmtree(settings.home)
    restored = elsewhere(settings, tmp_path / "elsewhere", empty_database_url, git_repo.path)
    report = restore_backup(restored, tmp_path / "backup.tar")
    assert [run.problems for run in report.runs] == [[]] * agents
    assert_consistent(restored)
    for run_id, commits in at_least.items():
        branch = git_repo.git("rev-list", "--reverse", f"main..autonomous/{run_id}").split()
        assert branch[: len(commits)] == commits
        assert branch == acknowledged[run_id][: len(branch)]


def test_a_truncated_or_damaged_archive_is_refused_before_anything_changes(
    settings: Settings, git_repo: GitRepo, backup: Path, tmp_path: Path
) -> None:
    whole = backup.read_bytes()
    before = state_of(settings, git_repo)
    bad = tmp_path / "bad.tar"
    chance = random.Random(7)
    cuts = [0, 511, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(20))]
    for cut in cuts:
        bad.write_bytes(whole[:cut])
        with pytest.raises(ArchiveError, match=r"truncated|no tar|zeros"):
            restore_backup(settings, bad, is_replacing=True)
    places = [100, len(whole) - 1, *(chance.randrange(len(whole)) for _ in range(40))]
    for place in places:
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ArchiveError):
            restore_backup(settings, bad, is_replacing=True)
    bad.write_bytes(whole + b"\0")
    with pytest.raises(ArchiveError, match="does not end"):
        restore_backup(settings, bad, is_replacing=True)
    assert state_of(settings, git_repo) == before


def remade(backup: Path, file: Path, **changes: object) -> Path:
    """Write a backup again with another manifest and right sums."""
    with open_backup(backup) as (archive, manifest), new_archive(file) as made:
        for name in MEMBERS:
            made.add(name, chunks_of(archive.open(name)))
        made.finish({**manifest.model_dump(mode="json"), **changes})
    return file


MISFITS: list[tuple[Json, str]] = [
    ({"revision": "from_the_future", "autopack": "9.0"}, "from_the_future.*Autopack 9.0"),
    ({"postgres": 99}, "of Postgres 99, and this server is"),
    ({"dump_program": 99}, "pg_restore of Postgres 99 or newer, and .* is of"),
    ({"root_commits": ["1" * 40]}, "whose first commit is 1111"),
    ({"project_id": "another"}, "of the project 'another'"),
    ({"format": 2}, "format 2.*update Autopack"),
    ({"kind": "tar"}, "does not have the kind"),
    ({"runs": "many"}, "runs is wrong"),
]


def test_a_backup_that_does_not_fit_is_refused_by_name(
    settings: Settings, git_repo: GitRepo, backup: Path, tmp_path: Path
) -> None:
    before = git_repo.git("for-each-ref")
    for number, (changes, words) in enumerate(MISFITS):
        file = remade(backup, tmp_path / f"other-{number}.tar", **changes)
        with pytest.raises((AutopackError, DatabaseError, PostgresToolError), match=words):
            restore_backup(settings, file, is_replacing=True)
    assert git_repo.git("for-each-ref") == before


def test_a_database_with_a_service_is_not_restored_into(settings: Settings, backup: Path) -> None:
    with service(settings), pytest.raises(DatabaseInUseError, match="a service works on"):
        restore_backup(settings, backup, is_replacing=True)


def test_a_restore_that_is_killed_is_not_repeated_while_its_program_still_works(
    settings: Settings, backup: Path, database_url: str
) -> None:
    with (
        closing(psycopg2.connect(database_url, application_name="pg_restore")),
        pytest.raises(DatabaseInUseError, match="pg_restore of a restore that was killed"),
    ):
        restore_backup(settings, backup, is_replacing=True)
    assert restore_backup(settings, backup, is_replacing=True).problems == 0


def test_a_file_that_is_there_is_not_replaced_and_a_backup_is_for_its_owner_alone(
    settings: Settings, backup: Path
) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    content = backup.read_bytes()
    with pytest.raises(ArchiveExistsError, match="exists already"):
        make_backup(settings, backup)
    assert backup.read_bytes() == content


STOPPING = """
import os, resource
from autopack.services import archives

kind = os.environ["STOP_AT"]
if kind == "full":  # a limit of the process, which the kernel enforces as it does a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
else:
    write = archives.ArchiveWriter.add
    def add(self, name, chunks):
        if name == kind:
            self._file.flush()
            os.kill(os.getpid(), 9)
        return write(self, name, chunks)
    archives.ArchiveWriter.add = add
"""


@pytest.mark.parametrize("kind", ["full", "manifest.json"])
def test_a_backup_that_is_stopped_leaves_no_file_of_its_name(
    settings: Settings, git_repo: GitRepo, fork_server: ForkServer, tmp_path: Path, kind: str
) -> None:
    git_repo.commit({"large.bin": random.Random(1).randbytes(200_000)})
    with service(settings) as client:
        work(client)
    file = tmp_path / "folder" / "backup.tar"
    file.parent.mkdir()
    assert settings.database_url is not None
    stopping = tmp_path / "stopping.py"
    stopping.write_text(STOPPING)
    done = fork_server.run(
        *("db", "backup", str(file)),
        folder=tmp_path,
        first=stopping,
        environment={
            "STOP_AT": kind,
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            "AUTOPACK_REPO_PATH": str(settings.repo_path),
            "AUTOPACK_HOME": str(settings.home),
            "AUTOPACK_PROJECT_ID": settings.project_id,
            "AUTONOMOUS_RUNS_DIR": str(settings.autonomous_runs_dir),
            "DATABASE_URL": settings.database_url,
        },
    )
    left = [path.name for path in file.parent.iterdir()]
    if kind == "full":
        assert done.returncode == 3
        assert done.stderr == (
            f"autopack: {file} cannot be written: File too large; nothing is left of it\n"
        )
        assert left == []
    else:
        assert done.returncode == -9, done.stderr
        assert [name.endswith(".partial") for name in left] == [True]
        with pytest.raises(ArchiveError):
            restore_backup(settings, file.parent / left[0], is_replacing=True)
        make_backup(settings, file)


def test_a_restore_that_is_stopped_is_called_again(
    settings: Settings,
    git_repo: GitRepo,
    backup: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = state_of(settings, git_repo)

    def fail(*_: object, **__: object) -> None:
        raise PostgresToolError("killed")

    for step in ("autopack.backup.restore", "autopack.services.backups.rebuild"):
        with monkeypatch.context() as patch:
            patch.setattr(step, fail)
            with pytest.raises(PostgresToolError):
                restore_backup(settings, backup, is_replacing=True)
    assert restore_backup(settings, backup, is_replacing=True).problems == 0
    assert state_of(settings, git_repo) == before


def test_a_branch_that_a_person_removed_is_not_made_again(
    settings: Settings, git_repo: GitRepo, tmp_path: Path
) -> None:
    with service(settings) as client:
        work(client)
    git_repo.git("branch", "--quiet", "-D", "autonomous/done")
    make_backup(settings, tmp_path / "backup.tar")
    report = restore_backup(settings, tmp_path / "backup.tar", is_replacing=True)
    assert {run.run_id: (run.has_branch, run.problems) for run in report.runs} == {
        "done": (False, []),
        "live": (True, []),
        "cancelled": (True, []),
    }
    assert "autonomous/done" not in git_repo.git("branch", "--list")
