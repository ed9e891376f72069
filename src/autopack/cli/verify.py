"""`autopack verify`: a run's branch against its record, without the service. (docs/promotion.md)"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..domain.naming import branch_name
from .command import CommandError, command_app
from .terminal import JsonOption

CHECKER = "scripts/check_promotion.py"

app = command_app()


@app.command()
def verify(
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="The run's id.")],
    branch: Annotated[
        str | None, typer.Option(help="Where it was built, if not on its own branch.")
    ] = None,
    base: Annotated[str, typer.Option(help="Where it is to go.")] = "main",
    json: JsonOption = False,
) -> int:
    """Check a run's branch against its record, in the repository of the current folder.

    Needs no service. Ends with 0 when the branch may be merged, else with each reason and 1.
    """
    command = [sys.executable, "-I", str(_checker()), "--run-id", run_id]
    command += ["--branch", branch or branch_name(run_id), "--base", base]
    return subprocess.run([*command, "--json"] if json else command, check=False).returncode


def _checker() -> Path:
    """Return this version's checker: beside the package when installed, else of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "setup" / "files", package.parents[1]):
        if (folder / CHECKER).is_file():
            return folder / CHECKER
    raise CommandError(f"{CHECKER} is missing beside {package}: this Autopack is incomplete.")
