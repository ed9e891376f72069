"""What the record of a finished run must satisfy: the one check of `run.json`. (rules §8)

`autopack verify`, `GET /runs/{run_id}/promotion` and `scripts/check_promotion.py` call
`check_record`. It trusts nothing in the record: its shape, the seal of its commit, the chain of
its events. Then the events make the run anew by `evolve`, and what comes of that is compared with
what the record claims, and judged by `judge_promotion`. What git holds beside it is for `checker/`.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .events import PatchReplayed
from .naming import branch_name
from .outcomes import CommitKind
from .record_replay import Replay
from .record_text import (
    Findings,
    JsonObject,
    RecordError,
    RecordSubject,
    check_chain,
    read_record,
    show,
)
from .states import PhaseStatus
from .terms import CiProfile


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRecord:
    """What came of a record. `record` is None where it could not be read as one of this run."""

    record: JsonObject | None
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]


def check_record(data: bytes, message: str, subject: RecordSubject) -> CheckedRecord:
    """Return every reason against a record, and what to look at; no reason: it may be promoted.

    `data` is `run.json`, `message` that of the commit which holds it. Raises nothing.
    """
    return _checked(data, message, subject, Replay.run)


def check_copied(data: bytes, message: str, subject: RecordSubject) -> CheckedRecord:
    """Return every reason why a record is not what a service wrote: its seal, chain and replay.

    Says nothing about promotion, so a record of a failed run may be whole. Raises nothing.
    """
    return _checked(data, message, subject, Replay.follow)


def check_continued(data: bytes, message: str, record: JsonObject) -> CheckedRecord:
    """Check the record of the failed run that `record` continues. (rules §2.5)

    Its complete phases must satisfy what a promoted run's must, and `record` must start where the
    last of them ended. Raises nothing.
    """
    run_id = str(record["continues"])
    subject = RecordSubject(
        run_id=run_id, branch=branch_name(run_id), base_branch=record["base_branch"]
    )
    return _checked(data, message, subject, Replay.run, continued_at=record["base_commit"])


def check_rebased(data: bytes, message: str, record: JsonObject) -> CheckedRecord:
    """Check the record of the run whose commits `record` makes again. (rules §8.1)

    It must satisfy all that is asked of a run that is promoted itself. Raises nothing.
    """
    run_id = str(record["rebases"])
    subject = RecordSubject(
        run_id=run_id, branch=branch_name(run_id), base_branch=record["base_branch"]
    )
    return check_record(data, message, subject)


def _checked(
    data: bytes,
    message: str,
    subject: RecordSubject,
    check: Callable[[Replay], object],
    *,
    continued_at: str | None = None,
) -> CheckedRecord:
    findings = Findings()
    record: JsonObject | None = None
    try:
        record = read_record(findings, data, message, subject)
        check_chain(findings, record["events"])
        check(Replay(findings, record, continued_at=continued_at))
    except RecordError as refused:
        findings.reasons.append(str(refused))
    return CheckedRecord(
        record=record, reasons=tuple(findings.reasons), warnings=tuple(findings.warnings)
    )


def rebase_reasons(record: JsonObject, earlier: Iterable[JsonObject]) -> tuple[str, ...]:
    """Compare the commits that a rebased run makes again with those of the earlier records.

    `earlier` are the records of the run that is rebased and of those that it continues, oldest
    first.
    """
    records = [*earlier]
    wanted = [commit for each in records for commit in accepted_commits(each)]
    made = [
        event["data"].get("original")
        for event in record["events"]
        if event["kind"] == PatchReplayed.__name__
    ]
    if made == wanted:
        return _leniency(record, records)
    left = [commit for commit in wanted if commit not in made]
    more = [commit for commit in made if commit not in wanted]
    if left:
        return (f"commit {show(left[0])} of the rebased run is not made again",)
    if more:
        return (f"commit {show(more[0])} is made again, and no complete phase has it",)
    return ("the commits of the rebased run are made again in another order",)


def _leniency(record: JsonObject, earlier: Iterable[JsonObject]) -> tuple[str, ...]:
    """Expect strict CI where a phase of the rebased run had it. (rules §8.1)"""
    was_strict = any(
        phase["ci_profile"] == CiProfile.STRICT for each in earlier for phase in each["phases"]
    )
    lenient = [
        phase["phase_id"] for phase in record["phases"] if phase["ci_profile"] != CiProfile.STRICT
    ]
    if not was_strict or not lenient:
        return ()
    return (f"phase '{show(lenient[0])}' is not strict, and a phase of the rebased run was",)


def accepted_commits(record: JsonObject) -> list[str]:
    """Return the commits that hold the patches of a record's complete phases, in order."""
    complete = {
        phase["phase_id"] for phase in record["phases"] if phase["state"] == PhaseStatus.COMPLETE
    }
    return [
        each["sha"]
        for each in record["commits"]
        if each["kind"] in (CommitKind.PATCH, CommitKind.REPLAY) and each["phase_id"] in complete
    ]
