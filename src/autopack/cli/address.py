"""The line by which a started service tells its address, for people and for `autopack up`."""

from __future__ import annotations

import re
from typing import Final

_LINE: Final = re.compile(r"^  API      (\S+)$", re.MULTILINE)


def address_line(url: str) -> str:
    """Return the line that a service prints as soon as it answers at this address."""
    return f"  API      {url}"


def told_address(text: str) -> str | None:
    """Return the address that a service told in its output so far, if it did."""
    found = _LINE.search(text)
    return found and found[1]
