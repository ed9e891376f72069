"""`autopack backtest`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..client.backtest import BacktestError, run_backtest
from .command import FINE, NO, CommandError, command_app

app = command_app()


@app.command()
def backtest(
    ruleset: Annotated[Path, typer.Option(help="A ruleset's file.")],
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN_ID", help="Only this run, or these.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="How many of the newest runs (100).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the whole answer.")] = False,
    url: Annotated[
        str | None, typer.Option(help="The service (API_URL, http://localhost:8000).")
    ] = None,
) -> int:
    """Say what another ruleset would have made of finished runs.

    Ends with 0 when nothing would change, 1 when something would.
    """
    try:
        found = run_backtest(ruleset, url=url, run_ids=run or (), limit=limit, as_json=json)
    except BacktestError as error:
        raise CommandError(str(error)) from error
    print(found.text)
    return NO if found.is_changed else FINE
