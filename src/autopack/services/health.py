"""The health of everything that the service needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from ..domain.errors import AutopackError, UnavailableError
from ..jobs.queue import workers_silence
from ..store import pulses, runs
from .context import AppContext
from .opening import require_not_superseded
from .pushes import check_pushes
from .upkeep import PULSE

# For the upkeep, which is completed every few seconds. A dead worker's job is repeated within 45.
PATIENCE_SECONDS: Final = 70


class BackgroundWorkError(UnavailableError):
    """Background work is not done."""

    code = "background_work_stopped"


@dataclass(frozen=True, slots=True)
class Check:
    """The error of one part, if any; without a part that is not vital, all else works."""

    detail: str | None
    is_vital: bool = True


def check_health(context: AppContext) -> dict[str, Check]:
    """Check everything; the remote only if there is one."""
    checks: dict[str, Callable[[], None]] = {
        "database": lambda: _check_database(context),
        "repository": context.repository.check,
        "storage": context.repository.check_room,
        "runs_directory": context.mirror.check,
        "jobs": lambda: _check_jobs(context),
    }
    found = {name: Check(_failure(check)) for name, check in checks.items()}
    if context.repository.remote is not None:
        found["remote"] = Check(_failure(lambda: check_pushes(context)), is_vital=False)
    return found


def _check_database(context: AppContext) -> None:
    require_not_superseded(context)
    with context.reading() as session:
        runs.touch(session)


def _check_jobs(context: AppContext) -> None:
    """Check that the upkeep is completed regularly, by any process."""
    with context.reading() as session:
        silence = pulses.silence(session, PULSE)
        if silence is not None and silence <= PATIENCE_SECONDS:
            return
        heard = workers_silence(session)
    if heard is None or heard > PATIENCE_SECONDS:
        cure = "start one: `autopack jobs`"
        if context.settings.jobs == "inside":
            cure = "this service should have one: see its log"
        raise BackgroundWorkError(f"no job worker is running; {cure}")
    since = "yet" if silence is None else f"for {silence:.0f} seconds"
    raise BackgroundWorkError(
        f"background work was not completed {since}, although a worker is running; see its log"
    )


def _failure(check: Callable[[], None]) -> str | None:
    try:
        check()
    except AutopackError as error:
        return error.detail
    except SQLAlchemyError as error:
        return f"the database does not answer ({type(error).__name__})"
    return None
