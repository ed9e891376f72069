"""Whether everything that is kept of a run fits together. (docs/backup.md)"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from ..domain.errors import UnavailableError
from ..domain.events import GENESIS_HASH, seal
from ..domain.naming import RECORD, branch_ref, record_folder, record_seals
from ..domain.record_text import RecordError, parse_json
from ..domain.run import FailureCode
from ..gitrepo import Repository
from ..models import Run
from ..store import runs
from ..store.session import RowSession

_SHORT: Final = 12


class RecordDamagedError(UnavailableError):
    """The record in a run's last commit is missing, or is not what the commit says."""

    code = "record_damaged"


def run_problems(repository: Repository, session: RowSession, run: Run) -> list[str]:
    """Return what does not fit in a run: its events' chain, its branch, its objects, its record.

    Says nothing about promotion: the rules of that are `check_record`'s.
    """
    problems = [] if run.details_removed_at else chain_problems(session, run)
    if run.failure_code is FailureCode.BRANCH_MOVED:
        return problems  # another process moved the branch, so nothing is recorded about it
    found = repository.read_ref(branch_ref(run.run_id))
    if found is not None and found != run.head_commit:
        problems.append(
            f"{run.branch} is at {found[:_SHORT]}, recorded is {run.head_commit[:_SHORT]}"
        )
    elif found is not None and not repository.has_objects([found], since=run.base_commit):
        problems.append(f"objects of {run.branch} are missing")
    if found is not None and run.has_record:
        problems += _record_problems(repository, session, run)
    return problems


def chain_problems(session: RowSession, run: Run) -> list[str]:
    """Return where the chain of a run's events is broken."""
    last, number = GENESIS_HASH, 0
    for number, row in enumerate(runs.list_events(session, run.id, after=0, limit=None), 1):
        (sealed,) = seal((runs.read_event(row),), number - 1, last)
        if (row.sequence, row.previous_hash, row.hash) != (number, last, sealed.hash):
            return [f"the chain of events is broken at event {number}"]
        last = sealed.hash
    if (number, last) != (run.event_sequence, run.event_hash):
        return [f"the run has {run.event_sequence} events, and {number} are here"]
    return []


def _record_problems(repository: Repository, session: RowSession, run: Run) -> list[str]:
    """Check that the record in the branch's last commit is sealed, and is of these events."""
    try:
        end = recorded_end(repository, run)
    except RecordDamagedError as error:
        return [error.detail]
    known = runs.list_events(session, run.id, after=end.sequence - 1, limit=1)
    if [event.hash for event in known] != [end.hash]:
        return [f"the record ends with event {end.sequence}, which is another one here"]
    return []


@dataclass(frozen=True, slots=True)
class RecordedEnd:
    """The last event that a record has."""

    sequence: int
    hash: str


def recorded_end(repository: Repository, run: Run) -> RecordedEnd:
    """Return the last event of the record in a run's last commit, which must be sealed.

    Reads three objects of git, in-process. Raises RecordDamagedError.
    """
    try:
        data = repository.read_file(run.head_commit, f"{record_folder(run.run_id)}/{RECORD}")
        seals = record_seals(repository.message_of(run.head_commit))
        last = parse_json(data or b"")["events"][-1]
        end = RecordedEnd(int(last["sequence"]), str(last["hash"]))
    except UnavailableError as error:
        raise RecordDamagedError(f"the record cannot be read: {error.detail}") from error
    except (RecordError, ValueError, LookupError, TypeError, RecursionError):
        raise RecordDamagedError(f"{RECORD} of the record cannot be read") from None
    if seals != [hashlib.sha256(data or b"").hexdigest()]:
        raise RecordDamagedError(f"{RECORD} is not the one that the record's commit names")
    return end
