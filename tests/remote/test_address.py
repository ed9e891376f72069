"""What AUTOPACK_GIT_REMOTE may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from autopack.gitrepo.address import AddressError, RemoteAddress, is_remote_name, parse_address

pytestmark = pytest.mark.unit
TOP = Path("/top")


@pytest.mark.parametrize(
    ("text", "protocol", "url"),
    [
        ("/srv/repo.git", "file", "/srv/repo.git"),
        ("/srv/odd:name.git", "file", "/srv/odd:name.git"),
        ("../repo.git", "file", "/top/../repo.git"),
        ("./repo.git", "file", "/top/repo.git"),
        ("sub/repo.git", "file", "/top/sub/repo.git"),
        ("file:///srv/repo.git", "file", "file:///srv/repo.git"),
        ("https://example.org/a/b.git", "https", "https://example.org/a/b.git"),
        ("HTTPS://example.org/a", "https", "https://example.org/a"),
        ("http://127.0.0.1:8080/b.git", "http", "http://127.0.0.1:8080/b.git"),
        ("http://[::1]:8080/b.git", "http", "http://[::1]:8080/b.git"),
        ("ssh://git@example.org:22/a.git", "ssh", "ssh://git@example.org:22/a.git"),
        ("git@example.org:a/b.git", "ssh", "git@example.org:a/b.git"),
        ("example.org:a.git", "ssh", "example.org:a.git"),
    ],
)
def test_addresses_that_git_supports_are_accepted(text: str, protocol: str, url: str) -> None:
    address = parse_address(text, TOP)
    assert (address.protocol, address.url) == (protocol, url)
    assert (address.username, address.password) == (None, None)


@pytest.mark.parametrize(
    ("text", "username", "password"),
    [
        ("https://ada:s3cret@example.org/a.git", "ada", "s3cret"),
        ("https://ada:p%40ss%2Fw@example.org/a.git", "ada", "p@ss/w"),
        ("https://ada:p@ss@example.org/a.git", "ada", "p@ss"),
        ("https://ghp_t0ken@example.org/a.git", "ghp_t0ken", ""),
    ],
)
def test_credentials_are_removed_from_the_address(text: str, username: str, password: str) -> None:
    address = parse_address(text, TOP)
    assert address.url == "https://example.org/a.git"
    assert address.origin == "https://example.org"
    assert (address.username, address.password) == (username, password)
    assert password not in repr(address) or not password
    assert username not in repr(address)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not an address"),
        ("--upload-pack=evil", "not an address"),
        ("https://example.org/a\nb", "not an address"),
        ("ext::sh -c evil", "not an address"),
        ("git://example.org/a.git", "begins with git://"),
        ("ftp://example.org/a.git", "begins with ftp://"),
        ("https://example.org", "has no host or no path"),
        ("https:///a.git", "has no host or no path"),
        ("https://example.org:port/a.git", "has no host or no path"),
        ("https://-oProxyCommand=evil/a.git", "has no host or no path"),
        ("ssh://-oProxyCommand=evil/a.git", "has no host or no path"),
        ("ssh://-l@example.org/a.git", "has no user"),
        ("-oProxyCommand=evil:a.git", "not an address"),
        ("git@-oProxyCommand=evil:a.git", "has no host"),
        ("ssh://git:S3CRET@example.org/a.git", "ssh does not accept:"),
        ("https://ada:S3CRET/x@example.org/a.git", "encode that as %2F"),
        ("https://ada:S3CRET%0Ax@example.org/a.git", "control character"),
        ("https://ada:S3CRET@example.org/a.git?x=y", "has a . or # in it"),
        ("ftp://ada:S3CRET@example.org/a.git", "begins with ftp://"),
    ],
)
def test_what_git_would_take_otherwise_is_refused_without_its_password(
    text: str, reason: str
) -> None:
    with pytest.raises(AddressError, match=reason) as refusal:
        parse_address(text, TOP)
    assert "S3CRET" not in str(refusal.value)


def test_a_bare_word_is_the_name_of_a_remote() -> None:
    assert is_remote_name("origin")
    assert is_remote_name("backup.git")
    assert not is_remote_name("./backup.git")
    assert not is_remote_name("example.org:a.git")


def test_secrets_go_from_a_text_however_they_are_spelled() -> None:
    address = RemoteAddress("https://example.org/a", "https", "ada", "p@ss/w")
    assert address.clean("said p@ss/w and p%40ss%2Fw to ada") == "said *** and *** to ada"
    token = RemoteAddress("https://example.org/a", "https", "ghp_t0ken", "")
    assert token.clean("https://ghp_t0ken@example.org") == "https://***@example.org"
