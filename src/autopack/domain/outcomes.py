"""The closed sets of results of agents' work."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """What the service did with a submission."""

    APPLIED = "applied"
    HELD = "held"  # its patch is pending
    EMPTY = "empty"
    FAILED = "failed"
    CONFLICT = "conflict"
    REFUSED = "refused"
    OVER_BUDGET = "over_budget"
    APPROVED = "approved"
    REVISED = "revised"
    ESCALATED = "escalated"
    ADVISORY = "advisory"
    UNAVAILABLE = "unavailable"


class PatchStatus(StrEnum):
    """What was done with a patch when it came; it is stored, so of a pending patch too."""

    APPLIED = "applied"
    PENDING = "pending"
    REFUSED = "refused"


class PatchOutcome(StrEnum):
    """The later state of a patch. It follows from commits and phases, and is not stored."""

    APPLIED = "applied"
    PENDING = "pending"
    DISCARDED = "discarded"
    REFUSED = "refused"


class CommitKind(StrEnum):
    """Why a commit was made on the branch."""

    PATCH = "patch"
    REPLAY = "replay"  # a commit of another run, made again on another base
    UNDO = "undo"
    ROLLBACK = "rollback"
    RECORD = "record"
