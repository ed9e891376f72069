"""Credentials that must never reach a branch, by the formats their issuers gave them.

Only formats that can hardly be anything else: a refused patch costs an attempt, so a rule that
guesses (entropy, names such as `password`) would do more harm than good here. detect-secrets was
weighed: it lacks several of these formats, wants `requests`, and holds its settings in globals.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_FEWEST_DIFFERENT_BYTES = 8  # `ghp_xxxxxxxx…` is a placeholder


@dataclass(frozen=True, slots=True)
class FoundSecret:
    """Where a credential stands, and of what sort; what it is stays unsaid."""

    line: int
    sort: str


@dataclass(frozen=True, slots=True)
class _Format:
    """`begins` is looked for first: that is a hundred times faster than the pattern."""

    sort: str
    begins: tuple[bytes, ...]
    pattern: re.Pattern[bytes]


def _format(sort: str, begins: str, rest: str) -> _Format:
    words = begins.split()
    start = "|".join(re.escape(word) for word in words)
    pattern = rf"(?<![A-Za-z0-9])(?:{start})(?P<body>{rest})"
    return _Format(sort, tuple(map(str.encode, words)), re.compile(pattern.encode()))


_FORMATS = (
    _format(
        "private key",
        "-----BEGIN",
        # The first line of the key must follow, perhaps in quotes, escaped, or after headers.
        r" (?:[A-Z]{2,9} ){0,2}PRIVATE KEY(?: BLOCK)?-----(?:\\[rn]|[\s\"'+]){1,40}"
        r"(?:[A-Za-z-]{1,40}: [^\n]{0,200}\s{1,4}){0,4}[A-Za-z0-9+/]{32}",
    ),
    _format("AWS access key", "AKIA ASIA", r"[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _format("GitHub token", "ghp_ gho_ ghu_ ghs_ ghr_", r"[A-Za-z0-9]{36}"),
    _format("GitHub token", "github_pat_", r"[A-Za-z0-9]{22}_[A-Za-z0-9]{59}"),
    _format("GitLab token", "glpat- gldt- glrt-", r"[\w-]{20}"),
    _format("Slack token", "xoxb- xoxa- xoxp- xoxr- xoxs- xapp-", r"[0-9]+-[0-9A-Za-z-]{16,}"),
    _format("Slack webhook", "hooks.slack.com/services/", r"T\w{8,}/B\w{8,}/\w{20,}"),
    _format("Google API key", "AIza", r"[\w-]{35}(?![\w-])"),
    _format("Google client secret", "GOCSPX-", r"[\w-]{28}"),
    _format("Stripe key", "sk_live_ rk_live_", r"[0-9A-Za-z]{24,}"),
    _format("OpenAI key", "sk-", r"[\w-]{20,}T3BlbkFJ[\w-]{20,}"),
    _format("Anthropic key", "sk-ant-", r"[a-z]+[0-9]{2}-[\w-]{80,}"),
    _format("npm token", "npm_", r"[A-Za-z0-9]{36}(?![A-Za-z0-9])"),
    _format("PyPI token", "pypi-AgEIcHlwaS5vcmc", r"[\w-]{50,}"),
    _format("SendGrid key", "SG.", r"[\w-]{22}\.[\w-]{43}"),
    _format("Hugging Face token", "hf_", r"[A-Za-z]{34}(?![A-Za-z0-9])"),
    _format("DigitalOcean token", "dop_v1_ doo_v1_", r"[a-f0-9]{64}"),
    _format("Azure storage key", "AccountKey=", r"[A-Za-z0-9+/]{86}=="),
    _format("JSON web token", "eyJ", r"[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{20,}"),
)


def added_secrets(new: bytes, old_lines: Callable[[], frozenset[bytes]]) -> Iterator[FoundSecret]:
    """Yield the credentials on lines of `new` that are not among the old lines.

    The old lines are asked for only when there is something to compare.
    """
    for each in _FORMATS:
        if not any(word in new for word in each.begins):
            continue
        for match in each.pattern.finditer(new):
            body = match.group("body")
            if b"EXAMPLE" in body or len(set(body)) < _FEWEST_DIFFERENT_BYTES:
                continue
            start = new.rfind(b"\n", 0, match.start()) + 1
            end = new.find(b"\n", match.start())
            if new[start : end if end >= 0 else len(new)] not in old_lines():
                yield FoundSecret(new.count(b"\n", 0, start) + 1, each.sort)
