"""Which addresses are called, and that nothing a receiver does keeps the sender."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from autopack.outbound import AddressError, HttpReply, SendError, parse_address, resolve, send
from autopack.outbound.address import is_public

from .receiver import Receiver

pytestmark = pytest.mark.integration

NAME = "hooks.example.test"
BODY = b'{"a": 1}'


def post(url: str, *, is_private_allowed: bool = True, seconds: float = 5.0) -> HttpReply:
    address = parse_address(url, is_private_allowed=is_private_allowed)
    return send(address, {}, BODY, is_private_allowed=is_private_allowed, seconds=seconds)


class Names:
    """Answers look-ups in turn, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: str) -> None:
        self._answers = list(answers)
        self.count = 0
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)

    def _look_up(self, host: str, port: int, **_: Any) -> list[Any]:
        self.count += 1
        place = self._answers.pop(0)
        family = socket.AF_INET6 if ":" in place else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (place, port))]


def test_each_address_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that is called may be any of them."""
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("8.8.8.8", "10.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    address = parse_address(f"https://{NAME}/", is_private_allowed=False)
    with pytest.raises(AddressError, match=r"10\.0\.0\.1, which is not a public one"):
        resolve(address, is_private_allowed=False)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("8.8.8.8", True),
        ("2606:4700:4700::1111", True),
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("0.0.0.0", False),  # noqa: S104 - an address to refuse
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("224.0.0.1", False),
        ("240.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),
        ("2002:a00:1::", False),
        ("::ffff:8.8.8.8", True),
        ("::8.8.8.8", False),
        ("2002:808:808::1", True),
        ("64:ff9b::808:808", True),  # a public IPv4 host, in a network with IPv6 alone
        ("64:ff9b::7f00:1", False),
        ("64:ff9b:1::808:808", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("not an address", False),
    ],
)
def test_only_addresses_of_the_public_internet_are_public(place: str, expected: bool) -> None:
    assert is_public(place) is expected


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("http://example.org/", "https://"),
        ("ftp://example.org/", "https://"),
        ("example.org", "https://"),
        ("", "https://"),
        ("https://", "no host"),
        ("https:///path", "no host"),
        ("https://ada:s3cr3t@example.org/", "user or a password"),
        ("https://ada@example.org/", "user or a password"),
        ("https://example.org/#part", "fragment"),
        ("https://example.org:0/", "not a URL"),
        ("https://example.org:99999/", "not a URL"),
        ("https://[::1/", "not a URL"),
        ("https://example.org\\@evil.example/", "user or a password"),
        ("https://example.org/\r\nHost: x", "printable"),
        ("https://example.org/ x", "without spaces"),
        ("https://exämple.org/", "ASCII"),
        ("https://example.org/" + "x" * 2_000, "2000"),
    ],
)
def test_an_address_that_may_not_be_called_is_refused_by_name(url: str, word: str) -> None:
    with pytest.raises(AddressError, match=word):
        parse_address(url, is_private_allowed=False)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "2130706433", "0x7f.1", "localhost"])
def test_another_spelling_of_this_machine_is_refused(host: str) -> None:
    address = parse_address(f"https://{host}/", is_private_allowed=False)
    with pytest.raises(AddressError, match=r"not a public one|cannot be looked up"):
        resolve(address, is_private_allowed=False)


def test_the_origin_of_an_address_leaves_out_what_may_be_secret() -> None:
    for url, origin in (
        ("https://example.org/a/s3cr3t?key=s3cr3t", "https://example.org"),
        ("https://example.org:8443/", "https://example.org:8443"),
        ("https://[2606:4700::1]/x", "https://[2606:4700::1]"),
    ):
        assert parse_address(url, is_private_allowed=False).origin == origin


def test_a_message_comes_to_its_path_with_its_host(receiver: Receiver) -> None:
    assert post(receiver.url) == HttpReply(204, "")
    (message,) = receiver.messages
    assert message.path == "/hook?key=s3cr3t"
    assert message.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert message.body == BODY


def test_a_host_with_a_private_address_is_not_called(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    Names(monkeypatch, "127.0.0.1")
    with pytest.raises(SendError, match=r"has the address 127\.0\.0\.1"):
        post(f"https://{NAME}:{receiver.port}/", is_private_allowed=False)
    assert receiver.messages == []


def test_a_host_that_changes_its_address_after_the_look_up_is_called_at_the_checked_one(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.2")
    assert post(f"http://{NAME}:{receiver.port}/").status == 204
    assert names.count == 1
    assert receiver.messages[0].headers["host"] == f"{NAME}:{receiver.port}"


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.answers(307, Location=f"{receiver.url}&again=1")
    assert post(receiver.url).status == 307
    assert len(receiver.messages) == 1


def test_a_long_answer_is_not_read_to_its_end(receiver: Receiver) -> None:
    receiver.answers(200, "x" * 10_000_000)
    assert len(post(receiver.url).text) == 4_096


@pytest.mark.parametrize("beginning", [b"", b"HTTP/1.1 200 OK\r\nA: "])
def test_a_receiver_that_hangs_is_left(receiver: Receiver, beginning: bytes) -> None:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(beginning)
        while beginning and not receiver.ending.wait(0.05):
            handler.wfile.write(b"x")
        receiver.ending.wait(10)

    receiver.answer = drip
    with pytest.raises(SendError, match="no answer within"):
        post(receiver.url, seconds=0.4)
    receiver.ending.set()


def test_a_receiver_that_dies_in_the_middle_gave_no_answer(receiver: Receiver) -> None:
    def die(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 20")
        handler.connection.shutdown(socket.SHUT_RDWR)

    receiver.answer = die
    with pytest.raises(SendError):
        post(receiver.url)
    receiver.answer = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)
    with pytest.raises(SendError, match=r"connection failed|not HTTP"):
        post(receiver.url)


def test_what_is_not_http_and_a_closed_port_gave_no_answer(receiver: Receiver) -> None:
    receiver.answer = lambda handler: void(handler.wfile.write(b"220 mail.example\r\n"))
    with pytest.raises(SendError, match="not HTTP"):
        post(receiver.url)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(SendError, match="connection failed"):
            post(f"http://127.0.0.1:{closed.getsockname()[1]}/")


def void(_: object) -> None:
    """Make a statement of an expression."""


def test_tls_is_checked_for_the_host_that_the_address_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = make_certificate(tmp_path, NAME)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with Receiver(tls=context) as receiver:
        Names(monkeypatch, *["127.0.0.1"] * 3)
        url = f"https://{NAME}:{receiver.port}/"
        with pytest.raises(SendError, match="TLS failed"):
            post(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert post(url).status == 204
        with pytest.raises(SendError, match="TLS failed"):
            post(f"https://other.example.test:{receiver.port}/")
        assert len(receiver.messages) == 1


def make_certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a certificate that is its own issuer, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files
