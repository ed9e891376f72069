"""The one grammar for names that become git refs and file names."""

from __future__ import annotations

import re

IDENTIFIER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
IDENTIFIER_RULE = (
    "1 to 64 of A-Z a-z 0-9 . _ -, beginning with a letter or digit, "
    "without '..', and not ending in '.' or '.lock'"
)
_IDENTIFIER = re.compile(IDENTIFIER_PATTERN.rstrip("$") + r"\Z")


def identifier_problem(value: str) -> str | None:
    """Return what is wrong with an identifier, or None."""
    if (
        not _IDENTIFIER.match(value)
        or ".." in value
        or value.endswith(".")
        or value.lower().endswith(".lock")
    ):
        return f"{value[:80]!r} is not an identifier: {IDENTIFIER_RULE}"
    return None
