"""`autopack verify`: a run's branch against its record, without the service. (docs/promotion.md)"""

from __future__ import annotations

from typing import Annotated

import typer

from ..checker.command import main
from ..domain.naming import branch_name
from .command import command_app
from .completion import RunId
from .terminal import JsonOption, to_a_reader

app = command_app()


@app.command()
def verify(
    run_id: RunId,
    branch: Annotated[
        str | None, typer.Option(help="Where it was built, if not on its own branch.")
    ] = None,
    base: Annotated[str, typer.Option(help="Where it is to go.")] = "main",
    json: JsonOption = False,
) -> int:
    """Check a run's branch against its record, in the repository of the current folder.

    Needs no service. Ends with 0 when the branch may be merged, else with each reason and 1.
    """
    words = [f"--run-id={run_id}", f"--branch={branch or branch_name(run_id)}", f"--base={base}"]
    with to_a_reader():
        return main([*words, "--json"] if json else words, program="autopack verify")
