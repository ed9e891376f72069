"""Every refusal is a type with a kind; `api/errors.py` turns a kind into a status."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar


class ErrorKind(StrEnum):
    INVALID = "invalid"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    GONE = "gone"
    FORBIDDEN = "forbidden"
    UNAUTHORIZED = "unauthorized"
    TOO_LARGE = "too_large"
    TOO_MANY = "too_many"
    UNAVAILABLE = "unavailable"


class AutopackError(Exception):
    """A refusal that a client can act on.

    `detail` is one clear sentence that names the offending value and what would be accepted;
    `extra` contains further members of the problem document, such as `allowed` or `hunks`, all of
    them JSON. `is_repeat`: the same request was refused before, and this is the stored answer.
    """

    kind: ClassVar[ErrorKind] = ErrorKind.INVALID
    code: ClassVar[str] = "invalid"
    is_repeat: ClassVar[bool] = False

    def __init__(self, detail: str, **extra: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.extra = extra


class InvalidError(AutopackError):
    """A request that no state of the service would accept."""


class NotFoundError(AutopackError):
    kind = ErrorKind.NOT_FOUND
    code = "not_found"


class ConflictError(AutopackError):
    kind = ErrorKind.CONFLICT
    code = "conflict"


class GoneError(AutopackError):
    """What is asked for was here, and was removed for good."""

    kind = ErrorKind.GONE
    code = "gone"


class ForbiddenError(AutopackError):
    kind = ErrorKind.FORBIDDEN
    code = "forbidden"


class TooLargeError(AutopackError):
    kind = ErrorKind.TOO_LARGE
    code = "too_large"


class TooManyError(AutopackError):
    """Beyond a limit of the caller; `retry_after` seconds later it may be within."""

    kind = ErrorKind.TOO_MANY
    code = "too_many"

    def __init__(self, detail: str, *, retry_after: int) -> None:
        super().__init__(detail, retry_after=retry_after)
        self.retry_after = retry_after


class UnavailableError(AutopackError):
    kind = ErrorKind.UNAVAILABLE
    code = "unavailable"
