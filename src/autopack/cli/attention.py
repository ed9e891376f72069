"""`autopack attention`: what needs a person. (docs/attention.md)"""

from __future__ import annotations

from typing import Annotated

import typer

from ..views.attention import AttentionItem
from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, say

app = command_app()
app.info.no_args_is_help = False


@app.callback(invoke_without_command=True)
def attention(command: typer.Context, json: JsonOption = False, url: UrlOption = None) -> None:
    """Show what needs a person, the most urgent first, each with what to do."""
    if command.invoked_subcommand is not None:
        return
    with asking(url) as client:
        answer = client.attention()
    if json:
        print_json(answer)
        return
    if not answer.items:
        say("Nothing needs you.")
    for item in answer.items:
        say(*_lines(item))
    if not answer.is_complete:
        say("There are more: `autopack run list` shows all runs.")


@app.command()
def dismiss(
    item: Annotated[str, typer.Argument(metavar="ITEM", help="The item's id, KIND:RUN_ID.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Take a run that is over off the list; the run itself stays as it is."""
    with asking(url) as client:
        answer = client.dismiss(item)
    if json:
        print_json(answer)
    else:
        say(f"Run {answer.run_id} is {answer.closed_as} by {answer.closed_by}.")


def _lines(item: AttentionItem) -> list[str]:
    since = f"since {item.since:%Y-%m-%d %H:%M} UTC, " if item.since else ""
    run = f"{item.run_id} " if item.run_id else ""
    return [
        f"{item.severity}: {run}{item.text}",
        f"    {since}{item.id}",
        f"    {item.action.label}: {item.action.command}",
    ]
