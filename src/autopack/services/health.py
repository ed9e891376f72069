"""Is everything there that the service needs?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from ..domain.errors import AutopackError
from ..store import runs
from .house import House
from .pushes import check_pushes


@dataclass(frozen=True, slots=True)
class Check:
    """What is wrong with a part, if anything; without one that is not vital all else works."""

    detail: str | None
    is_vital: bool = True


def check_health(house: House) -> dict[str, Check]:
    """Look at everything; at the remote only where there is one."""
    checks: dict[str, Callable[[], None]] = {
        "database": lambda: _check_database(house),
        "repository": house.repository.check,
        "runs_directory": house.mirror.check,
    }
    found = {name: Check(_failure(check)) for name, check in checks.items()}
    found["jobs"] = Check(house.pulse.problem())
    if house.repository.remote is not None:
        found["remote"] = Check(_failure(lambda: check_pushes(house)), is_vital=False)
    return found


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
