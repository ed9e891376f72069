"""What git can refuse, one type for each reason, so that callers can tell them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from ..domain.changes import Violation
from ..domain.errors import ConflictError, InvalidError, TooLargeError, UnavailableError


class PatchMalformedError(InvalidError):
    """The text is not a patch that git can read; `line` is the first wrong line."""

    code: ClassVar[str] = "patch_malformed"

    def __init__(self, detail: str, *, line: int | None = None, **extra: object) -> None:
        if line is not None:
            extra["line"] = line
        super().__init__(detail, **extra)
        self.line = line


class PatchTooLargeError(TooLargeError):
    """The patch, or its unpacked content, passes a limit."""

    code: ClassVar[str] = "patch_too_large"


class PatchEmptyError(InvalidError):
    """The patch has no change, so there is nothing to commit."""

    code: ClassVar[str] = "patch_empty"


class PatchAlreadyAppliedError(ConflictError):
    """The branch has this change already."""

    code: ClassVar[str] = "patch_already_applied"


class PatchConflictError(ConflictError):
    """The patch is well formed but does not apply to the head; `extra` has the repair ticket."""

    code: ClassVar[str] = "patch_conflict"


class PatchPolicyError(InvalidError):
    """The path policy refuses the change; `violations` names each file and rule."""

    code: ClassVar[str] = "patch_policy"
    most_named: ClassVar[int] = 100

    def __init__(self, violations: Sequence[Violation]) -> None:
        first, *more = violations
        also = f" (and {len(more)} more)" if more else ""
        super().__init__(
            f"{first.path} {first.detail}{also}.",
            violations=[asdict(each) for each in violations[: self.most_named]],
        )
        self.violations = tuple(violations)


class RefMovedError(ConflictError):
    """A ref is not at its recorded commit: another process moved it, so it is not overwritten."""

    code: ClassVar[str] = "branch_moved"

    def __init__(self, ref: str, expected: str | None, actual: str | None) -> None:
        super().__init__(
            f"{ref} is at {actual or 'no commit'} and not at {expected or 'no commit'},"
            " where Autopack left it: another process moved it, so Autopack does not touch it.",
            ref=ref,
            expected=expected,
            actual=actual,
        )
        self.ref = ref
        self.expected = expected
        self.actual = actual


class RefNameTakenError(ConflictError):
    """A ref cannot be created because another ref has its name, or a name within it."""

    code: ClassVar[str] = "branch_exists"

    def __init__(self, ref: str, taken_by: str) -> None:
        super().__init__(
            f"{ref} cannot be created: {taken_by} is there already."
            " Rename or delete that one, or choose another id.",
            ref=ref,
            taken_by=taken_by,
        )
        self.ref = ref
        self.taken_by = taken_by


class BranchCheckedOutError(ConflictError):
    """A work tree has the run's branch checked out; moving the ref would make it look changed."""

    code: ClassVar[str] = "branch_checked_out"


class RefLockedError(UnavailableError):
    """Another git process has the ref's lock; the same request may succeed a moment later."""

    code: ClassVar[str] = "branch_locked"


class RemoteMovedError(ConflictError):
    """A branch or tag on the remote is not at a recorded commit, so it is not overwritten."""

    code: ClassVar[str] = "remote_moved"

    def __init__(self, ref: str, url: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"{ref} is at {actual} on {url}, where Autopack never put it: another process moved it,"
            f" so Autopack does not touch it. Move it back or delete it there;"
            f" then it is set to {expected}.",
            ref=ref,
            expected=expected,
            actual=actual,
        )


class PushFailedError(UnavailableError):
    """The remote refused a push; the detail is its own message, without secrets."""

    code: ClassVar[str] = "push_failed"


class PushInterruptedError(UnavailableError):
    """The service is stopping and ended the push; the next service to start repeats it."""

    code: ClassVar[str] = "push_interrupted"


class RepositoryUnusableError(UnavailableError):
    """The repository is missing, or of a kind that is not supported; the detail says what to do."""

    code: ClassVar[str] = "repository_unusable"


class CommitMissingError(RepositoryUnusableError):
    """This node's clone lacks a commit, and its remote does not give it either; `commit` names it.

    Another node may have the commit.
    """

    code: ClassVar[str] = "commit_missing"


class StorageError(RepositoryUnusableError):
    """The disk is full or not writable for git or the service; the detail says where and why."""

    code: ClassVar[str] = "storage_unavailable"


class ObjectMissingError(RepositoryUnusableError, KeyError):
    """The repository has no such object, or a damaged one."""

    def __init__(self, oid: str) -> None:
        super().__init__(
            f"Object {oid} is missing from the repository. If Autopack made it, it is made again"
            " now, so try again; else restore it (`git fetch`)."
        )


class GitTimeoutError(UnavailableError):
    """A git process ran longer than AUTOPACK_GIT_TIMEOUT_SECONDS and was stopped."""

    code: ClassVar[str] = "git_timeout"


class GitFailedError(UnavailableError):
    """git failed with an unknown error; the detail is its own message, without secrets."""

    code: ClassVar[str] = "git_failed"
