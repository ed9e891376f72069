"""`autopack jobs`: background work in a separate process."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from .. import __version__
from ..config import SettingsError
from ..domain.errors import UnavailableError
from ..migrating import DatabaseError
from .command import CommandError, command_app, importing
from .settings import read_settings
from .signals import leave_on_signals
from .terminal import say

app = command_app()


@app.command()
def jobs(
    queue: Annotated[
        list[str] | None, typer.Option(help="Only work on this queue; may be repeated.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time in each queue; by default its own.")
    ] = None,
) -> None:
    """Do background work until a signal comes.

    Any number of such processes may run: in addition to the services or, with
    AUTOPACK_JOBS=outside, instead of their own workers. The queues upkeep and pushes need the
    services' repository and runs directory.
    """
    leave_on_signals()
    with importing():  # here, so that help and wrong settings are shown fast
        from ..background import jobs_process

    try:
        with jobs_process(read_settings(), queue or (), workers) as names:
            say(f"Autopack {__version__} works on {', '.join(names)}. Ctrl-C stops.", is_now=True)
            threading.Event().wait()
    except (SettingsError, DatabaseError, UnavailableError) as error:
        raise CommandError(str(error)) from error
