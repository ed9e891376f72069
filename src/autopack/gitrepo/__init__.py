"""The only code that runs git. Input is a patch, output a commit or a refusal."""

from .apply import ApplicablePatch, ChangeSet, PolicyCheck
from .errors import (
    BranchCheckedOutError,
    CommitMissingError,
    GitFailedError,
    GitTimeoutError,
    PatchAlreadyAppliedError,
    PatchConflictError,
    PatchEmptyError,
    PatchMalformedError,
    PatchPolicyError,
    PatchTooLargeError,
    PushFailedError,
    PushInterruptedError,
    RefLockedError,
    RefMovedError,
    RefNameTakenError,
    RemoteMovedError,
    RepositoryUnusableError,
)
from .history import GainedCommits
from .node import Generations, NodeIdentity, renew_home
from .objects import CollisionError
from .push import Remote
from .rebase import RebaseConflict, RebasedCommit
from .refs import PreparedRefs, RecordedRef, RefUpdate, is_branch_name
from .remaking import Remaking, StoredCommit, StoredTag
from .repository import Base, DiffStat, MergeResult, Repository

__all__ = [
    "ApplicablePatch",
    "Base",
    "BranchCheckedOutError",
    "ChangeSet",
    "CollisionError",
    "CommitMissingError",
    "DiffStat",
    "GainedCommits",
    "Generations",
    "GitFailedError",
    "GitTimeoutError",
    "MergeResult",
    "NodeIdentity",
    "PatchAlreadyAppliedError",
    "PatchConflictError",
    "PatchEmptyError",
    "PatchMalformedError",
    "PatchPolicyError",
    "PatchTooLargeError",
    "PolicyCheck",
    "PreparedRefs",
    "PushFailedError",
    "PushInterruptedError",
    "RebaseConflict",
    "RebasedCommit",
    "RecordedRef",
    "RefLockedError",
    "RefMovedError",
    "RefNameTakenError",
    "RefUpdate",
    "Remaking",
    "Remote",
    "RemoteMovedError",
    "Repository",
    "RepositoryUnusableError",
    "StoredCommit",
    "StoredTag",
    "is_branch_name",
    "renew_home",
]
