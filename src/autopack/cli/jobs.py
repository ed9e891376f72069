"""`autopack jobs`: background work in a process of its own."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from .. import __version__
from ..config import SettingsError
from ..database import DatabaseError
from ..gitrepo.errors import RepositoryUnusableError
from .command import CommandError, command_app
from .settings import read_settings
from .signals import leave_on_signals
from .terminal import say

app = command_app()


@app.command()
def jobs(
    queue: Annotated[
        list[str] | None, typer.Option(help="Work on this queue alone, or on these.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at a time, of each queue; else its own number.")
    ] = None,
) -> None:
    """Do background work until a signal comes.

    Any number of such processes may run, beside services or, with AUTOPACK_JOBS=outside, in place
    of what these do themselves. The queues upkeep and pushes need the services' repository and
    runs' folder.
    """
    leave_on_signals()
    from ..main import jobs_process  # here, so that help and wrong settings are told at once

    try:
        with jobs_process(read_settings(), queue or (), workers) as names:
            say(f"Autopack {__version__} works on {', '.join(names)}. Ctrl-C stops.", is_now=True)
            threading.Event().wait()
    except (SettingsError, DatabaseError, RepositoryUnusableError) as error:
        raise CommandError(str(error)) from error
