"""One run as an archive, shown and verified by another service. (docs/backup.md)"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from tests.conftest import GitRepo, make_git_repo

from autopack.backup import read_run, write_run
from autopack.config import Settings
from autopack.database import make_engine
from autopack.domain.errors import AutopackError
from autopack.services.archives import ArchiveError, chunks_of, new_archive, open_archive
from autopack.services.exports import (
    KIND,
    MEMBERS,
    ROWS,
    ImportConflictError,
    NotExportableError,
)

from .test_backup import elsewhere, must, service, start, submit, verified, work

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.integration, pytest.mark.safety_critical]

Json = dict[str, Any]


@pytest.fixture
def archive(settings: Settings, tmp_path: Path) -> Path:
    """The archive of the run `done`, whose service has stopped."""
    with service(settings) as client:
        work(client)
    write_run(settings, "done", tmp_path / "done.tar")
    return tmp_path / "done.tar"


@pytest.fixture
def other(settings: Settings, tmp_path: Path, spare_database_url: str) -> tuple[Settings, GitRepo]:
    """Another service, with a clone that has the base commit."""
    repo = make_git_repo(tmp_path / "other")
    return elsewhere(settings, tmp_path / "elsewhere", spare_database_url, repo.path), repo


def test_another_service_shows_and_verifies_an_imported_run_and_never_changes_it(
    settings: Settings,
    git_repo: GitRepo,
    archive: Path,
    other: tuple[Settings, GitRepo],
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs, repo = other
    mine = verified(git_repo, capsys)
    assert read_run(theirs, archive).is_new
    assert not read_run(theirs, archive).is_new
    assert verified(repo, capsys) == mine
    assert repo.git("rev-parse", "autonomous/done") == git_repo.git("rev-parse", "autonomous/done")

    with service(settings) as here:
        run = must(here, "/runs/done")
        events = must(here, "/runs/done/events")
        attempts = must(here, "/runs/done/phases/P0/attempts")
    with service(theirs) as there:
        shown = must(there, "/runs/done")
        changed = {key for key in run if shown[key] != run[key]}
        assert changed <= {
            "imported_at",
            "imported_by",
            "next",
            "promotion",
            "promotion_eligible_to_main",
            "promotion_reasons",
            "revision",
        }
        assert shown["imported_by"] is not None
        assert must(there, "/runs/done/events") == events
        told = must(there, "/runs/done/phases/P0/attempts")["attempts"]
        assert [each["notes"] for each in told] == [each["notes"] for each in attempts["attempts"]]
        (patch,) = told[0]["patches"]
        assert there.get(patch["content"]).content.startswith(b"diff --git a/done.txt")
        assert "imported" in must(there, "/runs/done/promotion")["reasons"][0]
        assert must(there, "/metrics/runs")["total_runs"] == 0
        assert must(there, "/reports/budget_analysis")["total_budget_failures"] == 0
        assert must(there, "/attention")["items"] == []
        assert there.get("/dashboard/runs/done").is_success
        repo.commit({"new.txt": "new\n"})
        for path in ("/runs/done/rebase", "/runs/done/phases/P0/auditor_request"):
            answer = there.post(path, json={})
            assert (answer.status_code, answer.json()["code"]) == (409, "run_imported")
        start(there, "own")
        submit(there, "own", "P0", "own.txt")


def test_only_a_whole_run_that_is_over_is_exported(
    settings: Settings, archive: Path, tmp_path: Path
) -> None:
    with pytest.raises(NotExportableError, match="'live' has no record"):
        write_run(settings, "live", tmp_path / "live.tar")
    assert not (tmp_path / "live.tar").exists()


def test_another_run_of_that_name_is_refused_by_name(
    archive: Path, other: tuple[Settings, GitRepo]
) -> None:
    theirs, _ = other
    with service(theirs) as client:
        start(client, "done")
    with pytest.raises(ImportConflictError, match="there is a run 'done' already"):
        read_run(theirs, archive)


def rows_changed(change: Callable[[str, Json], None]) -> Callable[[str, bytes], bytes]:
    def apply(name: str, content: bytes) -> bytes:
        if name != ROWS:
            return content
        lines = []
        for line in content.splitlines():
            document = json.loads(line)
            change(document["table"], document["row"])
            lines.append(json.dumps(document).encode() + b"\n")
        return b"".join(lines)

    return apply


def in_rows(table: str, **values: object) -> Callable[[str, bytes], bytes]:
    return rows_changed(lambda name, row: row.update(values) if name == table else None)


FORGERIES: list[tuple[Callable[[str, bytes], bytes], str]] = [
    (in_rows("runs", state="DONE_FAILED_ENVIRONMENT"), "the state in the rows differs"),
    (in_rows("runs", state="<script>"), "violates check constraint"),
    (in_rows("runs", ended_at=None), "not over"),
    (in_rows("phases", tokens_used=1), "phase 'P0' in the rows differs"),
    (in_rows("phases", run_pk=77), "77"),
    (in_rows("phases", tokens_used=1e400), "Infinity|no number"),
    (in_rows("events", reason="forged"), "the chain of events is broken"),
    (in_rows("events", data=[]), "chain of events|not what Autopack writes"),
    (in_rows("commits", sha="1" * 40), "in the rows differs|unique"),
    (in_rows("patches", wrong=1), "patches has no column wrong"),
    (in_rows("submissions", body=[]), "not what Autopack writes"),
    (lambda n, c: c.replace(b'"tiers"', b'"api_keys"') if n == ROWS else c, "out of place"),
    (lambda n, c: c + b"{" if n == ROWS else c, "does not end"),
    (lambda n, c: c + b"[" * 100_000 + b"\n" if n == ROWS else c, "not what Autopack writes"),
    (lambda n, c: b"" if n == ROWS else c, "not what Autopack writes|no run"),
    (lambda n, c: c[:-30] if n == "commits.bundle" else c, "is not whole"),
    (lambda n, c: b"junk" if n == "commits.bundle" else c, "is not whole"),
    (lambda n, c: b"{}" if n == "run.json" else c, "not the one of the last commit"),
]


def test_a_forged_archive_is_refused_and_leaves_nothing(
    archive: Path, other: tuple[Settings, GitRepo], tmp_path: Path
) -> None:
    theirs, repo = other
    assert theirs.database_url is not None
    refs = repo.git("for-each-ref")
    objects = len(list((repo.path / ".git/objects").rglob("*")))
    for number, (change, words) in enumerate(FORGERIES):
        file = tmp_path / f"forged-{number}.tar"
        with open_archive(archive, KIND, MEMBERS) as whole, new_archive(file) as made:
            for name in MEMBERS:
                made.add(name, [change(name, b"".join(chunks_of(whole.open(name))))])
            made.finish(whole.manifest)
        with pytest.raises(ArchiveError, match=words):
            read_run(theirs, file)
    for changes, words in (
        ({"run_id": "../../etc"}, "manifest.json"),
        ({"revision": "future"}, "does not know"),
        ({"head_commit": "--all"}, "head_commit is wrong"),
        ({"base_commit": "1" * 40}, "does not have: fetch it"),
        ({"run_id": "another"}, "no branch at"),
    ):
        file = tmp_path / f"manifest-{words[:4]}-{len(changes)}{sorted(changes)[0]}{words[-3:]}.tar"
        with open_archive(archive, KIND, MEMBERS) as whole, new_archive(file) as made:
            for name in MEMBERS:
                made.add(name, chunks_of(whole.open(name)))
            made.finish(whole.manifest | changes)
        with pytest.raises(AutopackError, match=words):
            read_run(theirs, file)
    engine = make_engine(theirs.database_url, 15)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM runs")).scalar_one() == 0
    engine.dispose()
    assert repo.git("for-each-ref") == refs
    assert len(list((repo.path / ".git/objects").rglob("*"))) == objects


def test_a_tar_with_links_paths_or_impossible_sizes_is_refused(
    other: tuple[Settings, GitRepo], tmp_path: Path
) -> None:
    theirs, _ = other
    members = {
        "link": tarfile.TarInfo("rows.jsonl"),
        "path": tarfile.TarInfo("../../rows.jsonl"),
        "bomb": tarfile.TarInfo("rows.jsonl"),
        "folder": tarfile.TarInfo("rows.jsonl/"),
    }
    members["link"].type, members["link"].linkname = tarfile.SYMTYPE, "/etc/passwd"
    members["bomb"].size, members["bomb"].mode = 1 << 50, 0o600
    members["folder"].type = tarfile.DIRTYPE
    for name, member in members.items():
        file = tmp_path / f"{name}.tar"
        file.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_240))
        with pytest.raises(ArchiveError, match=r"plain member|is expected|truncated"):
            read_run(theirs, file)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz"):
        pass
    (tmp_path / "zip.tar").write_bytes(buffer.getvalue())
    with pytest.raises(ArchiveError, match=r"truncated|no tar"):
        read_run(theirs, tmp_path / "zip.tar")
