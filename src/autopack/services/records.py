"""The record at the end of a run's branch, checked by the offline checker's rules."""

from __future__ import annotations

from collections.abc import Callable

from ..domain.errors import UnavailableError
from ..domain.naming import RECORD, record_folder
from ..domain.promotion import PromotionVerdict
from ..domain.record_check import (
    CheckedRecord,
    check_continued,
    check_rebased,
    check_record,
    rebase_reasons,
)
from ..domain.record_text import JsonObject, RecordSubject
from ..gitrepo import Repository
from ..models import Run


def recorded_verdict(repository: Repository, run: Run) -> PromotionVerdict:
    """Return the verdict on the record in a run's last commit; refuse one that cannot be read.

    Reads two objects of git, in-process. The commit's id, which is in the run's row, covers the
    files beside `run.json`; `rehearse` checks that the branch exists.
    """
    subject = RecordSubject(run_id=run.run_id, branch=run.branch, base_branch=run.base_branch)
    path = f"{record_folder(run.run_id)}/{RECORD}"
    try:
        data = repository.read_file(run.head_commit, path)
        message = repository.message_of(run.head_commit)
    except UnavailableError as error:
        return PromotionVerdict((f"the record cannot be read: {error.detail}",), ())
    if data is None:
        return PromotionVerdict((f"the record has no {RECORD}",), ())
    checked = check_record(data, message, subject)
    reasons = checked.reasons
    if run.trunk_commit is not None and checked.record is not None:
        reasons += _Earlier(repository).continued(checked.record)
    if checked.record is not None and checked.record.get("rebases") is not None:
        reasons += _Earlier(repository).rebased(checked.record)
    return PromotionVerdict(reasons, checked.warnings)


class _Earlier:
    """The records of earlier runs that a record names."""

    def __init__(self, repository: Repository) -> None:
        self.repository = repository
        self.continued_records: list[JsonObject] = []  # newest first

    def continued(self, record: JsonObject) -> tuple[str, ...]:
        """Check the records of the failed runs that a run continues. (rules §2.5)"""
        reasons: list[str] = []
        later: JsonObject | None = record
        while later is not None and later.get("continued_commit") is not None:
            what = f"run '{later['continues']}', which this one continues: "
            found, later = self._check(later, "continues", "continued_commit", check_continued)
            reasons += [what + reason for reason in found]
            if later is not None:
                self.continued_records.append(later)
        return tuple(reasons)

    def rebased(self, record: JsonObject) -> tuple[str, ...]:
        """Check the record of the run that a run rebases, and its commits. (rules §8.1)"""
        found, earlier = self._check(record, "rebases", "rebased_commit", check_rebased)
        if earlier is not None:
            found += self.continued(earlier)
            if earlier.get("rebases") is not None:
                found += _Earlier(self.repository).rebased(earlier)
        what = f"run '{record['rebases']}', which this one rebases: "
        reasons = tuple(what + reason for reason in found)
        if earlier is not None:
            reasons += rebase_reasons(record, [*reversed(self.continued_records), earlier])
        return reasons

    def _check(
        self,
        later: JsonObject,
        name: str,
        commit_name: str,
        check: Callable[[bytes, str, JsonObject], CheckedRecord],
    ) -> tuple[tuple[str, ...], JsonObject | None]:
        run_id, commit = later[name], str(later[commit_name])
        try:
            data = self.repository.read_file(commit, f"{record_folder(run_id)}/{RECORD}")
            message = self.repository.message_of(commit)
        except UnavailableError as error:
            return (f"the record cannot be read: {error.detail}",), None
        checked = check(data or b"", message, later)
        return checked.reasons, checked.record
