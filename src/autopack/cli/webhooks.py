"""`autopack webhooks`: addresses that are told of events and attention. (docs/webhooks.md)"""

from __future__ import annotations

from typing import Annotated

import typer

from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, print_table, say

app = command_app()

Name = Annotated[str, typer.Argument(metavar="NAME", help="The webhook's name.")]


@app.command()
def create(
    name: Annotated[str, typer.Option(metavar="NAME", help="Its name.")],
    address: Annotated[str, typer.Option(metavar="URL", help="Where messages go, by https://.")],
    kind: Annotated[
        list[str],
        typer.Option(help="A kind of event or attention, or `*`; may be repeated."),
    ],
    format: Annotated[
        str, typer.Option(help="cloudevents, slack (lines) or github (starts promotion.yml).")
    ] = "cloudevents",
    project: Annotated[
        str | None, typer.Option(metavar="PROJECT", help="The one project that it is about.")
    ] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Make a webhook and print its secret, this once."""
    wanted = {
        "name": name,
        "url": address,
        "kinds": kind,
        "format": format,
        "project_id": project,
    }
    with asking(url) as client:
        made = client.create_webhook(wanted)
    if json:
        print_json(made)
        return
    say(made.secret)
    say(
        f"Webhook '{name}' goes to {made.webhook.address}. The secret is shown this once; the"
        " receiver checks signatures by it.",
        is_error=True,
    )


@app.command("list")
def list_all(json: JsonOption = False, url: UrlOption = None) -> None:
    """List all webhooks."""
    with asking(url) as client:
        answer = client.list_webhooks()
    if json:
        print_json(answer)
        return
    print_table(
        ("name", "state", "address", "format", "kinds", "waiting", "why off"),
        (
            (
                each.name,
                each.state,
                each.address,
                each.format,
                ", ".join(each.kinds),
                each.waiting,
                each.off_reason or "",
            )
            for each in answer.webhooks
        ),
    )


@app.command()
def remove(name: Name, json: JsonOption = False, url: UrlOption = None) -> None:
    """Remove a webhook with its deliveries."""
    with asking(url) as client:
        removed = client.remove_webhook(name)
    if json:
        print_json(removed)
    else:
        say(f"Webhook '{name}' is removed.")


@app.command()
def enable(name: Name, json: JsonOption = False, url: UrlOption = None) -> None:
    """Switch a webhook on again; it is told what happens from now on."""
    with asking(url) as client:
        enabled = client.enable_webhook(name)
    if json:
        print_json(enabled)
    else:
        say(f"Webhook '{name}' is {enabled.state}.")


@app.command("test")
def send_test(name: Name, json: JsonOption = False, url: UrlOption = None) -> None:
    """Send a test message."""
    with asking(url) as client:
        delivery = client.test_webhook(name)
    if json:
        print_json(delivery)
    else:
        say(f"{delivery.message_id} is on its way: autopack webhooks deliveries {name}")


@app.command()
def deliveries(
    name: Name,
    limit: Annotated[int, typer.Option(help="How many.")] = 20,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List the last deliveries, newest first, with what came of them."""
    with asking(url) as client:
        page = client.deliveries(name, limit=limit)
    if json:
        print_json(page)
        return
    print_table(
        ("message", "kind", "state", "tries", "status", "created", "error"),
        (
            (
                each.message_id,
                each.kind,
                each.state,
                each.attempts,
                each.status,
                f"{each.created_at:%Y-%m-%d %H:%M:%S}",
                each.error,
            )
            for each in page.deliveries
        ),
    )


@app.command()
def redeliver(
    name: Name,
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="The message's id.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Deliver a message again, under the same id."""
    with asking(url) as client:
        delivery = client.redeliver(name, message)
    if json:
        print_json(delivery)
    else:
        say(f"{delivery.message_id} is {delivery.state}.")
