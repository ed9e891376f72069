"""The address that branches are pushed to, with its credentials stored apart from it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

SETTING = "AUTOPACK_GIT_REMOTE"
ACCEPTED = (
    "a path, a file://, http://, https:// or ssh:// address, user@host:path, "
    "or the name of a remote of the repository"
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_SCP = re.compile(r"(?:(?P<user>[^@/:\s]+)@)?(?P<host>[^@/:\s]+):(?P<path>[^\s].*)\Z")
_USERINFO = re.compile(r"(?<=://).*@", re.DOTALL)  # up to the last @: a password may have slashes


class AddressError(ValueError):
    """The text is not an address to push to; the message never contains a password."""


@dataclass(frozen=True, slots=True)
class RemoteAddress:
    """`url` is shown to git and people: it may have an ssh user name, never a credential."""

    url: str
    protocol: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)

    @property
    def origin(self) -> str:
        """The scheme, host and port of a web address."""
        scheme, _, host, *_ = self.url.split("/")
        return f"{scheme}//{host}"

    def clean(self, text: str) -> str:
        """Remove the credentials from a text, in plain or in URL-encoded form."""
        secrets = {self.password, self.username if not self.password else None} - {None, ""}
        spellings = {form for one in secrets for form in (str(one), quote(str(one), safe=""))}
        for spelling in sorted(spellings, key=len, reverse=True):
            text = text.replace(spelling, "***")
        return text


def is_remote_name(text: str) -> bool:
    """Return whether a text names a remote; an address has a slash (`./backup.git`) or a colon."""
    return _NAME.match(text) is not None


def parse_address(text: str, top: Path) -> RemoteAddress:
    """Read an address; relative paths start at `top`. Raises AddressError."""
    shown = _USERINFO.sub("***@", text)
    is_helper = re.match(r"[A-Za-z0-9]+::", text)  # `ext::` would run a command
    if not text or text.startswith("-") or not text.isprintable() or is_helper:
        raise AddressError(f"{shown!r} is not an address of a remote: give {ACCEPTED}")
    if "://" in text:
        return _parse_url(text, shown)
    scp = _SCP.match(text)
    if scp and not text.startswith(("/", ".", "~")):
        if scp["host"].startswith("-"):
            raise AddressError(f"{shown!r} has no host")
        return RemoteAddress(text, "ssh")
    return RemoteAddress(str((top / Path(text).expanduser()).absolute()), "file")


def _parse_url(text: str, shown: str) -> RemoteAddress:
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme == "file":
        return RemoteAddress(text, scheme)
    if scheme not in {"http", "https", "ssh"}:
        raise AddressError(f"{shown!r} begins with {scheme}://: give {ACCEPTED}")
    if "?" in rest or "#" in rest:
        # Some servers take a token there, and it would be shown.
        raise AddressError(f"{shown!r} has a ? or # in it: encode it as %3F or %23")
    authority, slash, path = rest.partition("/")
    if "@" in path and "@" not in authority and ":" in authority:
        raise AddressError(f"{shown!r} has a password with a / in it: encode that as %2F")
    userinfo, at, host = authority.rpartition("@")
    try:
        is_host = bool(urlsplit(f"{scheme}://{host}").hostname) and not host.startswith("-")
        urlsplit(f"{scheme}://{host}").port  # noqa: B018  raises for a wrong port
    except ValueError:
        is_host = False
    if not is_host or not path.strip("/"):
        raise AddressError(f"{shown!r} has no host or no path")
    name, colon, password = userinfo.partition(":")
    if scheme == "ssh":
        if colon:
            raise AddressError(f"{shown!r} has a password, which ssh does not accept: use keys")
        if name.startswith("-"):
            raise AddressError(f"{shown!r} has no user")
        return RemoteAddress(f"{scheme}://{userinfo}{at}{host}{slash}{path}", scheme)
    url = f"{scheme}://{host}{slash}{path}"
    if not at:
        return RemoteAddress(url, scheme)
    name, password = unquote(name), unquote(password)
    if not (name + password).isprintable():
        raise AddressError(f"{shown!r} has a control character in its credentials")
    return RemoteAddress(url, scheme, name, password)
