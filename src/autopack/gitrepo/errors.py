"""What git can refuse, each reason its own type: a conflict is no lost race, nor that an outage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import ClassVar

from ..domain.changes import Violation
from ..domain.errors import ConflictError, InvalidError, TooLargeError, UnavailableError


class PatchMalformedError(InvalidError):
    """The text is no patch that git could read; `line` is the first line that is wrong."""

    code: ClassVar[str] = "patch_malformed"

    def __init__(self, detail: str, *, line: int | None = None, **extra: object) -> None:
        if line is not None:
            extra["line"] = line
        super().__init__(detail, **extra)
        self.line = line


class PatchTooLargeError(TooLargeError):
    """The patch, or what it would unpack to, passes a limit."""

    code: ClassVar[str] = "patch_too_large"


class PatchEmptyError(InvalidError):
    """The patch says nothing, so there is nothing to commit."""

    code: ClassVar[str] = "patch_empty"


class PatchAlreadyAppliedError(ConflictError):
    """The branch holds this very change already."""

    code: ClassVar[str] = "patch_already_applied"


class PatchConflictError(ConflictError):
    """The patch is well formed but does not fit the head; `extra` holds the repair ticket."""

    code: ClassVar[str] = "patch_conflict"


class PatchPolicyError(InvalidError):
    """The change is one that no patch may make; `violations` names each file and rule."""

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
    """A ref is not where we left it. Somebody else moved it, so it is not overwritten."""

    code: ClassVar[str] = "branch_moved"

    def __init__(self, ref: str, expected: str | None, actual: str | None) -> None:
        super().__init__(
            f"{ref} is at {actual or 'no commit'} and not at {expected or 'no commit'},"
            " where Autopack left it: somebody else moved it, so it is left alone.",
            ref=ref,
            expected=expected,
            actual=actual,
        )
        self.ref = ref
        self.expected = expected
        self.actual = actual


class RefNameTakenError(ConflictError):
    """A ref cannot be made because another one of that name, or within it, stands there."""

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
    """Somebody has the run's branch checked out, so moving it would dirty their work tree."""

    code: ClassVar[str] = "branch_checked_out"


class RefLockedError(UnavailableError):
    """Another git process holds the ref's lock; the same request may succeed a moment later."""

    code: ClassVar[str] = "branch_locked"


class RemoteMovedError(ConflictError):
    """A branch or tag on the remote is not where we left it, so nothing there is overwritten."""

    code: ClassVar[str] = "remote_moved"

    def __init__(self, ref: str, url: str, *, expected: str, actual: str) -> None:
        super().__init__(
            f"{ref} is at {actual} on {url}, where Autopack never put it: somebody else moved it,"
            f" so it is left alone. Move it back, or delete it there, and it is put at {expected}.",
            ref=ref,
            expected=expected,
            actual=actual,
        )


class PushFailedError(UnavailableError):
    """The remote did not take a branch; the detail is its own words, cleaned of secrets."""

    code: ClassVar[str] = "push_failed"


class PushInterruptedError(UnavailableError):
    """The service stops, so a push was ended; the next one to start takes it up."""

    code: ClassVar[str] = "push_interrupted"


class RepositoryUnusableError(UnavailableError):
    """The repository is missing, or of a sort that is not served; the detail says what to do."""

    code: ClassVar[str] = "repository_unusable"


class StorageError(RepositoryUnusableError):
    """Git or we found no room, or may not write; the detail says where and why."""

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
    """git failed in a way that nobody foresaw; the detail is its own words, cleaned of secrets."""

    code: ClassVar[str] = "git_failed"
