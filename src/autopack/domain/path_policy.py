"""The path policy: which changes a patch may make, checked on the new tree. (docs/paths.md)"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Protocol

from .changes import (
    MODE_ABSENT,
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_LINK,
    MODE_SUBMODULE,
    FileChange,
    Violation,
    printable_path,
)
from .closed_paths import CLOSED, leads_into_git_dir
from .links import LinkTable, link_problems, seen_through
from .paths import Globs, Names, folded, globs, names_of, windows_problem
from .secret_rules import MAX_STEPS, FoundSecret, Steps, TooManyStepsError, find_secrets, plain_text

_CI_PATHS: Final = (
    ".github/workflows/**",
    ".github/actions/**",
    "**/action.y*ml",  # an action that the repository defines, in any folder
    ".gitlab-ci.y*ml",
    ".gitlab/ci/**",
    ".gitea/workflows/**",
    ".forgejo/workflows/**",
    ".circleci/**",
    ".travis.y*ml",
    "Jenkinsfile*",
    "azure-pipelines*.y*ml",
    ".azure-pipelines/**",
    ".buildkite/**",
    "bitbucket-pipelines.y*ml",
    ".drone.y*ml",
    ".woodpecker*/**",
    ".appveyor.y*ml",
    "appveyor.y*ml",
    ".cirrus.*",
    ".semaphore/**",
    ".teamcity/**",
)
_REVIEW_PATHS: Final = (
    "scripts/check_promotion.py",
    "CODEOWNERS",
    "docs/CODEOWNERS",
    ".github/CODEOWNERS",
    ".gitlab/CODEOWNERS",
    ".gitea/CODEOWNERS",
    ".forgejo/CODEOWNERS",
    ".bitbucket/CODEOWNERS",
)
_CHECKOUT_PATHS: Final = (
    ".gitmodules",
    ".lfsconfig",
    "**/.gitattributes",
    "**/.envrc",
    ".husky/**",
    ".githooks/**",
    ".pre-commit-config.y*ml",
    "lefthook.*",
    ".lefthook.*",
    "**/mise.toml",
    "**/.mise.toml",
)
_AGENT_PATHS: Final = (
    "**/CLAUDE*.md",
    "**/AGENTS*.md",
    "**/GEMINI.md",
    "**/.claude/**",
    "**/.mcp.json",
    "**/.cursor/**",
    "**/.cursorrules",
    "**/.codex/**",
    "**/.gemini/**",
    "**/.windsurf/**",
    "**/.windsurfrules",
    "**/.clinerules/**",
    "**/.roo/**",
    "**/.continue/**",
    "**/.aider*",
    ".github/copilot*/**",
    ".github/instructions/**",
    ".github/prompts/**",
    ".github/agents/**",
    ".github/chatmodes/**",
    "**/.vscode/**",
    "**/*.code-workspace",
    "**/.idea/**",
    "**/.zed/**",
    "**/.devcontainer/**",
    "**/.devcontainer.json",
)
DEFAULT_PROTECTED: Final = (
    *CLOSED,
    *_CI_PATHS,
    *_REVIEW_PATHS,
    *_CHECKOUT_PATHS,
    *_AGENT_PATHS,
)

_MODES = (MODE_ABSENT, MODE_FILE, MODE_EXECUTABLE, MODE_LINK)


class Changes(Protocol):
    """A change and the tree it leads to. Paths and ids as in FileChange."""

    @property
    def files(self) -> tuple[FileChange, ...]: ...

    @property
    def text(self) -> bytes:
        """The patch as it was sent, which is stored; empty where there is none."""

    @property
    def links_before(self) -> LinkTable:
        """The links of the tree before the change."""

    @property
    def links(self) -> LinkTable:
        """The links of the resulting tree; the same object as `links_before` if no link changes."""

    def read(self, oid: str) -> bytes:
        """Return a file's content."""

    def was_there(self, path: str) -> bool:
        """Return whether the tree before the change has a file or folder at a path."""

    def names_in(self, folder: str) -> Iterable[str]:
        """Return the names in a folder of the resulting tree; an empty path is the top folder."""


