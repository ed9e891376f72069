"""What a shell completes: ids of runs, phases and issues, asked of the service.

A shell waits for it at a key press, so it asks once, shortly, and is silent if there is no answer.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Final

import typer

from ..client import Autopack, ClientError

SECONDS: Final = 2.0
MOST: Final = 50


def complete_runs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the newest runs whose ids begin with a text."""
    return _beginning(
        incomplete,
        lambda service: [run.run_id for run in service.list_runs(limit=MOST).runs],
        ctx,
    )


def complete_phases(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the phases of the run that the command line names."""

    def phases(service: Autopack) -> list[str]:
        run = service.get_run(str(run_id))
        return [phase.phase_id for phase in run.phases]

    run_id = ctx.params.get("run_id") or _word_after(ctx.info_name)
    return _beginning(incomplete, phases, ctx) if run_id else []


def complete_issues(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the keys of the backlog that begin with a text."""
    return _beginning(
        incomplete, lambda service: list(service.backlog(limit=MOST).issues_by_key), ctx
    )


def _word_after(command: str | None) -> str | None:
    """Return the first argument of a command from the shell's line.

    The parser gives none while the last option has no value yet.
    """
    line = os.environ.get("_TYPER_COMPLETE_ARGS") or os.environ.get("COMP_WORDS", "")
    words = iter(line.split())
    for word in words:
        if word == command:
            return next((word for word in words if not word.startswith("-")), None)
    return None


def _beginning(
    incomplete: str, names: Callable[[Autopack], list[str]], ctx: typer.Context
) -> list[str]:
    url = ctx.params.get("url")
    with suppress(ClientError), Autopack(url, retries=0, timeout=SECONDS) as asked:
        return [name for name in names(asked) if name.startswith(incomplete)]
    return []


RunId = Annotated[
    str, typer.Argument(metavar="RUN_ID", help="The run's id.", autocompletion=complete_runs)
]
