"""A patch that does not apply to the head: it is merged, already there, or gets a repair ticket."""

from __future__ import annotations

from ..config import Settings
from .apply import RefusedError, Resolution, apply_to_tree
from .errors import PatchAlreadyAppliedError, PatchConflictError
from .fit import fit_to_head
from .head import HeadFiles
from .patch import ScannedPatch
from .quarantine import Quarantine
from .threeway import merge, tree_of
from .ticket import write_ticket

_MAX_NAMED = 5


def resolve(
    quarantine: Quarantine,
    head: str,
    scanned: ScannedPatch,
    git_reason: str,
    base_commit: str | None,
    limits: Settings,
) -> Resolution:
    """Return the tree that a patch makes of a head that it does not apply to directly.

    The tree is in quarantine; it equals the head's own tree if the branch has all of the patch.

    Raises PatchConflictError with the repair ticket, so that one more try is enough, or
    PatchAlreadyAppliedError.
    """
    merged = merge(quarantine, head, scanned, base_commit)
    if merged.tree is not None:
        return Resolution(merged.tree, is_merged=True)
    fitted = _fit(quarantine, head, scanned, limits)
    if fitted is not None:
        return fitted
    ticket = write_ticket(quarantine, head, scanned.files)
    if ticket.is_already_applied:
        raise PatchAlreadyAppliedError("The branch has all changes of this patch already.")
    named = ticket.refused[:_MAX_NAMED] or [git_reason]
    left = len(ticket.refused) - len(named)
    raise PatchConflictError(
        f"The patch does not apply to {head}. {' '.join(named).removesuffix('.')}."
        + (f" And {left} more files." if left > 0 else "")
        + " Make the next try from that commit; `files` shows what is there.",
        head=head,
        base=merged.base,
        merge_problems=list(merged.problems),
        git_reason=git_reason,
        files=ticket.files,
        omitted_files=ticket.omitted_files,
    )


def _fit(
    quarantine: Quarantine, head: str, scanned: ScannedPatch, limits: Settings
) -> Resolution | None:
    tree = tree_of(quarantine, head)
    fitted = fit_to_head(scanned, HeadFiles(quarantine, tree), limits)
    if fitted is None:
        return None
    try:
        _, result = apply_to_tree(quarantine, fitted, tree)
    except RefusedError:
        return None
    root, trees = result.write()
    quarantine.store(trees)
    return Resolution(root, is_merged=False, repairs=fitted.repairs)
