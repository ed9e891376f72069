"""`autopack whoami`: how the service knows the caller."""

from __future__ import annotations

from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, print_table

app = command_app()


@app.command()
def whoami(json: JsonOption = False, url: UrlOption = None) -> None:
    """Show by which key and roles the service knows the caller."""
    with asking(url) as client:
        caller = client.whoami()
        address = client.address
    if json:
        print_json(caller)
        return
    rows = [
        ("service", address),
        ("authentication", caller.auth),
        ("key", caller.key or "none"),
        ("roles", ", ".join(caller.roles)),
        ("project", caller.project_id or "any"),
    ]
    print_table(("", ""), rows)
