"""One POST to another service: pinned to a checked address, limited in time and in what it reads.

The standard library's client does it: it follows no redirect, reads no proxy from the environment,
and lets its connection be made here.
"""

from __future__ import annotations

import http.client
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Timer
from typing import Final

from .address import Address, AddressError, resolve

# For the whole exchange, however slowly its parts come.
SEND_SECONDS: Final = 10.0
CONNECT_SECONDS: Final = 4.0
READ_BYTES: Final = 4_096
TRIED_ADDRESSES: Final = 3


class SendError(Exception):
    """No answer came. The message is one phrase that says why, without path or content."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The answer's status, and the beginning of its text."""

    status: int
    text: str


def send(
    address: Address,
    headers: Mapping[str, str],
    body: bytes,
    *,
    is_private_allowed: bool,
    seconds: float = SEND_SECONDS,
) -> HttpReply:
    """Post a body and return the beginning of the answer, whatever its status.

    The host's name is looked up once. Raises SendError.
    """
    try:
        places = resolve(address, is_private_allowed=is_private_allowed)
    except AddressError as error:
        raise SendError(str(error)) from None
    connection = _Pinned(address, places)
    # A receiver that sends a byte now and then would keep each read within its own time limit.
    ending = Timer(seconds, connection.cut)
    ending.daemon = True
    ending.start()
    try:
        connection.request("POST", address.target, body, dict(headers))
        answer = connection.getresponse()
        text = answer.read(READ_BYTES).decode(errors="replace")
        if connection.is_cut:  # an end in the middle of the head passes for the head's end
            raise TimeoutError
        return HttpReply(answer.status, text)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if connection.is_cut:
            raise SendError(f"no answer within {seconds:g} s") from None
        raise SendError(_reason(error)) from None
    finally:
        ending.cancel()
        connection.close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {getattr(error, 'verify_message', '') or error.reason}"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError):
        return f"the connection failed: {error.strerror or type(error).__name__}"
    return f"the answer is not HTTP: {type(error).__name__}"


class _Pinned(http.client.HTTPConnection):
    """A connection to one of the given addresses, whose host is named in `Host` and in TLS."""

    def __init__(self, address: Address, places: list[tuple[socket.AddressFamily, str]]) -> None:
        super().__init__(address.host, address.port, timeout=CONNECT_SECONDS)
        if address.is_tls:
            self.default_port = 443  # else `Host` would name the port
        self._address = address
        self._places = places[:TRIED_ADDRESSES]
        self.is_cut = False

    def connect(self) -> None:
        failure: OSError = OSError("no address")
        for family, place in self._places:
            if self.is_cut:
                break
            self.sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                self.sock.settimeout(CONNECT_SECONDS)
                self.sock.connect((place, self._address.port))
                self.sock.settimeout(SEND_SECONDS)
                if self._address.is_tls:
                    context = ssl.create_default_context()
                    self.sock = context.wrap_socket(self.sock, server_hostname=self._address.host)
                return
            except OSError as error:
                failure = error
                self.sock.close()
        raise failure

    def cut(self) -> None:
        """End the exchange from another thread: whatever it waits for fails at once."""
        self.is_cut = True
        sock = self.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                sock.close()  # not connected yet
