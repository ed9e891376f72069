"""The result that a merge of a run's branch with today's base branch would have.

The run's own eligibility was decided at its end, and stays in the record; a rehearsal is about
today, and may only be stricter (rules §8).

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from .listing import listed

MAX_NAMED_FILES: Final = 10
# The first with `merge-tree --write-tree`, which merges in memory.
OLDEST_GIT: Final = (2, 38)
GIT_NEEDED: Final = "git {}.{} or newer".format(*OLDEST_GIT)


class RehearsalResult(StrEnum):
    CLEAN = "clean"  # it merges; the base branch may have new commits
    CONFLICT = "conflict"  # both sides changed `files`
    BEHIND = "behind"  # the base branch has lost the commit that the run started from


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsal:
    """A merge with today's base branch, in memory. `files` are those in conflict."""

    result: RehearsalResult
    base_branch: str
    base_commit: str
    files: tuple[str, ...]


def rehearsal_reasons(rehearsal: Rehearsal, started_from: str) -> tuple[str, ...]:
    """Return the reasons against a merge today; `started_from` is the run's base commit."""
    where = f"{rehearsal.base_branch} at {rehearsal.base_commit[:7]}"
    match rehearsal.result:
        case RehearsalResult.CLEAN:
            return ()
        case RehearsalResult.BEHIND:
            return (
                f"the run started from {started_from}, which is not in the history of "
                f"'{rehearsal.base_branch}' (any more)",
            )
        case RehearsalResult.CONFLICT:
            files = listed(rehearsal.files, MAX_NAMED_FILES)
            return (f"does not merge with {where}: {files}",)


def missing_branch(branch: str, *, is_base: bool = False) -> str:
    """Say that there is no such branch to rehearse a merge of, or with."""
    return f"there is no {'base ' if is_base else ''}branch '{branch}'"


def missing_record(branch: str, run_id: str) -> str:
    """Say that a branch does not end in the record of its run."""
    return (
        f"the head of '{branch}' holds no record of run '{run_id}': the run is not over, or was not"
        " recorded"
    )
