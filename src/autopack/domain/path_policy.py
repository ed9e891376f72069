"""Which changes no patch may make, judged by the resulting tree (spec 04, 05)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Protocol

from .changes import (
    MODE_ABSENT,
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_LINK,
    MODE_SUBMODULE,
    FileChange,
    Violation,
)
from .secret_rules import added_secrets

DEFAULT_PROTECTED = (
    ".github/workflows/**",
    ".github/actions/**",
    ".github/autopack_allowed_signers",  # whose records count, and what judges them
    "scripts/check_promotion.py",
    "CODEOWNERS",
    "docs/CODEOWNERS",
    ".github/CODEOWNERS",
    ".gitlab/CODEOWNERS",
    ".gitmodules",
    ".lfsconfig",
    "**/.gitattributes",
    ".autonomous_runs/**",
    ".autopack/**",
)

_MODES = (MODE_ABSENT, MODE_FILE, MODE_EXECUTABLE, MODE_LINK)
_MOST_HOPS = 40  # as many as Linux follows
_LONGEST_TARGET = 4095
# What HFS+ leaves out of names, and the names that NTFS gives to `.git` and its kin besides.
_IGNORED_BY_HFS = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)
_NTFS_SHORT = re.compile(r"(git|gitmod|gi7eba|gitatt|gi7d29)~[0-9]+\Z")
_NTFS_LONG = {
    "git": ".git",
    "gitmod": ".gitmodules",
    "gi7eba": ".gitmodules",
    "gitatt": ".gitattributes",
    "gi7d29": ".gitattributes",
}


class Changes(Protocol):
    """A change and the tree it leads to. Paths and ids as in FileChange."""

    @property
    def files(self) -> tuple[FileChange, ...]: ...

    def read(self, oid: str) -> bytes:
        """Return a file's content."""

    def lookup(self, path: str) -> tuple[int, str] | None:
        """Return mode and id at a path of the resulting tree."""


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What is protected, what is allowed, and how much.

    Patterns: `*` and `?` stand for characters of one name, `**` for any number of whole names,
    none included, so `a/**` is `a` and all below it. A pattern is anchored at the top. Letter case
    is ignored, and so is whatever else macOS and Windows ignore in names.
    """

    protected: tuple[str, ...] = DEFAULT_PROTECTED
    opened: tuple[str, ...] = ()  # exceptions from `protected`, which a ruleset may grant
    allowed: tuple[str, ...] | None = None  # None: everywhere
    max_files: int = 2_000
    max_path_bytes: int = 1_000
    max_path_depth: int = 60


def judge(changes: Changes, policy: PathPolicy) -> list[Violation]:
    """Return every reason why policy refuses a change; none: it may be made."""
    if len(changes.files) > policy.max_files:
        detail = f"changes {len(changes.files)} files; at most {policy.max_files} are taken"
        return [Violation(changes.files[0].shown_path, "too_many_files", detail)]
    found = [each for change in changes.files for each in _judge_path(change, policy)]
    # Contents are looked at only where the paths are in order: they cost the most.
    return found or [*_judge_links(changes), *_judge_contents(changes)]


def _judge_path(change: FileChange, policy: PathPolicy) -> Iterator[Violation]:
    def refuse(rule: str, detail: str) -> Violation:
        return Violation(change.shown_path, rule, detail)

    for mode in (change.old_mode, change.new_mode):
        if mode not in _MODES:
            what = "a submodule" if mode == MODE_SUBMODULE else f"of mode {mode:06o}"
            yield refuse("mode", f"is {what}; only files and links are taken")
    size = len(change.path.encode(errors="surrogateescape"))
    if size > policy.max_path_bytes:
        yield refuse("path_limit", f"has {size} bytes; at most {policy.max_path_bytes} are taken")
    depth = change.path.count("/") + 1
    if depth > policy.max_path_depth:
        yield refuse("path_limit", f"is {depth} deep; at most {policy.max_path_depth} are taken")
        return
    names = _names(change.path)
    if any(name in ("", ".", "..", ".git") for name in names):
        yield refuse("git_dir", "leads into a git dir, or out of the repository, on some systems")
    elif any(_matches(names, pattern) for pattern in policy.protected) and not any(
        _matches(names, pattern) for pattern in policy.opened
    ):
        yield refuse("protected_path", "is protected; a person has to change it")
    elif change.new_mode == MODE_LINK and any(
        _stands_above(names, pattern) for pattern in policy.protected
    ):
        yield refuse("protected_path", "would be a link in place of a folder that is protected")
    if policy.allowed is not None and not any(_matches(names, each) for each in policy.allowed):
        allowed = ", ".join(policy.allowed)
        yield refuse("outside_allowed", f"is outside of what this phase may change: {allowed}")


def _judge_links(changes: Changes) -> Iterator[Violation]:
    links = {}
    for change in changes.files:
        if change.new_mode == MODE_LINK:
            links[_names(change.path)] = change
            problem = _link_problem(change.path, changes)
            if problem is not None:
                yield Violation(change.shown_path, "link", problem)
    for change in changes.files if links else ():
        names = _names(change.path)
        above = (links.get(names[:end]) for end in range(1, len(names) + 1))
        link = next((each for each in above if each not in (None, change)), None)
        if link is not None and change.new_mode != MODE_ABSENT:
            detail = f"would be written through the link {link.shown_path} on some systems"
            yield Violation(change.shown_path, "through_link", detail)


def _link_problem(path: str, changes: Changes) -> str | None:
    """Follow a link through the resulting tree, name by name, as an operating system would."""
    place = path.split("/")
    ahead: list[str] = []
    hops = 0
    while True:
        entry = changes.lookup("/".join(place)) if place else None
        if entry is not None and entry[0] == MODE_LINK:
            hops += 1
            if hops > _MOST_HOPS:
                return "is a link that goes round in a circle"
            target = changes.read(entry[1])
            problem = _target_problem(target)
            if problem is not None:
                return problem
            place.pop()
            ahead += reversed(target.decode(errors="surrogateescape").split("/"))
        if not ahead:
            return None
        name = ahead.pop()
        if name == "..":
            if not place:
                return "is a link that leads out of the repository"
            place.pop()
        elif name not in ("", "."):
            place.append(name)
            if _names(name) == (".git",):
                return "is a link that leads into a git dir"


def _target_problem(target: bytes) -> str | None:
    if not target or b"\0" in target or len(target) > _LONGEST_TARGET:
        return "is a link without a target that a system could follow"
    if target.startswith(b"/") or b"\\" in target or target[1:2] == b":":
        return "is a link to an absolute path, or one of Windows; only relative ones are taken"
    return None


def _judge_contents(changes: Changes) -> Iterator[Violation]:
    @cache
    def old_lines() -> frozenset[bytes]:
        # Of all the files: what a patch moves from one to another, it does not add.
        olds = {change.old_oid for change in changes.files if change.old_oid is not None}
        return frozenset(line for oid in olds for line in changes.read(oid).split(b"\n"))

    for change in changes.files:
        if change.new_oid is None or change.new_oid == change.old_oid:
            continue
        for secret in added_secrets(changes.read(change.new_oid), old_lines):
            detail = f"holds what looks like a {secret.sort} on line {secret.line}"
            yield Violation(change.shown_path, "secret", detail, line=secret.line)


@lru_cache(maxsize=4096)
def _names(path: str) -> tuple[str, ...]:
    """Split a path into names as the most forgetful file system would read them."""
    return tuple(_plain_name(name) for name in path.replace("\\", "/").split("/"))


def _plain_name(name: str) -> str:
    if name in (".", ".."):
        return name
    if name.isascii():
        plain = name.lower()
    else:
        composed = unicodedata.normalize("NFC", name.translate(_IGNORED_BY_HFS))
        plain = unicodedata.normalize("NFC", composed.casefold())
    plain = plain.partition(":")[0].rstrip(". ") or plain  # streams, and what NTFS cuts off
    short = _NTFS_SHORT.match(plain)
    return _NTFS_LONG[short.group(1)] if short else plain


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = []
    for name in _names(pattern):
        if name == "**":
            parts.append("(?:[^/]+/)*")
        else:
            parts.append(
                "".join({"*": "[^/]*", "?": "[^/]"}.get(mark, re.escape(mark)) for mark in name)
                + "/"
            )
    return re.compile("".join(parts))


def _matches(names: Iterable[str], pattern: str) -> bool:
    return _compiled(pattern).fullmatch("/".join(names) + "/") is not None


def _stands_above(names: tuple[str, ...], pattern: str) -> bool:
    """Whether a path is a folder that the pattern spells out on its way to what it protects."""
    return _names(pattern)[: len(names)] == names


def matches(path: str, pattern: str) -> bool:
    """Whether a path is one that a glob means; case does not matter."""
    return _matches(_names(path), pattern)
