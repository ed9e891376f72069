"""One run as an archive that another service can show and verify. (docs/backup.md)

An archive may come from anyone. Its members are checked byte for byte, its commits by their ids,
its events by their chain, its record by the offline checker's rules, and its rows by the record.
All of that happens in one transaction and in a quarantine: a refused archive leaves nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy.exc import DBAPIError

from .. import __version__
from ..domain.errors import ConflictError, NotFoundError
from ..domain.identifiers import identifier_problem
from ..domain.naming import (
    RECORD,
    STATEMENT,
    branch_name,
    branch_ref,
    record_folder,
    snapshot_name,
    snapshot_ref,
)
from ..domain.printable import one_line
from ..domain.record_check import check_copied
from ..domain.record_text import JsonObject, RecordClaim
from ..domain.ruleset import CiRules
from ..gitrepo import GitFailedError, is_branch_name
from ..models import Phase, Run, Tier
from ..store import exports as store
from ..store import runs, submissions
from ..store.nodes import Shown
from ..store.session import RowSession
from ..views.exports import ExportAnswer, ImportAnswer, RunManifest
from .archives import Archive, ArchiveError, Member, new_archive, open_archive
from .context import AppContext
from .opening import locked_session
from .phase_reports import report_with_timeline
from .projection import finished_files, roll_forward
from .reading import one_moment
from .runs import answer_of
from .verifying import chain_problems, run_problems

KIND: Final = "autopack-run"
ROWS: Final = "rows.jsonl"
BUNDLE: Final = "commits.bundle"
MEMBERS: Final = (ROWS, RECORD, STATEMENT, BUNDLE)
_CHUNK: Final = 1 << 20
LONGEST_ROW: Final = 256 * _CHUNK
MOST_RECORD_BYTES: Final = 256 << 20
MOST_ROW_VALUES: Final = 1_000_000
MOST_RECORD_VALUES: Final = 10_000_000
MOST_LOG_BYTES: Final = 64 << 20  # each is unpacked in memory when it is read
#: The tags of snapshots: by name, their object and its commit.
Tags = dict[str | None, tuple[str | None, str | None]]
# What rows and record both have of a tier or a phase.
_COMPARED: Final[dict[str, Callable[[Any], object]]] = {
    "name": str,
    "state": str,
    "task_category": str,
    "ci_profile": str,
    "verdict": str,
    "commit": str,
    "snapshot_tag": str,
    "tokens_used": int,
}
_STRING: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
# What rows that Autopack did not write lead to, in the database or in a view of them.
_MISFITS: Final = (
    *(DBAPIError, ValidationError, NotFoundError),
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)
_IMPORTED: Final = "it was imported: promote it at the service that built it"


class NotExportableError(ConflictError):
    """The run is not over, or has no record by which another service could verify it."""

    code = "not_exportable"


class ImportConflictError(ConflictError):
    """A run of that name is here already, with other content."""

    code = "run_exists"


class BaseMissingError(ConflictError):
    """The repository does not have the commit that the run started from."""

    code = "base_missing"


def export_run(context: AppContext, run_id: str, path: Path, revision: str) -> ExportAnswer:
    """Write a run that is over into an archive. Raises NotFoundError, NotExportableError."""
    repository = context.repository
    with one_moment(context) as session:
        run = runs.get_run(session, run_id)
        if run.ended_at is None or run.head_commit == run.work_commit:
            raise NotExportableError(f"run '{run_id}' has no record: it is not over")
        if run.details_removed_at is not None:
            raise NotExportableError(f"run '{run_id}' has no details any more: its branch has them")
        problems = run_problems(repository, session, run)
        if problems:
            raise NotExportableError(f"run '{run_id}' is not whole: {problems[0]}")
        folder = record_folder(run_id)
        refs = [branch_ref(run_id)]
        refs += [snapshot_ref(each.snapshot_tag) for each in run.phases if each.snapshot_tag]
        counted = [0]
        with new_archive(path) as archive:
            archive.add(ROWS, _lines(session, run.id, counted))
            for name in (RECORD, STATEMENT):
                data = repository.read_file(run.head_commit, f"{folder}/{name}")
                archive.add(name, [data or b""])
            archive.add(BUNDLE, repository.bundles.write(refs, without=[run.base_commit]))
            manifest = RunManifest(
                autopack=__version__,
                created_at=datetime.now(UTC),
                revision=revision,
                run_id=run_id,
                base_branch=run.base_branch,
                base_commit=run.base_commit,
                head_commit=run.head_commit,
                event_hash=run.event_hash,
                rows=counted[0],
            )
            archive.finish(manifest.model_dump(mode="json"))
    return ExportAnswer(file=str(path), size_bytes=path.stat().st_size, manifest=manifest)


def _lines(session: RowSession, run_pk: int, counted: list[int]) -> Iterator[bytes]:
    for table, row in store.read_rows(session, run_pk):
        counted[0] += 1
        yield f'{{"table": "{table}", "row": {row}}}\n'.encode()


def import_run(context: AppContext, path: Path, revisions: Collection[str]) -> ImportAnswer:
    """Put a run of another service beside this one's, to be read alone.

    The same archive again changes nothing. `revisions` are those of the schema that this Autopack
    knows. Raises ArchiveError, ImportConflictError, BaseMissingError, RefNameTakenError.
    """
    with open_archive(path, KIND, MEMBERS) as archive:
        manifest = _read_manifest(archive, path, revisions)
        run_id = manifest.run_id
        with locked_session(context, run_id) as session:
            known = runs.find_run_by_any_case(session, run_id)
            if known is not None:
                return _known(known, manifest)
            repository = context.repository
            if not repository.has_commit(manifest.base_commit):
                raise BaseMissingError(
                    f"run '{run_id}' started from {manifest.base_commit} of"
                    f" '{manifest.base_branch}', which {repository.git_dir} does not have: fetch it"
                )
            repository.require_free_ref(branch_ref(run_id))
            repository.require_free_ref(snapshot_ref(branch_name(run_id)))
            record, tags = _check_commits(context, archive, manifest)
            session.commit()
            session.begin_change()
            try:
                _put_rows(context, session, archive, manifest)
                run = runs.get_run(session, run_id)
                _check_rows(session, run, manifest, record, tags)
            except _MISFITS as error:
                session.rollback()
                why = one_line(str(getattr(error, "orig", error)).strip())[:300]
                raise ArchiveError(f"{path}: {ROWS} is not what Autopack writes: {why}") from None
            except BaseException:
                session.rollback()
                raise
            # The same bytes as in the quarantine; no ref names these objects before the commit.
            repository.bundles.read(archive.open(BUNDLE), max_bytes=archive.size(BUNDLE))
            session.commit()
            run = runs.lock_run(session, run_id)
            roll_forward(context, session, run, Shown(0))
            session.commit()
            return ImportAnswer(
                run_id=run_id, state=run.state, head_commit=run.head_commit, is_new=True
            )


def _read_manifest(archive: Archive, path: Path, revisions: Collection[str]) -> RunManifest:
    try:
        manifest = RunManifest.model_validate(archive.manifest)
    except ValidationError as error:
        place = one_line(".".join(map(str, error.errors()[0]["loc"])))
        raise ArchiveError(f"{path}: manifest.json: {place} is wrong") from None
    problem = identifier_problem(manifest.run_id)
    if problem:
        raise ArchiveError(f"{path}: manifest.json: {problem}")
    if manifest.revision not in revisions:
        raise ArchiveError(
            f"{path} has the schema {one_line(manifest.revision)[:80]}, which this Autopack does"
            f" not know: Autopack {one_line(manifest.autopack)[:40]} made it. Update Autopack."
        )
    return manifest


def _known(run: Run, manifest: RunManifest) -> ImportAnswer:
    same = (run.run_id, run.head_commit, run.event_hash) == (
        manifest.run_id,
        manifest.head_commit,
        manifest.event_hash,
    )
    if not same:
        raise ImportConflictError(
            f"there is a run '{run.run_id}' already, whose branch ends at {run.head_commit}; the"
            f" archive's ends at {manifest.head_commit}"
        )
    return ImportAnswer(
        run_id=run.run_id, state=run.state, head_commit=run.head_commit, is_new=False
    )


def _check_commits(
    context: AppContext, archive: Archive, manifest: RunManifest
) -> tuple[JsonObject, Tags]:
    """Check bundle and record in a quarantine; return the record and the tags of snapshots.

    Raises ArchiveError.
    """
    place = f"{manifest.head_commit}:{record_folder(manifest.run_id)}/{RECORD}"
    try:
        with context.repository.quarantine() as quarantine:
            refs = context.repository.bundles.read(
                archive.open(BUNDLE), into=quarantine.environment, max_bytes=archive.size(BUNDLE)
            )
            if refs.pop(branch_ref(manifest.run_id), None) != manifest.head_commit:
                raise ArchiveError(f"{BUNDLE} has no branch at {manifest.head_commit}")
            prefix = snapshot_ref(branch_name(manifest.run_id)) + "/"
            others = [ref for ref in refs if not ref.startswith(prefix)]
            if others:
                raise ArchiveError(
                    f"{BUNDLE} has {one_line(others[0])[:100]}, which is not its run's"
                )
            quarantine.git(
                *("rev-list", "--objects", "--quiet", manifest.head_commit, *refs.values()),
                f"^{manifest.base_commit}",
            )
            tagged = quarantine.git(
                *("cat-file", "--batch-check=%(objectname) %(objecttype)"),
                stdin="".join(f"{oid}^{{commit}}\n" for oid in refs.values()).encode(),
            ).stdout.decode()
            parents = quarantine.git(
                *("rev-list", "--parents", manifest.head_commit, f"^{manifest.base_commit}")
            ).stdout.decode()
            size = int(quarantine.git("cat-file", "-s", place).stdout)
            if size > MOST_RECORD_BYTES:
                raise ArchiveError(f"{RECORD} of the record has {size} bytes")
            data = quarantine.git("cat-file", "blob", place).stdout
            commit = quarantine.git("cat-file", "commit", manifest.head_commit).stdout
    except (GitFailedError, ValueError) as error:
        detail = getattr(error, "detail", str(error))
        raise ArchiveError(f"{BUNDLE} is not whole: {one_line(detail)[:500]}") from None
    if data != archive.open(RECORD).read(MOST_RECORD_BYTES + 1):
        raise ArchiveError(f"{RECORD} is not the one of the last commit")
    if not _has_few_values(data, MOST_RECORD_VALUES):
        raise ArchiveError(f"{RECORD} has more than {MOST_RECORD_VALUES} values")
    claim = RecordClaim(
        run_id=manifest.run_id,
        branch=branch_ref(manifest.run_id).removeprefix("refs/heads/"),
        base_branch=manifest.base_branch,
    )
    message = commit.partition(b"\n\n")[2].decode("utf-8", "replace")
    checked = check_copied(data, message, claim)
    if checked.record is None or checked.reasons:
        raise ArchiveError(f"the record is refused: {one_line(checked.reasons[0])[:500]}")
    chain = [line.split() for line in reversed(parents.splitlines())]
    at = manifest.base_commit
    for commit_id, *its_parents in chain:
        if its_parents != [at]:
            raise ArchiveError(f"the branch is not one line from {manifest.base_commit}")
        at = commit_id
    named = [each["sha"] for each in checked.record["commits"]]
    if [each[0] for each in chain[: len(named)]] != named:
        raise ArchiveError("the branch has other commits than its record names")
    snapshots = [line.split(" ")[0] for line in tagged.splitlines()]
    if not {each[0] for each in chain}.issuperset(snapshots):
        raise ArchiveError(f"{BUNDLE} has a tag of a commit that is not on the branch")
    tags: Tags = {
        ref.removeprefix(snapshot_ref("")): (oid, commit)
        for (ref, oid), commit in zip(refs.items(), snapshots, strict=True)
    }
    return checked.record, tags


def _put_rows(
    context: AppContext, session: RowSession, archive: Archive, manifest: RunManifest
) -> None:
    rows = store.RowImport(session)
    order = list(store.TABLES)
    place = 0
    for line in _read_lines(archive.open(ROWS)):
        if len(line) > MOST_ROW_VALUES and not _has_few_values(line, MOST_ROW_VALUES):
            raise ValueError(f"a row has more than {MOST_ROW_VALUES} values")
        document = json.loads(line, parse_constant=_refuse_constant)
        table, row = document["table"], document["row"]
        if table not in store.TABLES or order.index(table) < place:
            raise ValueError(f"a row of {table} is out of place")
        place = order.index(table)
        given = _replaced(context, table, manifest)
        text = json.dumps(row)
        rows.put(table, text, row, given)


def _replaced(context: AppContext, table: str, manifest: RunManifest) -> dict[str, Any]:
    """Return what the rows say of this service and not of the other."""
    if table == "phases":
        return {"lease_id": None, "pending_submission_id": None}
    if table != "runs":
        return {}
    now = context.now().isoformat()
    return {
        "project_id": context.settings.project_id,
        "run_id": manifest.run_id,
        "head_commit": manifest.head_commit,
        "base_commit": manifest.base_commit,
        "event_hash": manifest.event_hash,
        "mirrored_revision": 0,
        "mirrored_by": context.node_id,
        "is_counted": True,  # figures and budgets are of this service's own runs
        "promotion_eligible_to_main": False,
        "promotion_reasons": [_IMPORTED],
        "imported_at": now,
        "imported_by": context.caller.actor,
        "closed_at": now,
        "closed_by": context.caller.actor,
        "closed_as": "dismissed",
        "details_removed_at": None,
    }


def _read_lines(member: Member) -> Iterator[bytes]:
    rest: list[bytes] = []
    while chunk := member.read(_CHUNK):
        *lines, last = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
        if len(rest) * _CHUNK > LONGEST_ROW:
            raise ValueError(f"a row is longer than {LONGEST_ROW} bytes")
    if any(rest):
        raise ValueError("the last row does not end")


def _has_few_values(text: bytes, most: int) -> bool:
    """Say whether JSON has no more than so many values; as objects they need much more memory."""
    bare = _STRING.sub(b"", text)
    return sum(map(bare.count, (b",", b"[", b"{", b":"))) <= most


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check_rows(
    session: RowSession, run: Run, manifest: RunManifest, record: JsonObject, tags: Tags
) -> None:
    """Check that the rows say what the record says, and can be shown. Raises ValueError."""
    if run.ended_at is None:
        raise ValueError("the run is not over")
    _check_names(session, run, tags)
    problems = chain_problems(session, run)
    if problems:
        raise ValueError(problems[0])
    events = runs.list_events(session, run.id, after=0, limit=None)
    for event in events:
        runs.read_event(event)
        _ = event.told
    hashes = [event.hash for event in events]
    recorded = [each["hash"] for each in record["events"]]
    commits = submissions.list_commits(session, run.id)
    phases = {each["phase_id"]: each for each in record["phases"]}
    tiers = {each["tier_id"]: each for each in record["tiers"]}
    mine = runs.phases_of(run)
    told = [
        ("events", hashes[: len(recorded)] == recorded),
        ("the state", str(run.state) == record["state"]),
        ("the last event", bool(hashes) and hashes[-1] == run.event_hash == manifest.event_hash),
        ("the head", bool(commits) and commits[-1].sha == run.head_commit),
        (
            "commits",
            [each.sha for each in commits][: len(record["commits"])]
            == [each["sha"] for each in record["commits"]],
        ),
        ("phases", phases.keys() == mine.keys()),
        ("tiers", tiers.keys() == {tier.tier_id for tier in run.tiers}),
    ]
    told += [
        (f"phase '{name}'", _is_as(mine[name], phases[name])) for name in phases if name in mine
    ]
    told += [
        (f"tier '{tier.tier_id}'", _is_as(tier, tiers[tier.tier_id]))
        for tier in run.tiers
        if tier.tier_id in tiers
    ]
    wrong = [name for name, is_same in told if not is_same]
    if wrong:
        raise ValueError(f"{one_line(wrong[0])} in the rows differs from the record")
    # Every view of it can be made; after the commit nothing may fail any more.
    CiRules.model_validate(runs.get_strategy(session, run)["ci"])
    runs.read_state(run)
    answer_of(session, run, run.created_at)
    for phase in mine.values():
        report_with_timeline(session, run, phase)
    finished_files(session, run, run.statement_signatures)
    if not store.has_small_logs(session, run.id, MOST_LOG_BYTES):
        raise ValueError(f"a log of CI is damaged, or has more than {MOST_LOG_BYTES} bytes")
    store.leave_counts(session, run.id)


def _check_names(session: RowSession, run: Run, tags: Tags) -> None:
    """Check the names that become names of files and refs. Raises ValueError."""
    phases = runs.phases_of(run).values()
    phase_ids = [phase.phase_id for phase in phases]
    tier_ids = [tier.tier_id for tier in run.tiers]
    for each in (*phase_ids, *tier_ids, run.continues, run.rebases):
        problem = each and identifier_problem(each)
        if problem:
            raise ValueError(problem)
    if any(len({name.lower() for name in ids}) < len(ids) for ids in (phase_ids, tier_ids)):
        raise ValueError("two of its phases or tiers differ in case alone")
    for earlier, at in ((run.continues, run.continued_commit), (run.rebases, run.rebased_commit)):
        known = earlier and runs.find_run_by_any_case(session, earlier)
        if known and known.head_commit != at:
            raise ValueError(f"it stands on run '{earlier}' at {at}, which is another one here")
    if not is_branch_name(run.base_branch):
        raise ValueError(f"{one_line(run.base_branch)[:80]!r} is no name of a branch")
    wanted = {
        phase.snapshot_tag: (phase.snapshot_oid, phase.snapshot_commit)
        for phase in phases
        if phase.snapshot_tag
        and phase.snapshot_tag == snapshot_name(run.run_id, phase.tier_id, phase.phase_id)
    }
    if wanted != tags or len(tags) < sum(phase.snapshot_tag is not None for phase in phases):
        raise ValueError(f"the snapshots of its phases are not those of {BUNDLE}")


def _is_as(row: Phase | Tier, recorded: JsonObject) -> bool:
    """Say whether a row has the values that the record has of it."""
    return all(
        recorded[name] == (None if (value := getattr(row, name)) is None else type_of(value))
        for name, type_of in _COMPARED.items()
        if name in recorded and hasattr(row, name)
    )
