"""Which errors mean that the database or disk space is unavailable, and are no internal errors."""

from __future__ import annotations

import errno

from sqlalchemy.exc import DBAPIError, OperationalError, PendingRollbackError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..domain.errors import UnavailableError

OUTAGES: tuple[type[Exception], ...] = (DBAPIError, PoolTimeoutError, PendingRollbackError, OSError)

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)

# SQLSTATE classes: connection, rollback, resources, object in use, intervention, system.
_TRANSIENT = ("08", "40", "53", "55", "57", "58")
_QUERY_CANCELED = "57014"


class DatabaseUnavailableError(UnavailableError):
    code = "database_unavailable"


class StorageUnavailableError(UnavailableError):
    code = "storage_unavailable"


def as_unavailable(error: Exception) -> UnavailableError | None:
    """Return the refusal for an unavailable database or a full disk; None for other errors."""
    if isinstance(error, OSError):
        if error.errno not in _NO_ROOM:
            return None
        return StorageUnavailableError(
            f"{error.filename or 'a disk of the service'} cannot be written: {error.strerror}."
            " Nothing was changed; free some space, then send this again"
        )
    code = str(getattr(getattr(error, "orig", None), "pgcode", None) or "")
    if code == _QUERY_CANCELED:
        return DatabaseUnavailableError(
            "the database took too long, perhaps another request holds this run; try again"
        )
    if isinstance(error, DBAPIError) and not (
        isinstance(error, OperationalError)
        or error.connection_invalidated
        or code[:2] in _TRANSIENT
    ):
        return None
    return DatabaseUnavailableError(
        "the database does not answer now; nothing was changed, try again"
    )