@dataclass(frozen=True, slots=True)
class PathPolicy:
    """What is protected, what is allowed, and how much. Patterns as in `paths.Globs`."""

    protected: tuple[str, ...] = DEFAULT_PROTECTED
    closed: tuple[str, ...] = CLOSED  # protected too, and never opened by `opened`
    opened: tuple[str, ...] = ()  # exceptions from `protected` that a ruleset may grant
    allowed: tuple[str, ...] | None = None  # None: everywhere
    is_portable: bool = True  # new names must exist and differ on Windows and macOS too
    max_files: int = 2_000
    max_path_bytes: int = 1_000
    max_path_depth: int = 60


@dataclass(frozen=True, slots=True)
class _Protection:
    """A policy's patterns, extended by what they mean through the links of one tree."""

    protected: Globs  # the closed ones too
    closed: Globs
    opened: Globs

    @classmethod
    def of(cls, policy: PathPolicy, links: LinkTable) -> _Protection:
        return cls(
            globs(seen_through(links, (*policy.protected, *policy.closed))),
            globs(seen_through(links, policy.closed)),
            globs(seen_through(links, policy.opened)),
        )

    def covers(self, names: Names) -> bool:
        if not self.protected.match(names):
            return False
        return self.closed.match(names) or not self.opened.match(names)


def check_changes(changes: Changes, policy: PathPolicy) -> list[Violation]:
    """Return every reason why the policy refuses a change; empty: it is allowed. (docs/paths.md)"""
    if len(changes.files) > policy.max_files:
        detail = f"changes {len(changes.files)} files; at most {policy.max_files} are accepted"
        return [Violation(changes.files[0].printable_path, "too_many_files", detail)]
    protection = _Protection.of(policy, changes.links)
    found = [each for change in changes.files for each in _check_path(change, policy, protection)]
    if found:  # contents are read only where no path is refused: that is the most expensive check
        return found
    found += _check_links(changes, protection)
    named = {each.path for each in found}
    if policy.is_portable:
        found += [each for each in _check_names(changes) if each.path not in named]
    return [*found, *_check_contents(changes)]


def _check_path(
    change: FileChange, policy: PathPolicy, protection: _Protection
) -> Iterator[Violation]:
    def refuse(rule: str, detail: str) -> Violation:
        return Violation(change.printable_path, rule, detail)

    for mode in (change.old_mode, change.new_mode):
        if mode not in _MODES:
            what = "a submodule" if mode == MODE_SUBMODULE else f"of mode {mode:06o}"
            yield refuse("mode", f"is {what}; only files and links are accepted")
    size = len(change.path.encode(errors="surrogateescape"))
    if size > policy.max_path_bytes:
        yield refuse("path_limit", f"has {size} bytes, at most {policy.max_path_bytes} accepted")
    depth = change.path.count("/") + 1
    if depth > policy.max_path_depth:
        yield refuse(
            "path_limit", f"is {depth} deep, at most {policy.max_path_depth} levels accepted"
        )
        return
    names = names_of(change.path)
    if leads_into_git_dir(names):
        reason = "leads into a git directory or out of the repository on some systems"
        yield refuse("git_dir", reason)
    elif protection.covers(names):
        yield refuse("protected_path", "is protected; a person has to change it")
    elif change.new_mode == MODE_LINK and protection.protected.stands_above(names):
        yield refuse("protected_path", "would be a link in place of a folder that is protected")
    if policy.allowed is not None and not globs(policy.allowed).match(names):
        allowed = ", ".join(policy.allowed)
        yield refuse("outside_allowed", f"is outside of what this phase may change: {allowed}")


