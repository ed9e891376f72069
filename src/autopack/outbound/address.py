"""Which addresses may be called: public ones, unless the operator's settings allow others.

A name is looked up once for each request, every address that it has is checked, and the request
goes to a checked one: else a second look-up could give another answer (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

# Where a network without IPv4 shows IPv4 hosts: their address is the last 32 bits. (RFC 6052)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
MAX_URL: Final = 2_000

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Place = tuple[socket.AddressFamily, str]


class AddressError(ValueError):
    """An address that may not be called. The message is one phrase that says why."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL in its parts; `target` is its path and query."""

    is_tls: bool
    host: str
    port: int
    target: str

    @property
    def origin(self) -> str:
        """The URL without path and query, which may contain a secret."""
        scheme, default = ("https", 443) if self.is_tls else ("http", 80)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}" + ("" if self.port == default else f":{self.port}")


def parse_address(url: str, *, is_private_allowed: bool) -> Address:
    """Return a URL's parts. Raises AddressError; nothing is looked up."""
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        raise AddressError(f"must be at most {MAX_URL} printable ASCII characters without spaces")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
    except ValueError:
        raise AddressError("is not a URL") from None
    if parts.scheme != "https" and not (is_private_allowed and parts.scheme == "http"):
        raise AddressError("must begin with https://")
    if not host:
        raise AddressError("names no host")
    if parts.username is not None or parts.password is not None or "@" in parts.netloc:
        raise AddressError("must not contain a user or a password")
    if parts.fragment:
        raise AddressError("must not contain a fragment")
    if port == 0 or "\\" in url:
        raise AddressError("is not a URL")
    is_tls = parts.scheme == "https"
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(is_tls, host, port or (443 if is_tls else 80), target)


def resolve(address: Address, *, is_private_allowed: bool) -> list[Place]:
    """Look a host up once; return its addresses, each of which may be called.

    Raises AddressError where it has none, or where one of them may not be called: an attacker
    decides which of several is taken.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise AddressError(f"the host '{address.host}' cannot be looked up") from None
    places: list[Place] = [(family, str(place[0])) for family, *_, place in found]
    for _, place in places:
        if not (is_private_allowed or is_public(place)):
            raise AddressError(
                f"the host '{address.host}' has the address {place}, which is not a public one"
                " (AUTOPACK_WEBHOOK_PRIVATE=true allows it)"
            )
    if not places:
        raise AddressError(f"the host '{address.host}' has no address")
    return places


def is_public(place: str) -> bool:
    """Tell whether an IP address is one of the public internet, also where it contains another."""
    try:
        found: IpAddress = ipaddress.ip_address(place.partition("%")[0])
    except ValueError:
        return False
    if (host := _written_as_ipv6(found)) is not None:
        return _is_global(host)
    return all(_is_global(each) for each in (found, *_inner(found)))


def _is_global(found: IpAddress) -> bool:
    return found.is_global and not found.is_multicast and not found.is_reserved


def _written_as_ipv6(found: IpAddress) -> ipaddress.IPv4Address | None:
    """Return the IPv4 host that an IPv6 address stands for, which is what is called.

    Python counts these forms as reserved, whatever the host is.
    """
    if isinstance(found, ipaddress.IPv4Address):
        return None
    if found in _NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
    return found.ipv4_mapped


def _inner(found: IpAddress) -> list[IpAddress]:
    """Return the IPv4 addresses within an IPv6 address, to which a router may pass a packet on."""
    if isinstance(found, ipaddress.IPv4Address):
        return []
    return [each for each in (found.sixtofour, *(found.teredo or ())) if each is not None]
