"""Credentials that must never reach a branch or a file, by the formats their issuers gave them.

Only formats that can hardly be anything else: a refused patch costs an attempt, so a rule that
guesses (entropy, names such as `password`) would do more harm than good here. detect-secrets was
weighed: it lacks several of these formats, wants `requests`, and holds its settings in globals.

Every rule is linear in the text: a literal is looked for first, and what is looked at around it is
bounded or never looked at twice. A literal found is a step or some; `Steps` counts them. No pattern
may hold a repeat that can give back what it took, as a short hostile text could make it try for
seconds, with the interpreter's lock held (a test reads the patterns).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from . import keys

MAX_STEPS: Final = 200_000  # of one submission: well below a second
_FEWEST_DIFFERENT_BYTES: Final = 8  # `ghp_xxxxxxxx…` is a placeholder

# Published by their issuers for documentation and local emulators: they open nothing.
_SAMPLES: Final = {
    b"AKIAIOSFODNN7EXAMPLE": "AWS's documentation",
    b"AKIAI44QH8DHBEXAMPLE": "AWS's documentation",
    b"16C7e42F292c6912E7710c838347Ae178B4a": "GitHub's documentation, behind gho_ and its kin",
    b"1B4a2e77838347a7E420ce178F2E7c6912E169246c34E1ccbF66C46812d16D5B1A9Dc86A1498": (
        "GitHub's documentation, behind ghr_"
    ),
    b".eyJzdWIiOiIxMjM0NTY3ODkwIiwibmFtZSI6IkpvaG4gRG9lIiwi": "jwt.io's John Doe",
    b".eyJpc3MiOiJzdXBhYmFzZS1kZW1vIiwi": "Supabase's local stack",
    b"Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==": (
        "Azure's storage emulator"
    ),
    b"C2y6yDjf5/R+ob0N8A7Cgv30VRDJIWEHLM+4QDU5DE2nQ9nDuVTqobD4b8mGGyPMbIZnqyMsEcaGQy67XIw/Jw==": (
        "Azure's Cosmos DB emulator"
    ),
    b"MIIEogIBAAKCAQEA6NF8iallvQVp22WDkTkyrtvp": "Vagrant's insecure key, in every base box",
}


class TooManyStepsError(Exception):
    """A text holds more beginnings of credentials than one submission may have looked at."""


class Steps:
    """Counts what the rules look at; past `most` it raises TooManyStepsError."""

    def __init__(self, most: int | None = None) -> None:
        self.taken = 0
        self._most = most

    def take(self, count: int) -> None:
        self.taken += count
        if self._most is not None and self.taken > self._most:
            raise TooManyStepsError


@dataclass(frozen=True, slots=True)
class FoundSecret:
    """Where a credential stands, and of what sort.

    `identity` tells it from others of its sort, wherever it stands and however it is laid out.
    """

    start: int
    end: int
    sort: str
    identity: bytes


@dataclass(frozen=True, slots=True)
class _Look:
    """What a rule says of a place: the credential's extent and body, or where to look on."""

    start: int
    end: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class _Rule:
    """`begins` are literals that every credential of the sort holds; `look` gets their places.

    `steps` is what one look costs beside those of others.
    """

    sort: str
    begins: tuple[bytes, ...]
    look: Callable[[bytes, int], _Look | None]
    steps: int = 1


def find_secrets(text: bytes, steps: Steps) -> Iterator[FoundSecret]:
    """Yield the credentials of a text, rule by rule. Raises TooManyStepsError."""
    for rule in RULES:
        for begin in rule.begins:
            at = text.find(begin)
            while at >= 0:
                steps.take(rule.steps)
                look = rule.look(text, at)
                if look is not None and look.body and not _is_sample(look.body):
                    yield FoundSecret(look.start, look.end, rule.sort, look.body)
                at = text.find(begin, max(at + len(begin), look.end if look else 0))


def plain_text(content: bytes) -> bytes:
    """Return content as the rules read it: UTF-16 and UTF-32 are ASCII with NULs between."""
    return content.replace(b"\0", b"") if b"\0" in content else content


def redact(text: str) -> str:
    """Return a text with its credentials replaced by what they are: `[redacted: github token]`."""
    content = text.encode(errors="surrogatepass")
    redacted = redact_bytes(content)
    return text if redacted is content else redacted.decode(errors="surrogatepass")


