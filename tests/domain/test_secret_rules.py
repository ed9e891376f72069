"""Which credentials are seen, wherever they stand, and what is none."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable

import pytest

from autopack.domain import secret_rules
from autopack.domain.secret_rules import Steps, TooManyStepsError, find_secrets, plain_text, redact

pytestmark = pytest.mark.unit

# Built from parts, so that a scanner for secrets does not report this file.
MIXED = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7dE9fG1hJ3kL5mN7pQ9rS1tU3vW5xY7zA9bC1dE3fG5hJ7kL9"
SECRETS = {
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + MIXED[:64] + "\n",
    "private_key_in_json": '"-----BEGIN ' + "PRIVATE KEY-----\\n" + MIXED[:64] + '\\n"',
    "private_key_in_code": '  "-----BEGIN EC ' + 'PRIVATE KEY-----\\n"\n  "' + MIXED[:64] + '"',
    "encrypted_key": "-----BEGIN RSA "
    + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
    + MIXED[:64],
    "pgp_key": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----\n\n" + MIXED[:64],
    "key_in_comments": "# -----BEGIN RSA " + f"PRIVATE KEY-----\n# {MIXED[:64]}\n",
    "key_in_c_comments": " * -----BEGIN RSA "
    + f"PRIVATE KEY-----\n * {MIXED[:64]}\n * {MIXED[:64]}\n",
    "key_in_batch": "REM -----BEGIN " + f"PRIVATE KEY-----\nREM {MIXED[:64]}\nREM more",
    "key_quoted_in_mail": "> > -----BEGIN " + f"PRIVATE KEY-----\n> > {MIXED[:64]}",
    "key_in_a_diff": "+-----BEGIN " + f"PRIVATE KEY-----\n+{MIXED[:64]}\n",
    "key_on_one_line": "KEY=-----BEGIN "
    + f"PRIVATE KEY----- {MIXED[:64]} {MIXED[:64]} -----END X-----",
    "key_url_encoded": "-----BEGIN " + f"PRIVATE KEY-----%0A{MIXED[:64]}%0A",
    "key_escaped_twice": "-----BEGIN " + f"PRIVATE KEY-----\\\\n{MIXED[:64]}\\\\n",
    "key_in_short_lines": "-----BEGIN "
    + "PRIVATE KEY-----\n"
    + "\n".join(re.findall(".{16}", MIXED)),
    "ssh_key": "-----BEGIN OPENSSH " + f"PRIVATE KEY-----\n{MIXED[:70]}\n",
    "aws": "key = AKIA" + "Q3ZCDEFGHIJKLMNO",
    "github": "ghp_" + MIXED[:36],
    "github_fine": "github_pat_" + MIXED[:22] + "_" + MIXED[:59],
    "gitlab": "glpat-" + MIXED[:20],
    "slack": "xoxb-" + "123456789012-" + MIXED[:24],
    "slack_hook": "https://hooks.slack.com/services/" + "T12345678/B12345678/" + MIXED[:24],
    "google": "AIza" + MIXED[:35],
    "stripe": "sk_live_" + MIXED[:24],
    "openai": "sk-" + MIXED[:20] + "T3Blbk" + "FJ" + MIXED[:20],
    "anthropic": "sk-ant-" + "api03-" + MIXED[:80] + "-AA",
    "npm": "//registry/:_authToken=npm_" + MIXED[:36],
    "pypi": "pypi-" + "AgEIcHlwaS5vcmc" + MIXED[:60],
    "sendgrid": "SG." + MIXED[:22] + "." + MIXED[:43],
    "azure": "AccountKey=" + MIXED[:86] + "==",
    "postgres": "postgres" + "ql://svc:" + "q8Zk3vPw" + "@db.acme-corp.io:5432/app",
    "postgres_driver": "url = 'postgres" + "ql+psycopg2://svc:" + "q8Zk3vPw" + "@10.1.2.3/app'",
    "mongo": "mongodb"
    + "+srv://svc:"
    + "q8Zk3vPw"
    + "@a.example.com,cluster0.mongodb.net/x?retry=1",
    "redis_without_user": "redis" + "s://:" + "q8Zk3vPw" + "@cache.acme-corp.io:6380/0",
    "slash_in_password": "mysql" + "://root:" + "q8/Zk3#vPw" + "@mysql.acme-corp.io/db",
    "ipv6": "amqp" + "://svc:" + "q8Zk3vPw" + "@[2001:db8::1]:5672/",
    "jwt": "Bearer eyJ" + MIXED[:20] + ".eyJ" + MIXED[:30] + "." + MIXED[:40],
}
NO_SECRETS = {
    "placeholder": "ghp_" + "x" * 36,
    "aws_example": "AKIA" + "IOSFODNN7EXAMPLE",
    "slack_webhook_placeholder": "https://hooks.slack.com/services/T00000000/B00000000/" + "X" * 24,
    "key_header_alone": "starts with -----BEGIN " + "PRIVATE KEY----- and so on",
    "public_key": "-----BEGIN PUBLIC KEY-----\n" + MIXED[:64],
    "certificate": "-----BEGIN CERTIFICATE-----\n" + MIXED[:64],
    "word": "task-" + MIXED[:40],
    "key_in_prose": "-----BEGIN "
    + "PRIVATE KEY-----\nline by line the base64 of the key follows here",
    "key_cut_short": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEpAIBAAKCAQEA0Z...\n",
    "key_then_code": 'if "-----BEGIN '
    + 'PRIVATE KEY-----" in text:\n    return SomeVeryLongNameOfAClassThatIsNoKeyAtAll(text)',
    "test_key": "sk_test_" + MIXED[:24],
    "hash": hashlib.sha256(b"x").hexdigest(),
    "in_base64": "AAAA" + "AKIA" + MIXED,
    "in_base32": "ABCD" + "AKIA" + "Q3ZCDEFGHIJKLMNO" + "PQRS",
    "in_base64url": "Zm9v" + "AIza" + MIXED[:60],
}


DATABASES = (
    "postgresql://autopack:autopack@localhost:5432/autopack",  # the guide's own
    "postgresql://svc:q8Zk3vPw@localhost/db",
    "postgresql://svc:q8Zk3vPw@127.0.0.1/db",
    "postgresql://svc:q8Zk3vPw@[::1]:5432/db",
    "postgresql://svc:q8Zk3vPw@postgres:5432/db",
    "mysql://svc:q8Zk3vPw@db.example.com/db",
    "mysql://svc:q8Zk3vPw@sub.db.example.org./db",
    "redis://:q8Zk3vPw@cache.test",
    "postgresql://svc:svc@db.acme-corp.io/db",
    "postgresql://svc:password@db.acme-corp.io/db",
    "postgresql://svc:MyPassword123@db.acme-corp.io/db",
    "postgresql://svc:change_me!@db.acme-corp.io/db",
    "postgresql://svc:xxxxxxxx@db.acme-corp.io/db",
    "postgresql://svc:${DB_PASSWORD}@db.acme-corp.io/db",
    "postgresql://svc:<password>@db.acme-corp.io/db",
    "postgresql://svc:{password}@{host}.acme-corp.io/db",
    "postgresql://svc:%s@db.acme-corp.io/db",
    "postgresql://svc:[YOUR-PASSWORD]@db.abcdef.supabase.co:5432/postgres",
    "postgresql://svc:q8Zk3vPw@$HOST/db",
    "postgresql://svc@db.acme-corp.io/db",
    "postgresql://db.acme-corp.io/db?email=a:b@c",
    "see postgresql://docs.postgresql.org and mail a@b.org",
)


def sorts(text: bytes) -> list[str]:
    return [found.sort for found in find_secrets(plain_text(text), Steps())]


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_credential_is_found_at_any_place(text: str) -> None:
    assert len(sorts(b"first\n" + text.encode() + b"\nlast\n")) == 1
    assert len(sorts(text.encode())) == 1
    for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        assert len(sorts(f"first\n{text}\nlast\n".encode(encoding))) == 1


GLUED = [
    name for name in SECRETS if "key_" not in name and name not in ("encrypted_key", "pgp_key")
]


@pytest.mark.parametrize("name", GLUED)
def test_a_credential_is_seen_when_it_is_glued_to_a_letter(name: str) -> None:
    assert len(sorts(b"x" + SECRETS[name].encode())) == 1
    assert len(sorts(b'token = "\\n' + SECRETS[name].encode())) == 1
    assert len(sorts(SECRETS[name].encode() + b"z")) == 1


@pytest.mark.parametrize("text", NO_SECRETS.values(), ids=NO_SECRETS)
def test_what_only_looks_like_a_credential_is_none(text: str) -> None:
    assert sorts(text.encode()) == []
    assert redact(text) == text


@pytest.mark.parametrize("address", DATABASES)
def test_an_address_without_a_password_for_a_reachable_host_is_not_a_credential(
    address: str,
) -> None:
    assert sorts(f"url = '{address}'\n".encode()) == []
    assert sorts(address.encode()) == []


@pytest.mark.parametrize("name", SECRETS)
def test_a_credential_is_redacted_and_its_surroundings_stay(name: str) -> None:
    text = SECRETS[name]
    (found,) = find_secrets(text.encode(), Steps())
    redacted = redact(f"it said: {text}\nand went on — é")
    assert f"[redacted: {found.sort.lower()}]" in redacted
    assert redacted.startswith("it said: ")
    assert redacted.endswith("and went on — é")
    for piece in (MIXED[:24], MIXED[24:48], "Q3ZCDEFG", "Zk3", "q8"):
        assert piece not in redacted
    assert redact(redacted) == redacted


@pytest.mark.parametrize("length", [20, 60, 170])
def test_an_openai_key_is_redacted_from_its_first_letter_on(length: int) -> None:
    """Its mark stands in the middle, so what is before the mark is part of the key."""
    before = "sk-proj-" + (MIXED * 2)[:length]
    key = before + "T3Blbk" + "FJ" + MIXED[:60]
    assert redact(f"key: {key}.") == "key: [redacted: openai key]."
    (found,) = find_secrets(f"key: {key}.".encode(), Steps())
    assert found.identity == key.encode()


def test_a_whole_key_is_redacted_with_or_without_its_end() -> None:
    key = "-----BEGIN RSA " + "PRIVATE KEY-----\n" + f"{MIXED[:64]}\n" * 20
    footer = "-----END RSA " + "PRIVATE KEY-----"
    assert redact(f"a\n{key}{footer}\nb") == "a\n[redacted: private key]\nb"
    assert redact(f"a\n{key}then words\n") == "a\n[redacted: private key]\nthen words\n"
    assert redact(f"a {key}{footer} b {key}{footer}") == (
        "a [redacted: private key] b [redacted: private key]"
    )


# What their issuers publish, taken apart as above.
JOHN_DOE = "eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwiaWF0IjoxNTE2MjM5MDIyfQ"
SAMPLES = (
    "AKIA" + "I44QH8DHBEXAMPLE",
    "gho_" + "16C7e42F292c6912E7710c838347Ae178B4a",
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9."
    + JOHN_DOE
    + ".SflKxwRJSMeKKF2QT4fwpMeJf36POk6yJV_adQssw5c",
    "AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBek"
    "soGMGw==",
    "-----BEGIN RSA "
    + "PRIVATE KEY-----\nMIIEogIBAAKCAQEA6NF8iallvQVp22WDkTkyrtvp9eWW6A8YVr+kz4TjGYe7\n",
)


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_published_sample_is_no_credential(sample: str) -> None:
    assert sorts(sample.encode()) == []


MEGABYTE = 1_000_000
WORST: dict[str, Callable[[bytes], bytes]] = {
    "with a body too short": lambda begin: begin + MIXED.encode()[:15] + b"\n",
    "with a body too long": lambda begin: begin + MIXED.encode() * 20,
    "as a key's header": lambda begin: b"-----BEGIN RSA " + begin + b"-----\nA: b\n",
    "as a key's header and lines": lambda begin: b"-----BEGIN " + begin + b"-----" + b"\n" * 90,
    "as a token's parts": lambda begin: begin + b"aaaaaaaaaaaaa.eyJ",
    "as an address": lambda begin: begin + b"://a:" + b"b@" * 150,
    "behind backslashes": lambda begin: begin + b"-----" + b"\\" * 200,
}


@pytest.mark.parametrize("rule", secret_rules.RULES, ids=lambda rule: rule.sort)
@pytest.mark.parametrize("worst", WORST.values(), ids=WORST)
def test_a_megabyte_of_a_rule_s_worst_text_takes_steps_in_proportion(
    rule: secret_rules._Rule, worst: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(size: int) -> int:
        """Count the literals looked at and, beyond what is bounded, the bytes gone through."""
        piece = worst(rule.begins[0])
        text, steps, gone_through = piece * (size // len(piece)), Steps(), 0

        def look(text: bytes, at: int) -> secret_rules._Look | None:
            nonlocal gone_through
            found = rule.look(text, at)
            gone_through += found.end - found.start if found else 0
            return found

        counted = secret_rules._Rule(rule.sort, rule.begins[:1], look, rule.steps)
        monkeypatch.setattr(secret_rules, "RULES", (counted,))
        for _ in find_secrets(text, steps):
            pass
        return steps.taken + gone_through

    tenth, whole = cost(MEGABYTE // 10), cost(MEGABYTE)
    assert whole <= 2 * MEGABYTE
    assert whole <= 10.5 * tenth + 100


def test_a_text_of_too_many_beginnings_is_given_up() -> None:
    with pytest.raises(TooManyStepsError):
        list(find_secrets(b"ghp_" * 101, Steps(100)))
    assert list(find_secrets(b"ghp_" * 100, Steps(100))) == []


def test_redacting_keeps_what_is_no_text() -> None:
    assert redact("\ud800 ghp_" + MIXED[:36]) == "\ud800 [redacted: github token]"
    content = base64.b64decode(base64.b64encode(bytes(range(256))))
    assert secret_rules.redact_bytes(content) is content
