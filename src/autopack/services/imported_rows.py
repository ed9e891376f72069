"""The rows of an imported run: put into the tables, and checked against its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, Final

from ..domain.identifiers import identifier_problem
from ..domain.naming import snapshot_name
from ..domain.printable import one_line
from ..domain.record_text import JsonObject
from ..domain.ruleset import CiRules
from ..gitrepo import is_branch_name
from ..models import Phase, Run, Tier
from ..store import exports as store
from ..store import runs
from ..store.commits import list_commits
from ..store.session import RowSession
from ..views.exports import RunManifest
from .archives import CHUNK, Archive, Member
from .context import AppContext
from .exports import BUNDLE, ROWS
from .imported_commits import Tags, has_few_values
from .phase_reports import report_with_timeline
from .projection import finished_files
from .runs import answer_of
from .verifying import chain_problems

LONGEST_ROW: Final = 256 << 20
MOST_ROW_VALUES: Final = 1_000_000
MOST_LOG_BYTES: Final = 64 << 20  # each is unpacked in memory when it is read
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
_IMPORTED: Final = "it was imported: promote it at the service that built it"


def put_rows(
    context: AppContext, session: RowSession, archive: Archive, manifest: RunManifest
) -> None:
    """Put the archive's rows into the tables. Raises ValueError, and what a wrong row leads to."""
    rows = store.RowImport(session)
    order = list(store.TABLES)
    place = 0
    for line in _read_lines(archive.open(ROWS)):
        if len(line) > MOST_ROW_VALUES and not has_few_values(line, MOST_ROW_VALUES):
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
    while chunk := member.read(CHUNK):
        *lines, last = chunk.split(b"\n")
        for line in lines:
            yield b"".join([*rest, line])
            rest = []
        rest.append(last)
        if len(rest) * CHUNK > LONGEST_ROW:
            raise ValueError(f"a row is longer than {LONGEST_ROW} bytes")
    if any(rest):
        raise ValueError("the last row does not end")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def check_rows(
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
    commits = list_commits(session, run.id)
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