def redact_bytes(content: bytes) -> bytes:
    """Redact as `redact`; content without a credential is returned itself."""
    spans = sorted(find_secrets(content, Steps()), key=lambda found: (found.start, -found.end))
    if not spans:
        return content
    parts: list[bytes] = []
    at = 0
    for found in spans:
        if found.start >= at:
            parts += content[at : found.start], f"[redacted: {found.sort.lower()}]".encode()
        at = max(at, found.end)
    return b"".join([*parts, content[at:]])


def _is_sample(body: bytes) -> bool:
    return any(sample in body for sample in _SAMPLES)


# Formats with a beginning of their own


@dataclass(frozen=True, slots=True)
class _Format:
    """A body behind a literal.

    `of`: the signs of such a body. What has one of them on both sides is a piece of something
    longer, such as base64, and no credential.
    """

    pattern: re.Pattern[bytes]
    of: bytes | None

    def __call__(self, text: bytes, at: int) -> _Look | None:
        match = self.pattern.match(text, at)
        if match is None:
            return None
        neighbours = text[at - 1 : at], text[match.end() : match.end() + 1]
        if self.of is not None and all(sign and sign in self.of for sign in neighbours):
            return None
        body = match.group(1)
        if b"EXAMPLE" in body or len(set(body)) < _FEWEST_DIFFERENT_BYTES:
            return None
        return _Look(at, match.end(), match.group())


def _format(sort: str, begins: str, body: str, *, of: bytes | None = None) -> _Rule:
    words = begins.split()
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, words))})({body})".encode())
    return _Rule(sort, tuple(map(str.encode, words)), _Format(pattern, of))


_UPPER = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASE32 = _UPPER + b"234567"
_ALNUM = _UPPER + _UPPER.lower() + b"0123456789"
_WORD = _ALNUM + b"_-"


# OpenAI's keys have their mark in the middle.
_OPENAI = re.compile(rb"(?<=[\w-]{20})T3BlbkFJ[\w-]{20,200}+")
_LONGEST_PREFIX = 200


def _look_for_openai_key(text: bytes, at: int) -> _Look | None:
    match = _OPENAI.match(text, at)
    if match is None:
        return None
    before = text[max(0, at - _LONGEST_PREFIX) : at]
    start = at - (len(before) - len(before.rstrip(_WORD)))
    return _Look(start, match.end(), text[start : match.end()])


# JSON web tokens: three runs with dots between, the first two of which begin alike.
_RUN = re.compile(rb"[\w-]*+")
_FEWEST_IN_RUN = 13
_FEWEST_IN_SIGNATURE = 20


def _end_of_run(text: bytes, at: int) -> int:
    match = _RUN.match(text, at)
    return match.end() if match else at


def _look_for_web_token(text: bytes, at: int) -> _Look | None:
    """Look at whole runs, and look on behind them: a run is gone through once."""
    header = _end_of_run(text, at)
    if header - at < _FEWEST_IN_RUN or text[header : header + 4] != b".eyJ":
        return _Look(at, header)
    payload = _end_of_run(text, header + 1)
    signature = _end_of_run(text, payload + 1) if text[payload : payload + 1] == b"." else payload
    if payload - header <= _FEWEST_IN_RUN or signature - payload <= _FEWEST_IN_SIGNATURE:
        return _Look(at, header)
    return _Look(at, signature, text[at:signature])


# Private keys: a header, then base64, whatever stands around the lines.
_KEY = b"PRIVATE KEY"
_HEADER_BEFORE = re.compile(rb"-{2,8}+[ ]?BEGIN (?:[A-Z0-9]{2,12}+ ){0,3}\Z")
_HEADER_AFTER = re.compile(rb"(?: BLOCK)?[ ]?--[-]{0,8}+")
_FOOTER = re.compile(rb"END [A-Z0-9 ]{0,40}+-{0,8}+")
_NEWLINES = re.compile(rb"\\{1,8}+[nr]|&#(?:10|13|x[aAdD]);|%0[aAdD]|\r")
_HEADER_LINE = re.compile(rb"[A-Za-z-]{1,40}+:(?: |\Z)")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]++={0,2}+\Z")
_MARKS = b" \t\"'`+-.,;:\\#/*|>%<!()[]{}="
_LONGEST_HEADER = 64
_LONGEST_KEY = 16_384  # of which the first bytes tell
_LOOKED_AT = 1_024
_ENOUGH_OF_KEY = 40
_COMMENT_WORD = 4  # `REM`, `dnl`
_FEWEST_OF_MANY = 16  # of base64 on a line with other words
_MAX_HEADER_LINES = 8


