"""`autopack login`: an API key for the commands that ask the service."""

from __future__ import annotations

import getpass
import sys

from ..client.credentials import login_file, store_key
from .command import CommandError, command_app
from .service import asking
from .terminal import UrlOption, say

app = command_app()


@app.command()
def login(url: UrlOption = None) -> None:
    """Ask for an API key, or read it from standard input, and store it for this service.

    The service is asked whether it knows the key. The key is stored in a file of mode 600.
    """
    key = getpass.getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline()
    if not (key := key.strip()):
        raise CommandError("no key was given: type it, or pass it on standard input")
    with asking(url, api_key=key) as client:
        caller = client.whoami()
        if caller.key is None:
            raise CommandError(
                f"{client.address} asks for no key (AUTOPACK_AUTH={caller.auth}); nothing is stored"
            )
        store_key(client.address, key)
        if client.is_in_clear:
            say(
                f"autopack: warning: {client.address} is reached without TLS: others on the way "
                "can read the key",
                is_error=True,
            )
        roles = ", ".join(caller.roles)
        say(f"{client.address} knows key '{caller.key}' ({roles}); stored in {login_file()}.")
