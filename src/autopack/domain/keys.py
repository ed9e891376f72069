"""What an API key looks like, and what one is: its name, its roles, how long it lives.

A key is `ap_`, 256 random bits in base 62, and the CRC-32 of these 43 digits in six more. Prefix
and checksum let scanners find a leaked key without asking the service; the service itself compares
digests alone.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import zlib
from datetime import datetime, timedelta
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from .access import AccessRole
from .limits import KeyLimits
from .values import Closed, Identifier, Several

PREFIX: Final = "ap_"
# After a rotation the old key is accepted for so long, so that its users can be changed one by one.
ROTATION_OVERLAP: Final = timedelta(hours=1)
# How long a browser stays signed in.
SESSION_LIFETIME: Final = timedelta(hours=12)

_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BODY: Final = 43  # digits of 256 bits in base 62
_CHECK: Final = 6  # digits of 32 bits
LENGTH: Final = len(PREFIX) + _BODY + _CHECK
_KEY: Final = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_BODY + _CHECK}}}")
_LIFETIME: Final = re.compile(r"([1-9][0-9]{0,5})([hdw])")
_UNITS: Final = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


class NewKey(Closed):
    """What an operator asks for; a name is used once and for all, as events name it."""

    name: Identifier
    roles: Annotated[Several[AccessRole], Field(min_length=1)]
    project_id: Annotated[
        Identifier | None, Field(description="The one project that the key is for.")
    ] = None
    limits: KeyLimits = KeyLimits()
    expires_at: Annotated[
        AwareDatetime | None, Field(description="When the key stops working; never if it is null.")
    ] = None


def make_key() -> str:
    """Return a new random key."""
    body = _base62(int.from_bytes(secrets.token_bytes(32)), _BODY)
    return f"{PREFIX}{body}{_checksum(body)}"


def is_well_formed(key: str) -> bool:
    """Tell whether a text has the form and the checksum of a key."""
    body, check = key[len(PREFIX) : -_CHECK], key[-_CHECK:]
    return _KEY.fullmatch(key) is not None and _checksum(body) == check


def digest_of(key: bytes) -> str:
    """Return what is stored of a key. A key is random, so a plain hash cannot be guessed back."""
    return hashlib.sha256(key).hexdigest()


def without_keys(text: str) -> str:
    """Return a text for a log: what looks like a key, whole or mistyped, is taken out."""
    return _KEY.sub(f"{PREFIX}[redacted]", text) if PREFIX in text else text


def expiry(lifetime: str, now: datetime) -> datetime:
    """Return when a lifetime such as `12h`, `90d` or `8w` ends. Raises ValueError."""
    match = _LIFETIME.fullmatch(lifetime)
    try:
        if match is not None:
            return now + int(match[1]) * _UNITS[match[2]]
    except OverflowError:
        pass
    raise ValueError(f"{lifetime[:80]!r} is no lifetime: 12h, 90d and 8w are")


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, len(_DIGITS))
        digits.append(_DIGITS[digit])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)