def _look_for_private_key(text: bytes, at: int) -> _Look | None:
    header = text[max(0, at - _LONGEST_HEADER) : at]
    begin = _HEADER_BEFORE.search(header, max(0, header.rfind(b"BEGIN") - 9))
    after = _HEADER_AFTER.match(text, at + len(_KEY))
    if begin is None or after is None:
        return None
    start = at - (len(header) - begin.start())
    rest = text[after.end() : after.end() + _LOOKED_AT]
    # Up to the next header only: what stands between two of them is looked at once.
    rest = rest.partition(b"--END")[0].partition(b"BEGIN ")[0]
    body, header_lines = b"", 0
    for line in _NEWLINES.sub(b"\n", rest).replace(b"\\/", b"/").split(b"\n"):
        if not line.strip(_MARKS):
            continue
        material = _key_material(line)
        header_lines += material == b""
        if material is None or header_lines > _MAX_HEADER_LINES:
            break
        body += material
        if len(body) >= _ENOUGH_OF_KEY:
            break
    body = body[:_ENOUGH_OF_KEY]
    if len(body) < _ENOUGH_OF_KEY or len(set(body)) < _FEWEST_DIFFERENT_BYTES:
        return None
    return _Look(start, _end_of_key(text, after.end()), body)


def _key_material(line: bytes) -> bytes | None:
    """Return the base64 of a line, empty for a header or nothing; None: here no key goes on."""
    words = [word for word in (each.strip(_MARKS[:-1]) for each in line.split()) if word]
    if not words:
        return b""
    shortest = 0
    if len(words) > 1:
        shortest = _FEWEST_OF_MANY
        if len(words[0]) <= _COMMENT_WORD:
            del words[0]
    if all(len(word) >= shortest and _BASE64.match(word) for word in words):
        return b"".join(words)
    return b"" if _HEADER_LINE.match(line.lstrip(_MARKS)) else None


def _end_of_key(text: bytes, start: int) -> int:
    """Return where a key ends: behind its footer, or with the last line that is of it."""
    stop = min(len(text), start + _LONGEST_KEY)
    dashes = text.find(b"--END", start, stop)
    footer = _FOOTER.match(text, dashes + 2) if dashes >= 0 else None
    if footer is not None:
        return footer.end()
    at = end = start
    for line in text[start:stop].split(b"\n"):
        material = _key_material(_NEWLINES.sub(b" ", line))
        if material is None and end > start:
            break
        at += len(line)
        if material != b"":
            end = at
        at += 1
    return end


# Database addresses: only a password that may be one, at a host that others may reach.
_DATABASES = (
    b"postgres mysql mariadb mongodb redis amqp mssql sqlserver oracle cockroachdb clickhouse neo4j"
)
_SCHEME = re.compile(rb"[a-z]{1,24}+(?:\+[a-z0-9_]{1,24}+)?://")
_ADDRESS = re.compile(rb"[^\s\"'`<>\0]{1,400}+")
_HOST = re.compile(r"\[[0-9a-f:.]{2,45}+\]|[a-z0-9_.-]{1,253}+")
_PLACEHOLDER_WORDS = re.compile(
    "change(?:_|-)?(?:me|this|it)|placeholder|redacted|password|passwd|passwort|example|secret"
    "|sample|postgres|dummy|mysql|admin|pass|your|test|user|root|guest|local|dev|db|pwd|my|pw|foo|bar"
)
_MAX_BESIDE_WORDS = 4  # `password123` is a placeholder too
# Hosts that a text may name; nothing binds to them here.
_HERE = ("0.0.0.0", "[::1]", "[::]", "localhost.localdomain", "host.docker.internal")  # noqa: S104
_EXAMPLES = ("example.com", "example.org", "example.net", "example", "test", "invalid", "localhost")


