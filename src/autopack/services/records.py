"""The record at the end of a run's branch, checked as the offline checker checks it."""

from __future__ import annotations

from ..domain.errors import UnavailableError
from ..domain.naming import RECORD, record_folder
from ..domain.promotion import PromotionVerdict
from ..domain.record_check import RecordClaim, check_record
from ..gitrepo import Repository
from ..models import Run


def recorded_verdict(repository: Repository, run: Run) -> PromotionVerdict:
    """Say what the record in a run's last commit comes to; one that cannot be read is refused.

    Reads two objects of git, in-process. What stands beside `run.json` is pinned by the commit's
    id, which the run's row holds; that the branch is there, `rehearse` sees.
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
    return PromotionVerdict(checked.reasons, checked.warnings)
