"""What happens to a patch that does not fit the head: merged, known already, or a repair ticket."""

from __future__ import annotations

from .errors import PatchAlreadyAppliedError, PatchConflictError
from .quarantine import Quarantine
from .scan import ScannedPatch
from .threeway import merge
from .ticket import write_ticket

_MOST_NAMED = 5


def resolve(
    quarantine: Quarantine,
    head: str,
    scanned: ScannedPatch,
    git_reason: str,
    base_commit: str | None,
) -> str:
    """Find the tree that a patch makes of a head which it does not fit as it stands (04).

    The tree is in quarantine; it equals the head's own where the branch has all of the patch.

    Raises PatchConflictError with the repair ticket, so that one more try is enough, or
    PatchAlreadyAppliedError.
    """
    merged = merge(quarantine, head, scanned, base_commit)
    if merged.tree is not None:
        return merged.tree
    ticket = write_ticket(quarantine, head, scanned.files)
    if ticket.is_already_applied:
        raise PatchAlreadyAppliedError("The branch holds all that this patch changes already.")
    named = ticket.refused[:_MOST_NAMED] or [git_reason]
    left = len(ticket.refused) - len(named)
    raise PatchConflictError(
        f"The patch does not apply to {head}. {' '.join(named)}"
        + (f" And {left} more files." if left > 0 else "")
        + " Make the next try from that commit; `files` says what stands there.",
        head=head,
        base=merged.base,
        merge_problems=list(merged.problems),
        git_reason=git_reason,
        files=ticket.files,
        omitted_files=ticket.omitted_files,
    )