def _look_for_database(text: bytes, at: int) -> _Look | None:
    scheme = _SCHEME.match(text, at)
    address = _ADDRESS.match(text, scheme.end()) if scheme else None
    if address is None:
        return None
    given = address.group().decode(errors="replace")
    authority = re.split("[/?#]", given, maxsplit=1)[0]
    # A password may hold what ends an authority.
    login, at_sign, hosts = (authority if "@" in authority else given).rpartition("@")
    user, _, password = login.partition(":")
    if not at_sign or not password or _is_placeholder(password, user):
        return None
    hosts = re.split("[/?#]", hosts, maxsplit=1)[0].lower()
    if not any(map(_is_reachable, hosts.split(","))):
        return None
    end = address.start() + len((login + at_sign).encode()) + len(hosts.encode())
    return _Look(at, min(end, address.end()), text[at : address.end()])


def _is_placeholder(password: str, user: str) -> bool:
    plain = password.lower()
    is_filled_in_later = plain[0] in "$<{%[*(" or "${" in plain or "{{" in plain
    if plain == user.lower() or is_filled_in_later or "1234567890".startswith(plain):
        return True
    letters = [sign for sign in plain if sign.isalnum()]
    if len(set(letters)) < 3:  # `xxx`, `***`, `...`
        return True
    beside = _PLACEHOLDER_WORDS.sub("", plain)
    return beside != plain and sum(map(str.isalnum, beside)) <= _MAX_BESIDE_WORDS


def _is_reachable(host: str) -> bool:
    """Say whether a host is one on the network: no loopback, service's name or example."""
    match = _HOST.match(host)
    name = match.group().rstrip(".") if match else ""
    if ("." not in name and not name.startswith("[")) or name in _HERE:
        return False
    if name.startswith(("127.", "your")):
        return False
    return not any(name == each or name.endswith(f".{each}") for each in _EXAMPLES)


# Keys of this service: their checksum leaves no doubt.
def _look_for_own_key(text: bytes, at: int) -> _Look | None:
    key = text[at : at + keys.LENGTH]
    if not keys.is_well_formed(key.decode("latin-1")):
        return None
    return _Look(at, at + keys.LENGTH, key)


RULES: Final = (
    _Rule("private key", (_KEY,), _look_for_private_key, steps=20),
    _format("AWS access key", "AKIA ASIA", r"[A-Z2-7]{16}", of=_BASE32),
    _format("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{36,255}+"),
    _format("GitHub token", "github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59,255}+"),
    _format("GitLab token", "glpat- gldt- glrt-", r"[\w-]{20,100}+"),
    _format(
        "Slack token",
        "xoxb- xoxa- xoxp- xoxr- xoxs- xapp-",
        r"[0-9]{1,20}+-[0-9A-Za-z-]{16,250}+",
    ),
    _format("Slack webhook", "hooks.slack.com/services/", r"T\w{8,20}+/B\w{8,20}+/\w{20,80}+"),
    _format("Google API key", "AIza", r"[\w-]{35}", of=_WORD),
    _format("Google client secret", "GOCSPX-", r"[\w-]{28}"),
    _format("Stripe key", "sk_live_ rk_live_", r"[0-9A-Za-z]{24,250}+"),
    _Rule("OpenAI key", (b"T3BlbkFJ",), _look_for_openai_key),
    _format("Anthropic key", "sk-ant-", r"[a-z]{1,20}+[0-9]{2}-[\w-]{80,250}+"),
    _format("npm token", "npm_", r"[A-Za-z0-9]{36}", of=_ALNUM),
    _format("PyPI token", "pypi-AgEIcHlwaS5vcmc pypi-AgENdGVzdC5weXBpLm9yZ", r"[\w-]{50,500}+"),
    _format("SendGrid key", "SG.", r"[\w-]{22}\.[\w-]{43}"),
    _format("Hugging Face token", "hf_", r"[A-Za-z]{34}", of=_ALNUM),
    _format("DigitalOcean token", "dop_v1_ doo_v1_ dor_v1_", r"[a-f0-9]{64}"),
    _format("Azure storage key", "AccountKey=", r"[A-Za-z0-9+/]{86}=="),
    _Rule("JSON web token", (b"eyJ",), _look_for_web_token),
    _Rule("Autopack key", (keys.PREFIX.encode(),), _look_for_own_key),
    _Rule("database address", tuple(_DATABASES.split()), _look_for_database),
)
