"""`autopack logout`: the end of `autopack login`."""

from __future__ import annotations

from ..client.credentials import login_file, store_key
from .command import FINE, NO, command_app
from .service import asking
from .terminal import UrlOption, say

app = command_app()


@app.command()
def logout(url: UrlOption = None) -> int:
    """Remove the API key that is stored for this service. The key itself stays valid.

    Ends with 1 when none is stored.
    """
    with asking(url, api_key="") as client:
        address = client.address
        is_removed = store_key(address, None)
    say(
        f"The key for {address} is removed from {login_file()}."
        if is_removed
        else f"No key is stored for {address}."
    )
    return FINE if is_removed else NO
