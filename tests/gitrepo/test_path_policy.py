"""What no patch may change, in whichever spelling."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopack.domain.changes import (
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_LINK,
    MODE_SUBMODULE,
    FileChange,
)
from autopack.domain.path_policy import PathPolicy, judge

pytestmark = pytest.mark.unit

Side = tuple[int, bytes]
DEFAULT = PathPolicy()


@dataclass
class Tree:
    """A change in memory: the tree before, and what the change makes of it."""

    before: Mapping[str, Side]
    after: Mapping[str, Side]
    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def files(self) -> tuple[FileChange, ...]:
        changed = sorted(
            path
            for path in {*self.before, *self.after}
            if self.before.get(path) != self.after.get(path)
        )
        absent = (0, b"")
        return tuple(
            FileChange(
                path,
                self.before.get(path, absent)[0],
                self.after.get(path, absent)[0],
                self._oid(self.before, path),
                self._oid(self.after, path),
            )
            for path in changed
        )

    def _oid(self, side: Mapping[str, Side], path: str) -> str | None:
        if path not in side:
            return None
        oid = hashlib.sha1(side[path][1], usedforsecurity=False).hexdigest()
        self.contents[oid] = side[path][1]
        return oid

    def read(self, oid: str) -> bytes:
        return self.contents[oid]

    def lookup(self, path: str) -> tuple[int, str] | None:
        if any(name.startswith(f"{path}/") for name in self.after):
            return 0o040000, "0" * 40
        oid = self._oid(self.after, path)
        return None if oid is None else (self.after[path][0], oid)


def rules(
    after: Mapping[str, Side],
    before: Mapping[str, Side] | None = None,
    policy: PathPolicy = DEFAULT,
) -> list[str]:
    return [each.rule for each in judge(Tree(before or {}, after), policy)]


def file(content: bytes = b"x\n") -> Side:
    return MODE_FILE, content


def link(target: str) -> Side:
    return MODE_LINK, target.encode()


PROTECTED = (
    ".github/workflows/ci.yml",
    ".github/workflows/deep/er/ci.yml",
    ".GitHub/WorkFlows/ci.yml",
    ".github/workflows",
    ".github /workflows/ci.yml",
    ".github./workflows./ci.yml",
    ".github\\workflows\\ci.yml",
    ".github/work\u200cflows/ci.yml",
    ".github/workflows::$DATA",
    ".github/actions/x/action.yml",
    ".github/autopack_allowed_signers",
    "Scripts/Check_Promotion.py",
    "CODEOWNERS",
    "codeowners",
    "docs/CODEOWNERS",
    ".github/CODEOWNERS",
    ".gitlab/CODEOWNERS",
    ".gitmodules",
    ".GITMODULES",
    "gitmod~1",
    "GI7EBA~1",
    ".gitmodules:$DATA",
    ".lfsconfig",
    ".gitattributes",
    "deep/er/.gitattributes",
    "deep/gitatt~1",
    ".autonomous_runs/run/x.md",
    ".autopack/x",
)
INTO_GIT = (
    ".git/config",
    ".git",
    "d/.git/hooks/x",
    ".GIT/x",
    ".Git /x",
    ".git./x",
    ".git. . /x",
    "git~1/x",
    "GIT~1/x",
    ".git::$INDEX_ALLOCATION/x",
    ".g\u200cit/x",
    "\ufeff.git/x",
    ".gi\u206ft/x",
    "a\\.git\\config",
    "a\\..\\x",
    "../x",
    "a//b",
    "/etc/passwd",
    "./x",
)
FREE = (
    "src/app.py",
    ".github/ISSUE_TEMPLATE/x.md",
    ".github/workflows.md",
    ".github/dependabot.yml",
    "docs/workflows/ci.yml",
    "src/CODEOWNERS",
    ".gitignore",
    ".gitkeep",
    "a/.gitmodules.txt",
    ".gitx/y",
    "git~1x",
    "ü/ß/日本.txt",
    "autopack/x",
    "...",
)


@pytest.mark.parametrize("path", PROTECTED)
def test_a_protected_path_is_refused_in_every_spelling_and_on_both_sides(path: str) -> None:
    assert rules({path: file()}) == ["protected_path"]
    assert rules({}, {path: file()}) == ["protected_path"]
    assert rules({path: file(b"1")}, {path: file(b"2")}) == ["protected_path"]
    assert rules({"free": file()}, {path: file()}) == ["protected_path"]  # a rename away


@pytest.mark.parametrize("path", INTO_GIT)
def test_a_path_into_a_git_dir_or_out_of_the_tree_is_refused(path: str) -> None:
    assert rules({path: file()}) == ["git_dir"]


@pytest.mark.parametrize("path", FREE)
def test_a_path_that_merely_resembles_them_is_free(path: str) -> None:
    assert rules({path: file()}) == []


def test_a_link_in_place_of_a_protected_folder_is_refused() -> None:
    assert rules({".github": link("elsewhere")}) == ["protected_path"]
    assert rules({".github/workflows": link("../elsewhere")}) == ["protected_path"]
    assert rules({"src": link("elsewhere")}) == []


def test_a_ruleset_opens_some_paths_and_never_the_git_dir() -> None:
    policy = PathPolicy(opened=(".github/workflows/docs-*.yml", "**"))
    assert rules({".github/workflows/docs-1.yml": file()}, policy=policy) == []
    assert rules({".git/config": file()}, policy=policy) == ["git_dir"]


def test_a_phase_may_be_kept_to_some_folders() -> None:
    policy = PathPolicy(allowed=("src/**", "*.md"))
    assert rules({"src/a/b": file(), "README.md": file()}, policy=policy) == []
    assert rules({"docs/README.md": file()}, policy=policy) == ["outside_allowed"]
    assert rules({"src/a": file()}, {"lib/a": file()}, policy) == ["outside_allowed"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a", "a", True),
        ("a", "a/b", False),
        ("a", "b/a", False),
        ("a/*", "a/b", True),
        ("a/*", "a", False),
        ("a/*", "a/b/c", False),
        ("a/**", "a", True),
        ("a/**", "a/b/c", True),
        ("a/**", "ab", False),
        ("**/a", "a", True),
        ("**/a", "x/y/a", True),
        ("**/a", "x/y/ab", False),
        ("a/**/b", "a/b", True),
        ("a/**/b", "a/x/y/b", True),
        ("*.y?l", "c.yml", True),
        ("*.y?l", "x/c.yml", False),
        ("a[bc]+(.)", "a[bc]+(.)", True),
        ("a[bc]", "ab", False),
        ("Ä*", "äx", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    policy = PathPolicy(protected=(pattern,))
    assert (rules({path: file()}, policy=policy) == ["protected_path"]) is expected


@pytest.mark.parametrize("mode", [MODE_SUBMODULE, 0o040000, 0o100664, 0o107777, 0o120777])
def test_only_files_and_links_are_taken(mode: int) -> None:
    assert rules({"a": (mode, b"x")}) == ["mode"]
    assert rules({}, {"a": (mode, b"x")}) == ["mode"]
    assert rules({"a": (MODE_EXECUTABLE, b"x")}, {"a": file(b"x")}) == []


def test_the_result_keeps_to_the_limits() -> None:
    many = {f"f{number}": file() for number in range(2_001)}
    assert rules(many) == ["too_many_files"]
    assert rules({"ü" * 501: file()}) == ["path_limit"]
    assert rules({"a/" * 60 + "b": file()}) == ["path_limit"]
    assert rules({"a/" * 59 + "b": file()}) == []


LINKS: dict[str, tuple[dict[str, Side], list[str]]] = {
    "beside": ({"d/l": link("x"), "d/x": file()}, []),
    "up_and_down": ({"d/e/l": link("../../x/y")}, []),
    "to_the_top": ({"d/l": link("..")}, []),
    "dangling_inside": ({"l": link("not/there")}, []),
    "dots": ({"d/l": link("./.././d//x")}, []),
    "out": ({"l": link("..")}, ["link"]),
    "out_of_a_folder": ({"d/l": link("../../x")}, ["link"]),
    "out_and_in_again": ({"l": link("../repo/x")}, ["link"]),
    "absolute": ({"l": link("/etc/passwd")}, ["link"]),
    "windows": ({"l": link("..\\..\\x")}, ["link"]),
    "drive": ({"l": link("C:/x")}, ["link"]),
    "empty": ({"l": link("")}, ["link"]),
    "nul": ({"l": link("a\0b")}, ["link"]),
    "endless": ({"l": link("x" * 5000)}, ["link"]),
    "into_git": ({"l": link(".git/config")}, ["link"]),
    "into_git_upper": ({"d/l": link("../.GIT/hooks")}, ["link"]),
    "circle": ({"a": link("b"), "b": link("a")}, ["link", "link"]),
    "itself": ({"l": link("l/x")}, ["link"]),
    "through_another_out": ({"a/b/up": link("../.."), "l": link("a/b/up/../x")}, ["link"]),
    "through_another_inside": ({"a/b/up": link(".."), "l": link("a/b/up/x")}, []),
    "shorter_than_it_looks": ({"a/b": link("../c"), "c/x": file(), "l": link("a/b/../x")}, []),
    "shorter_and_out": ({"a/b": link("../c"), "c/x": file(), "l": link("a/b/../../x")}, ["link"]),
    "same_name_in_another_case": ({"L": link("d"), "l/x": file()}, ["through_link"]),
}


@pytest.mark.parametrize(("after", "expected"), LINKS.values(), ids=LINKS)
def test_a_link_stays_inside(after: dict[str, Side], expected: list[str]) -> None:
    assert rules(after) == expected


def test_a_link_that_leads_through_an_old_one_is_followed() -> None:
    old = {"old": link("../outside")}
    assert rules({**old, "l": link("old/x")}, old) == ["link"]
    assert rules(old, old) == []


# Built from parts, so that nobody's scanner takes this file for a leak.
MIXED = "aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5bC7dE9fG1hJ3kL5mN7pQ9rS1tU3vW5xY7zA9bC1dE3fG5hJ7kL9"
SECRETS = {
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----\n" + MIXED[:64] + "\n",
    "private_key_in_json": '"-----BEGIN ' + "PRIVATE KEY-----\\n" + MIXED[:64] + '\\n"',
    "private_key_in_code": '  "-----BEGIN EC ' + 'PRIVATE KEY-----\\n"\n  "' + MIXED[:64] + '"',
    "encrypted_key": "-----BEGIN RSA "
    + "PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,00\n\n"
    + MIXED[:64],
    "pgp_key": "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----\n\n" + MIXED[:64],
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
    "jwt": "Bearer eyJ" + MIXED[:20] + ".eyJ" + MIXED[:30] + "." + MIXED[:40],
}
NO_SECRETS = {
    "placeholder": "ghp_" + "x" * 36,
    "aws_example": "AKIA" + "IOSFODNN7EXAMPLE",
    "key_header_alone": "starts with -----BEGIN " + "PRIVATE KEY----- and so on",
    "public_key": "-----BEGIN PUBLIC KEY-----\n" + MIXED[:64],
    "certificate": "-----BEGIN CERTIFICATE-----\n" + MIXED[:64],
    "word": "task-" + MIXED[:40],
    "within_a_word": "xghp_" + MIXED[:36],
    "test_key": "sk_test_" + MIXED[:24],
    "hash": hashlib.sha256(b"x").hexdigest(),
    "in_base64": "AAAA" + "AKIA" + MIXED,
}


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_secret_on_an_added_line_is_named_and_not_repeated(text: str) -> None:
    new = b"first\nsecond\n" + text.encode() + b"\nlast\n"
    (found,) = judge(Tree({"a": file(b"first\n")}, {"a": file(new)}), DEFAULT)
    assert (found.path, found.rule, found.line) == ("a", "secret", 3)
    assert MIXED[:10] not in found.detail
    assert "Q3ZC" not in found.detail


@pytest.mark.parametrize("text", SECRETS.values(), ids=SECRETS)
def test_a_secret_that_was_there_before_is_not_held_against_the_patch(text: str) -> None:
    old = b"x\n" + text.encode() + b"\ny\n"
    assert rules({"a": file(b"new line\n" + old)}, {"a": file(old)}) == []
    assert rules({"b": file(b"new line\n" + old)}, {"a": file(old)}) == []  # moved


@pytest.mark.parametrize("text", NO_SECRETS.values(), ids=NO_SECRETS)
def test_what_only_looks_like_a_secret_passes(text: str) -> None:
    assert rules({"a": file(text.encode())}) == []


@given(st.text())
def test_any_path_is_judged_without_a_failure(path: str) -> None:
    judge(Tree({}, {path: file()}), DEFAULT)
    judge(Tree({}, {"l": (MODE_LINK, path.encode(errors="surrogatepass"))}), DEFAULT)
