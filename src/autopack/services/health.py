"""Is everything there that the service needs?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from ..domain.errors import AutopackError, UnavailableError
from ..jobs.queue import workers_silence
from ..store import pulses, runs
from .context import AppContext
from .opening import require_place
from .pushes import check_pushes
from .upkeep import PULSE

# Of background work, which comes to an end every few seconds. A dead worker's is taken up in 45.
PATIENCE_SECONDS: Final = 70


class BackgroundWorkError(UnavailableError):
    """Nobody does what is to be done without being asked."""

    code = "background_work_stopped"


@dataclass(frozen=True, slots=True)
class Check:
    """What is wrong with a part, if anything; without one that is not vital all else works."""

    detail: str | None
    is_vital: bool = True


def check_health(context: AppContext) -> dict[str, Check]:
    """Look at everything; at the remote only where there is one."""
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
    require_place(context)
    with context.reading() as session:
        runs.touch(session)


def _check_jobs(context: AppContext) -> None:
    """See that the upkeep comes to its end, whichever process does it."""
    with context.reading() as session:
        silence = pulses.silence(session, PULSE)
        if silence is not None and silence <= PATIENCE_SECONDS:
            return
        heard = workers_silence(session)
    if heard is None or heard > PATIENCE_SECONDS:
        cure = "start one: `autopack jobs`"
        if context.settings.jobs == "inside":
            cure = "this service should have one: see its log"
        raise BackgroundWorkError(f"no job worker is alive; {cure}")
    since = "yet" if silence is None else f"for {silence:.0f} seconds"
    raise BackgroundWorkError(
        f"background work has not come to an end {since}, though a worker is alive; see its log"
    )


def _failure(check: Callable[[], None]) -> str | None:
    try:
        check()
    except AutopackError as error:
        return error.detail
    except SQLAlchemyError as error:
        return f"the database does not answer ({type(error).__name__})"
    return None
