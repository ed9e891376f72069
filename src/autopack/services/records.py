"""The record at the end of a run's branch, checked by the offline checker's rules."""

from __future__ import annotations

from ..domain.errors import UnavailableError
from ..domain.naming import RECORD, record_folder
from ..domain.promotion import PromotionVerdict
from ..domain.record_check import JsonObject, RecordClaim, check_continued, check_record
from ..gitrepo import Repository
from ..models import Run


def recorded_verdict(repository: Repository, run: Run) -> PromotionVerdict:
    """Return the verdict on the record in a run's last commit; refuse one that cannot be read.

    Reads two objects of git, in-process. The commit's id, which is in the run's row, covers the
    files beside `run.json`; `rehearse` checks that the branch exists.
    """
    claim = RecordClaim(run_id=run.run_id, branch=run.branch, base_branch=run.base_branch)
    path = f"{record_folder(run.run_id)}/{RECORD}"
    try:
        data = repository.read_file(run.head_commit, path)
        message = repository.message_of(run.head_commit)
    except UnavailableError as error:
        return PromotionVerdict((f"the record cannot be read: {error.detail}",), ())
    if data is None:
        return PromotionVerdict((f"the record has no {RECORD}",), ())
    checked = check_record(data, message, claim)
    reasons = checked.reasons
    if run.trunk_commit is not None and checked.record is not None:
        reasons += _continued_reasons(repository, checked.record)
    return PromotionVerdict(reasons, checked.warnings)


def _continued_reasons(repository: Repository, record: JsonObject) -> tuple[str, ...]:
    """Check the records of the failed runs that a run continues. (rules §2.5)"""
    reasons: list[str] = []
    later: JsonObject | None = record
    while later is not None and (commit := later.get("continued_commit")) is not None:
        run_id = later["continues"]
        path = f"{record_folder(run_id)}/{RECORD}"
        try:
            data = repository.read_file(commit, path)
            message = repository.message_of(commit)
        except UnavailableError as error:
            return (*reasons, f"the record of run '{run_id}' cannot be read: {error.detail}")
        checked = check_continued(data or b"", message, later)
        what = f"run '{run_id}', which this one continues: "
        reasons += [what + reason for reason in checked.reasons]
        later = checked.record
    return tuple(reasons)
