"""Is everything there that the service needs?"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from ..domain.errors import AutopackError
from ..store import runs
from .house import House


def check_health(house: House) -> dict[str, str | None]:
    """Return each check with what failed, None where nothing did."""
    checks: dict[str, Callable[[], None]] = {
        "database": lambda: _check_database(house),
        "repository": house.repository.check,
        "runs_directory": house.mirror.check,
    }
    return {name: _failure(check) for name, check in checks.items()}


def _check_database(house: House) -> None:
    with house.reading() as session:
        runs.touch(session)


def _failure(check: Callable[[], None]) -> str | None:
    try:
        check()
    except AutopackError as error:
        return error.detail
    except SQLAlchemyError as error:
        return f"the database does not answer ({type(error).__name__})"
    return None
