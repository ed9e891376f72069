"""`autopack nodes`: the nodes of one database. (docs/replicas.md)"""

from __future__ import annotations

from typing import Annotated

import typer

from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, print_table, say

app = command_app()


@app.command("list")
def list_all(json: JsonOption = False, url: UrlOption = None) -> None:
    """List the nodes, how far each is behind, and what it lacks."""
    with asking(url) as client:
        answer = client.list_nodes()
    if json:
        print_json(answer)
        return
    print_table(
        (
            "id",
            "place",
            "state",
            "last sign of life",
            "revisions behind",
            "seconds",
            "catching up",
            "lacks",
        ),
        (
            (
                each.id,
                each.place,
                "alive" if each.is_alive else "silent",
                f"{each.heartbeat_at:%Y-%m-%d %H:%M:%S}",
                each.lag_revisions,
                round(each.lag_seconds),
                f"{each.unseen_runs} runs to look at" if each.unseen_runs else "",
                f"{each.lacking_runs} runs, as {each.lacks[0]}" if each.lacks else "",
            )
            for each in answer.nodes
        ),
    )


@app.command()
def remove(
    node: Annotated[str, typer.Argument(metavar="ID", help="The node's id.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Remove a node that is gone; it comes back when one of its processes starts again."""
    with asking(url) as client:
        removed = client.remove_node(node)
    if json:
        print_json(removed)
    else:
        say(f"Node '{removed.id}' at {removed.place} is removed.")
