"""Which failures of the database are its absence, and not our fault."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..domain.errors import UnavailableError

DATABASE_ERRORS: tuple[type[Exception], ...] = (DBAPIError, PoolTimeoutError)

# SQLSTATE classes: connection, rollback, resources, object in use, intervention, system.
_TRANSIENT = ("08", "40", "53", "55", "57", "58")
_QUERY_CANCELED = "57014"


class DatabaseUnavailableError(UnavailableError):
    code = "database_unavailable"


def as_unavailable(error: Exception) -> DatabaseUnavailableError | None:
    """Return the refusal for a database that is away, busy or full; None for anything else."""
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
        "the database does not answer just now; nothing was changed, try again"
    )
