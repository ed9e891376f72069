"""PIPE to git: the only code that runs it. A patch goes in, a commit or a refusal comes out."""

from .apply import AppliedPatch, ChangeSet, Judge, enforce
from .errors import (
    BranchCheckedOutError,
    GitFailedError,
    GitTimeoutError,
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
    PatchTooLargeError,
    RefLockedError,
    RefMovedError,
    RefNameTakenError,
    RepositoryUnusableError,
)
from .refs import PreparedRefs, RefUpdate
from .repository import Base, DiffStat, MergeResult, Repository

__all__ = [
    "AppliedPatch",
    "Base",
    "BranchCheckedOutError",
    "ChangeSet",
    "DiffStat",
    "GitFailedError",
    "GitTimeoutError",
    "Judge",
    "MergeResult",
    "PatchAlreadyAppliedError",
    "PatchConflictError",
    "PatchEmptyError",
    "PatchMalformedError",
    "PatchPolicyError",
    "PatchTooLargeError",
    "PreparedRefs",
    "RefLockedError",
    "RefMovedError",
    "RefNameTakenError",
    "RefUpdate",
    "Repository",
    "RepositoryUnusableError",
    "enforce",
]