def _check_links(changes: Changes, protection: _Protection) -> Iterator[Violation]:
    """Check where the links of the resulting tree lead, and what is written through them."""
    before, after = changes.links_before, changes.links

    def problem_at(end: Names) -> str | None:
        return "which is protected" if protection.covers(end) else None

    for path, problem in link_problems(before, after, problem_at):
        yield Violation(printable_path(path), "link", problem)
    for change in changes.files if after else ():
        names = names_of(change.path)
        above = (after.link_at(names[:end]) for end in range(1, len(names) + 1))
        link = next((each for each in above if each not in (None, change.path)), None)
        if link is None or change.new_mode == MODE_ABSENT:
            continue
        if change.old_mode == MODE_ABSENT or link not in before.targets:
            detail = f"would be written through the link {printable_path(link)} on some systems"
            yield Violation(change.printable_path, "through_link", detail)


def _check_names(changes: Changes) -> Iterator[Violation]:
    """Check the names that a change adds; names that the tree had before are not checked."""

    @cache
    def by_fold(folder: str) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in changes.names_in(folder):
            found.setdefault(folded(name), []).append(name)
        return found

    @cache
    def problem(folder: str, name: str) -> str | None:
        path = f"{folder}/{name}" if folder else name
        if changes.was_there(path):
            return None
        reason = windows_problem(name)
        if reason is not None:
            return f"{printable_path(path)} {reason}"
        twins = [each for each in by_fold(folder)[folded(name)] if each != name]
        if not twins:
            return None
        return (
            f"{printable_path(path)} differs from {printable_path(twins[0])} beside it by case or"
            " Unicode form alone, which Windows and macOS cannot tell apart"
        )

    for change in changes.files:
        if change.old_mode != MODE_ABSENT:
            continue
        names = change.path.split("/")
        for at, name in enumerate(names):
            detail = problem("/".join(names[:at]), name)
            if detail is not None:
                yield Violation(change.printable_path, "portable_name", detail)
                break


def _check_contents(changes: Changes) -> Iterator[Violation]:
    """Look for credentials that the change completes, anywhere in the resulting files.

    A credential in the old side of any changed file is not new: it was there before, or was moved.
    """
    steps = Steps(MAX_STEPS)

    @cache
    def old_secrets() -> frozenset[tuple[str, bytes]]:
        olds = {change.old_oid for change in changes.files if change.old_oid is not None}
        contents = (plain_text(changes.read(oid)) for oid in olds)
        return frozenset(
            (found.sort, found.identity)
            for content in contents
            for found in find_secrets(content, steps)
        )

    def added(content: bytes) -> Iterator[FoundSecret]:
        for found in find_secrets(content, steps):
            if (found.sort, found.identity) not in old_secrets():
                yield found

    def held(path: str, content: bytes) -> Iterator[Violation]:
        for found in added(content):
            line = content.count(b"\n", 0, found.start) + 1
            detail = f"holds what looks like a {found.sort} on line {line}"
            yield Violation(path, "secret", detail, line=line)

    path = changes.files[0].printable_path
    try:
        is_found = False
        for change in changes.files:
            path = change.printable_path
            if change.new_oid is None or change.new_oid == change.old_oid:
                continue
            for violation in held(path, plain_text(changes.read(change.new_oid))):
                is_found = True
                yield violation
        new = [change for change in changes.files if change.old_mode == MODE_ABSENT]
        paths = "\n".join(change.path for change in new).encode(errors="surrogateescape")
        for found in added(paths):
            is_found = True
            path = new[paths.count(b"\n", 0, found.start)].printable_path
            yield Violation(path, "secret", f"has a name that looks like a {found.sort}")
        if not is_found:  # the patch's text is stored too, with its lines between the files
            path = "(patch)"
            yield from held(path, changes.text)
    except TooManyStepsError:
        detail = f"there are more than {MAX_STEPS:,} places where a credential could begin"
        yield Violation(path, "secret_limit", f"{detail}: send the change in parts")
