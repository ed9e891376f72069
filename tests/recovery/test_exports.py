"""One run as an archive, shown and verified by another service. (docs/backup.md)"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, text
from tests.conftest import GitRepo, make_git_repo

from autopack.backup import read_run, write_run
from autopack.config import Settings
from autopack.contexts import beside_database, retain
from autopack.database import make_engine
from autopack.domain.errors import AutopackError
from autopack.gitrepo.bundles import Bundles
from autopack.services.archives import ArchiveError, chunks_of, new_archive, open_archive
from autopack.services.exports import KIND, MEMBERS, ROWS, NotExportableError
from autopack.services.imported_rows import MOST_LOG_BYTES
from autopack.services.imports import ImportConflictError

from .forging import write_forged_run
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
        assert re.search(r"^autopack_lagging_runs\S* 0\.0$", there.get("/metrics").text, re.M)
        assert must(there, "/reports/budget_analysis")["total_budget_failures"] == 0
        assert must(there, "/attention")["items"] == []
        assert there.get("/dashboard/runs/done").is_success
        repo.commit({"new.txt": "new\n"})
        for path in ("/runs/done/rebase", "/runs/done/phases/P0/auditor_request"):
            answer = there.post(path, json={})
            assert (answer.status_code, answer.json()["code"]) == (409, "run_imported")
        start(there, "own")
        submit(there, "own", "P0", "own.txt")


def test_an_imported_run_loses_its_details_as_long_after_its_import_as_others_after_their_end(
    settings: Settings,
    archive: Path,
    other: tuple[Settings, GitRepo],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    theirs, repo = other
    write_run(settings, "cancelled", tmp_path / "cancelled.tar")
    for file in (archive, tmp_path / "cancelled.tar"):
        read_run(theirs, file)
    with service(theirs), beside_database(theirs, "test") as context:
        for statement in (
            "UPDATE runs SET ended_at = ended_at - interval '1 year'",  # elsewhere, long ago
            "UPDATE runs SET closed_at = closed_at - interval '91 days' WHERE run_id = 'done'",
        ):
            with context.engine.begin() as connection:
                connection.execute(text(statement))
        found = retain(context, timedelta(days=90))
        assert (found.runs, found.kept_not_settled) == (1, 1)
    assert verified(repo, capsys)["eligible"]
    assert not read_run(theirs, archive).is_new
    with service(theirs) as there:
        assert must(there, "/runs/done")["details"] == "removed"
        assert must(there, "/runs/cancelled")["details"] == "kept"


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
    (in_rows("runs", state="<script>"), 'violates check "ck_runs_state_known"'),
    (in_rows("runs", ended_at=None), "not over"),
    (in_rows("phases", tokens_used=1), "phase 'P0' in the rows differs"),
    (in_rows("phases", run_pk=77), "77"),
    (in_rows("phases", tokens_used=1e400), "Infinity|no number"),
    (in_rows("events", reason="forged"), "the chain of events is broken"),
    (in_rows("events", data=[]), "chain of events|not what Autopack writes"),
    (in_rows("commits", sha="1" * 40), "in the rows differs|unique"),
    (in_rows("patches", wrong=1), "patches has no column wrong"),
    (in_rows("submissions", body=[]), "not what Autopack writes"),
    (in_rows("runs", strategy={}), "not what Autopack writes"),
    (in_rows("runs", strategy={"ci": 7}), "not what Autopack writes"),
    (in_rows("runs", statement_signatures=[1]), "not what Autopack writes"),
    (in_rows("runs", max_duration_minutes=2**53 - 1), "not what Autopack writes"),
    (in_rows("runs", base_branch="../../x"), "is no name of a branch"),
    (in_rows("runs", work_commit="--all"), "work_commit that no service writes"),
    (in_rows("runs", updated_at="infinity"), "not what Autopack writes"),
    (in_rows("runs", created_at="12000-01-01T00:00:00Z"), "not what Autopack writes"),
    (in_rows("runs", cost_reserved_usd="NaN"), "cost_reserved_usd that no service writes"),
    (in_rows("runs", token_cap=-1), "token_cap that no service writes"),
    (in_rows("phases", max_builder_attempts=2**40), "max_builder_attempts that no service writes"),
    (in_rows("phases", approved_dependencies=[None]), "not what Autopack writes"),
    (in_rows("phases", builders=7), "not what Autopack writes"),
    (in_rows("phases", snapshot_tag="autonomous/live/tier-T1/phase-P0"), "snapshots of its phases"),
    (in_rows("phases", snapshot_oid="1" * 40), "snapshots of its phases"),
    (in_rows("phases", snapshot_tag=None), "snapshots of its phases"),
    (in_rows("patches", files_changed="x"), "not what Autopack writes"),
    (in_rows("patches", files_changed=[0] * 1_000_001), "more than 1000000 values"),
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


ITSELF = "the run that is forged"
RUN = f"(SELECT id FROM runs WHERE run_id = '{ITSELF}')"
NO_TERMS = f"UPDATE events SET data = data - 'terms_sha256' WHERE sequence = 1 AND run_pk = {RUN}"


def renamed(kind: str, name: str) -> list[str]:
    """Return what renames a phase or tier everywhere, in a run of before the terms had a sum."""
    of_phase = f"UPDATE phases SET {kind}_id = '{name}' WHERE run_pk = {RUN}"
    of_tier = f"UPDATE tiers SET tier_id = '{name}' WHERE run_pk = {RUN}"
    of_events = (
        f"UPDATE events SET {kind}_id = '{name}' WHERE {kind}_id IS NOT NULL AND run_pk = {RUN}"
    )
    return [NO_TERMS, of_phase, of_events, *([of_tier] if kind == "tier" else [])]


def standing_on(kind: str, earlier: str) -> list[str]:
    """Return what lets a run continue or rebase another one, by its events too."""
    commit = {"continues": "continued_commit", "rebases": "rebased_commit"}[kind]
    data = f"jsonb_build_object('{kind}', '{earlier}', '{commit}', data->>'base_commit')"
    return [
        f"UPDATE runs SET {kind} = '{earlier}', {commit} = base_commit WHERE id = {RUN}",
        f"UPDATE events SET data = data || {data} WHERE sequence = 1 AND run_pk = {RUN}",
    ]


LOG = (
    "INSERT INTO ci_runs (run_pk, phase_pk, commit_sha, profile, attempt, is_flaky, requested_at,"
    " ended_at, verdict) SELECT run_pk, id, repeat('a', 40), 'normal', 1, false, now(), now(),"
    f" 'green' FROM phases WHERE run_pk = {RUN}"
)
HISTORIES: list[tuple[list[str], str]] = [
    (renamed("phase", "../../../../x"), "is not an identifier"),
    (renamed("phase", "a/b"), "is not an identifier"),
    (renamed("phase", "x" * 65), "is not an identifier"),
    (renamed("tier", "a/../../b"), "is not an identifier"),
    (standing_on("continues", ITSELF), "which is another one here"),
    (standing_on("rebases", ITSELF), "which is another one here"),
    (standing_on("continues", "own"), "which is another one here"),
    (standing_on("continues", "../x"), "is not an identifier"),
    (
        [LOG, f"INSERT INTO ci_logs SELECT id, :log FROM ci_runs WHERE run_pk = {RUN}"],
        "a log of CI",
    ),
]


def test_a_forged_history_whose_sums_all_fit_is_refused_and_leaves_nothing(
    settings: Settings, git_repo: GitRepo, other: tuple[Settings, GitRepo], tmp_path: Path
) -> None:
    forged = {f"forged-{number}": history for number, history in enumerate(HISTORIES)}
    with service(settings) as client:
        for run_id in forged:
            start(client, run_id)
            submit(client, run_id, "P0", f"{run_id}.txt")
    theirs, repo = other
    with service(theirs) as client:
        start(client, "own")
        submit(client, "own", "P0", "own.txt")
    refs = repo.git("for-each-ref")
    log = zlib.compress(bytes(MOST_LOG_BYTES + 1))
    for run_id, (statements, words) in forged.items():
        told = [statement.replace(ITSELF, run_id) for statement in statements]

        def change(connection: Connection, told: list[str] = told) -> None:
            for statement in told:
                connection.execute(text(statement), {"log": log} if ":log" in statement else {})

        file = write_forged_run(settings, git_repo, run_id, tmp_path / f"{run_id}.tar", change)
        with pytest.raises(ArchiveError, match=words):
            read_run(theirs, file)
        assert repo.git("for-each-ref") == refs, run_id
        assert not (theirs.autonomous_runs_dir / run_id).exists()
    with service(theirs) as client:
        assert [run["run_id"] for run in must(client, "/runs")["runs"]] == ["own"]


def test_a_bundle_with_refs_of_other_names_is_refused(
    settings: Settings,
    git_repo: GitRepo,
    archive: Path,
    other: tuple[Settings, GitRepo],
    tmp_path: Path,
) -> None:
    theirs, repo = other
    base = git_repo.git("rev-parse", "main")
    git_repo.git("tag", "v1.0", "autonomous/done")
    for ref in ("refs/tags/v1.0", "refs/tags/autonomous/live/tier-T1/phase-P0"):
        bundle = tmp_path / f"{ref.rpartition('/')[2]}.bundle"
        git_repo.git(*("bundle", "create", str(bundle), "autonomous/done", ref, f"^{base}"))
        file = bundle.with_suffix(".tar")
        with open_archive(archive, KIND, MEMBERS) as whole, new_archive(file) as made:
            for name in MEMBERS[:-1]:
                made.add(name, chunks_of(whole.open(name)))
            made.add(MEMBERS[-1], [bundle.read_bytes()])
            made.finish(whole.manifest)
        with pytest.raises(ArchiveError, match=f"{ref}, which is not its run's"):
            read_run(theirs, file)
    assert "v1.0" not in repo.git("tag")


def test_a_bundle_of_which_git_says_much_is_read_to_its_end(git_repo: GitRepo) -> None:
    """git waits for a reader of its warnings, here of 300 kB, before it reads on."""
    blob = git_repo.git("hash-object", "-w", "--stdin", stdin=b"x")
    trees = []
    for number in range(3_000):
        tree = b"100664 n%d\0" % number + bytes.fromhex(blob)  # a mode that it finds odd
        raw = b"tree %d\0" % len(tree) + tree
        trees.append(hashlib.sha1(raw, usedforsecurity=False).hexdigest())
        place = git_repo.path / ".git/objects" / trees[-1][:2] / trees[-1][2:]
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(zlib.compress(raw, 1))
    names = "\n".join([blob, *trees]).encode()
    git = ["git", "-C", str(git_repo.path), "pack-objects", "--stdout", "-q"]
    pack = subprocess.run(git, input=names, capture_output=True, check=True).stdout
    header = f"# v2 git bundle\n{trees[0]} refs/heads/autonomous/x\n\n".encode()
    executable = shutil.which("git")
    assert executable is not None
    bundles = Bundles(git_repo.path / ".git", executable)
    found = bundles.read(io.BytesIO(header + pack), max_bytes=len(pack))
    assert found == {"refs/heads/autonomous/x": trees[0]}


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
    os.mkfifo(tmp_path / "pipe.tar")
    for name in ("pipe.tar", "."):
        with pytest.raises(ArchiveError, match="is not a file"):
            read_run(theirs, tmp_path / name)
