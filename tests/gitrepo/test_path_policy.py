"""What no patch may change, in whichever spelling."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from tests.campaigns import random_examples

from autopack.domain.changes import (
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_LINK,
    MODE_SUBMODULE,
    FileChange,
)
from autopack.domain.closed_paths import CLOSED
from autopack.domain.links import LinkTable
from autopack.domain.path_policy import DEFAULT_PROTECTED, PathPolicy, check_changes
from autopack.domain.secret_rules import MAX_STEPS

pytestmark = pytest.mark.unit

Side = tuple[int, bytes]
DEFAULT = PathPolicy()


@dataclass
class Tree:
    """A change in memory: the tree before, and what the change makes of it."""

    before: Mapping[str, Side]
    after: Mapping[str, Side]
    contents: dict[str, bytes] = field(default_factory=dict)
    text: bytes = b""

    @property
    def links_before(self) -> LinkTable:
        return self._links(self.before)

    @property
    def links(self) -> LinkTable:
        return self._links(self.after)

    @staticmethod
    def _links(side: Mapping[str, Side]) -> LinkTable:
        return LinkTable({path: data for path, (mode, data) in side.items() if mode == MODE_LINK})

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

    def was_there(self, path: str) -> bool:
        return any(name == path or name.startswith(f"{path}/") for name in self.before)

    def names_in(self, folder: str) -> set[str]:
        within = f"{folder}/" if folder else ""
        paths = (path.removeprefix(within) for path in self.after if path.startswith(within))
        return {path.partition("/")[0] for path in paths}


def rules(
    after: Mapping[str, Side],
    before: Mapping[str, Side] | None = None,
    policy: PathPolicy = DEFAULT,
) -> list[str]:
    return [each.rule for each in check_changes(Tree(before or {}, after), policy)]


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
    ".GitLab-CI.yml",
    ".circleci/config.yml",
    "Jenkinsfile",
    "jenkinsfile.release",
    ".woodpecker.yml",
    ".woodpecker/build.yaml",
    "action.yml",
    "tools/lint/Action.YAML",
    ".gitea/workflows/ci.yml",
    "CLAUDE.md",
    "src/claude.md",
    "AGENTS.md",
    "a/b/Agents.override.md",
    ".claude/settings.json",
    "sub/.Claude/hooks/x.sh",
    ".mcp.json",
    ".cursor/rules/x.mdc",
    ".cursorrules",
    ".codex/config.toml",
    ".github/copilot-instructions.md",
    ".vscode/tasks.json",
    ".devcontainer/devcontainer.json",
    "sub/.envrc",
    ".husky/pre-commit",
    ".pre-commit-config.yaml",
    ".githooks/pre-push",
    ".idea/workspace.xml",
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
    "src/action.py",
    "docs/claude.txt",
    "Jenkins/x",
    "src/vscode/x.ts",
    "envrc",
    "copilot.md",
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


@pytest.mark.parametrize("pattern", [each for each in DEFAULT_PROTECTED if each not in CLOSED])
def test_a_ruleset_opens_each_default_of_its_own(pattern: str) -> None:
    path = pattern.replace("**", "x").replace("*", "x")
    assert rules({path: file()}) == ["protected_path"]
    assert rules({path: file()}, policy=PathPolicy(opened=(pattern,))) == []


@pytest.mark.parametrize(
    "path",
    [".autonomous_runs/r/run.json", ".AutoPack/.env", ".github/Autopack_Allowed_Signers"],
)
def test_nothing_opens_the_service_s_own_files_or_the_git_dir(path: str) -> None:
    policy = PathPolicy(opened=("**", path))
    assert rules({path: file()}, policy=policy) == ["protected_path"]
    assert rules({".git/config": file()}, policy=policy) == ["git_dir"]
    assert rules({".gitignore": file(), ".gitkeep": file()}, policy=policy) == []


THROUGH_LINKS: dict[str, tuple[dict[str, Side], str]] = {
    "a folder elsewhere": ({".github/workflows": link("../ci")}, "ci/build.yml"),
    "another case": ({".github/workflows": link("../CI")}, "Ci/build.yml"),
    "a folder above": ({".github": link("hub")}, "hub/workflows/build.yml"),
    "two links": ({".github": link("hub"), "hub/workflows": link("../ci")}, "ci/build.yml"),
    "a link within": ({".github/actions/x": link("../../src/x")}, "src/x/index.js"),
    "a file": ({"CLAUDE.md": link("docs/guide.md")}, "docs/guide.md"),
    "a link to a link": ({"CLAUDE.md": link("a.md"), "a.md": link("b.md")}, "b.md"),
    "an absolute one": ({".autopack": link("state")}, "state/.env"),
}


@pytest.mark.parametrize(("tree", "path"), THROUGH_LINKS.values(), ids=THROUGH_LINKS)
def test_what_a_protected_path_leads_to_is_protected(tree: dict[str, Side], path: str) -> None:
    before = {**tree, path: file(b"1")}
    assert rules({**tree, path: file(b"2")}, before) == ["protected_path"]
    assert rules({**tree, path: file()}, tree) == ["protected_path"]
    assert rules({**tree, f"free/{path}": file()}, tree) == []


def test_what_is_opened_is_open_through_links_too() -> None:
    tree = {".github/workflows": link("../ci")}
    policy = PathPolicy(opened=(".github/workflows/docs.yml",))
    assert rules({**tree, "ci/docs.yml": file()}, tree, policy) == []
    assert rules({**tree, "ci/build.yml": file()}, tree, policy) == ["protected_path"]


@pytest.mark.parametrize(
    "target",
    ["../.github/workflows", "../.GitHub/workflows/ci.yml", "../.autopack/x", "../AGENTS.md"],
)
def test_a_new_link_to_a_protected_path_is_refused(target: str) -> None:
    assert rules({"docs/l": link(target)}) == ["link"]
    old = {"docs/l": link(target)}
    assert rules({**old, "docs/x": file()}, old) == []  # what was there is its owner's affair


@pytest.mark.parametrize(
    ("before", "change"),
    [
        # What leads out is each time a link that the change does not touch.
        ({"l": link("a/b/../../x"), "a/b/f": file()}, {"a/b": link("../c")}),
        ({"l": link("d/e/../../x"), "d/e/f": file()}, {"d": link(".")}),
        ({"l": link("m/../x"), "m": link("n/o")}, {"m": link(".")}),
    ],
)
def test_a_link_that_leads_out_after_a_later_change_is_refused(
    before: dict[str, Side], change: dict[str, Side]
) -> None:
    kept = {p: s for p, s in before.items() if not any(p.startswith(f"{c}/") for c in change)}
    assert rules(before) == []
    found = check_changes(Tree(before, {**kept, **change}), DEFAULT)
    assert [(each.path, each.rule) for each in found] == [("l", "link")]


def test_a_link_that_leads_to_a_protected_path_after_a_change_is_refused() -> None:
    before = {"l": link("a/../workflows"), "a/x": file()}
    after = {"l": before["l"], "a": link(".github/x")}
    found = check_changes(Tree(before, after), DEFAULT)
    assert [(each.path, each.rule) for each in found] == [("l", "link")]


def test_a_link_that_led_out_before_is_not_held_against_other_changes() -> None:
    before = {"bad": link("../../out"), "m": link("x")}
    assert rules({**before, "m": link("y"), "f": file()}, before) == []


CLASHES: dict[str, tuple[dict[str, Side], dict[str, Side], int]] = {
    "within the patch": ({}, {"a/X": file(), "a/x": file()}, 2),
    "with a file of the tree": ({"README": file()}, {"readme": file()}, 1),
    "with a folder of the tree": ({"src/a": file()}, {"Src/b": file()}, 1),
    "a folder and a file": ({"lib/a": file()}, {"LIB": file()}, 1),
    "deep below": ({"a/B/c/d": file()}, {"a/b/c/e": file()}, 1),
    "unicode forms": ({"caf\u00e9": file()}, {"cafe\u0301": file()}, 1),
    "unicode case": ({"STRASSE": file()}, {"straße": file()}, 1),
}


@pytest.mark.parametrize(("before", "new", "count"), CLASHES.values(), ids=CLASHES)
def test_names_that_some_systems_cannot_tell_apart_are_refused(
    before: dict[str, Side], new: dict[str, Side], count: int
) -> None:
    assert rules({**before, **new}, before) == ["portable_name"] * count
    assert rules({**before, **new}, before, PathPolicy(is_portable=False)) == []
    both = {**before, **new}
    changed = {path: file(b"other") for path in both}
    assert rules(changed, both) == []  # the repository had them


def test_a_rename_to_another_case_is_no_clash() -> None:
    assert rules({"README": file()}, {"readme": file()}) == []


@pytest.mark.parametrize(
    "name",
    [
        "NUL",
        "nul.txt",
        "a/Com1/b",
        "aux.c",
        "LPT¹",
        "a:b",
        "dot.",
        "space ",
        "d /x",
        "q?",
        "a*",
        "<x>",
        *('"', "a|b", "tab\t", "CONIN$", "..."),
    ],
)
def test_a_name_that_windows_cannot_hold_is_refused(name: str) -> None:
    assert rules({name: file()}) == ["portable_name"]
    assert rules({name: file()}, policy=PathPolicy(is_portable=False)) == []
    assert rules({name: file(b"2")}, {name: file()}) == []
    folder = name.rpartition("/")[0] or name
    assert rules({f"{folder}/x": file(), f"{folder}/y": file()}, {f"{folder}/x": file()}) == []


@pytest.mark.parametrize(
    "name", ["console", "nullable.py", "com10", "a.nul", "co n", "aux_", "é.txt"]
)
def test_a_name_that_windows_can_hold_passes(name: str) -> None:
    assert rules({name: file()}) == []


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
def test_only_files_and_links_are_accepted(mode: int) -> None:
    assert rules({"a": (mode, b"x")}) == ["mode"]
    assert rules({}, {"a": (mode, b"x")}) == ["mode"]
    assert rules({"a": (MODE_EXECUTABLE, b"x")}, {"a": file(b"x")}) == []


def test_the_result_keeps_to_the_limits() -> None:
    many = {f"f{number}": file() for number in range(2_001)}
    assert rules(many) == ["too_many_files"]
    assert rules({"ü" * 501: file()}) == ["path_limit"]
    assert rules({"a/" * 60 + "b": file()}) == ["path_limit"]
    assert rules({"a/" * 59 + "b": file()}) == []
    assert rules({"ü" * 500: file()}) == []


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
    "same_name_in_another_case": (
        {"L": link("d"), "l/x": file()},
        ["through_link", "portable_name"],
    ),
}


@pytest.mark.parametrize(("after", "expected"), LINKS.values(), ids=LINKS)
def test_a_link_stays_inside(after: dict[str, Side], expected: list[str]) -> None:
    assert rules(after) == expected


def test_a_link_that_leads_through_an_old_one_is_followed() -> None:
    old = {"old": link("../outside")}
    assert rules({**old, "l": link("old/x")}, old) == ["link"]


def test_a_file_beside_an_old_link_of_the_same_name_is_refused() -> None:
    old = {"L": link("d")}
    assert rules({**old, "l/x": file()}, old) == ["through_link"]
    both = {**old, "l/x": file()}
    assert rules({**old, "l/x": file(b"2")}, both) == []


# Built from parts, so that a scanner for secrets does not report this file.
TOKEN = b"ghp_" + b"aB3dE5fG7hJ9kL1mN3pQ5rS7tU9vW1xY3zA5"
BODY = b"MIIEpAIBAAKCAQEA7bq2Kx9Zf3LmN8vQwErTyUiOpAsDfGhJkLzXcVbNm1234567\n"
HEADER = b"-----BEGIN RSA " + b"PRIVATE KEY-----\n"


def test_a_secret_is_named_by_its_line_and_not_repeated() -> None:
    new = b"first\nsecond\n" + TOKEN + b"\nlast\n"
    (found,) = check_changes(Tree({"a": file(b"first\n")}, {"a": file(new)}), DEFAULT)
    assert (found.path, found.rule, found.line) == ("a", "secret", 3)
    assert "GitHub token" in found.detail
    assert "aB3d" not in found.detail


@pytest.mark.parametrize("secret", [TOKEN, HEADER + BODY * 3], ids=["token", "key"])
def test_a_secret_that_was_there_before_is_not_held_against_the_patch(secret: bytes) -> None:
    old = b"x\n" + secret + b"\ny\n"
    indented = b"  " + secret.replace(b"\n", b"\n  ")
    assert rules({"a": file(b"new line\n" + old)}, {"a": file(old)}) == []
    assert rules({"b": file(b"new line\n" + old)}, {"a": file(old)}) == []  # moved
    assert rules({"a": file(indented)}, {"a": file(old)}) == []
    assert rules({"a": file(old + TOKEN + b"2")}, {"a": file(old)}) == ["secret"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (HEADER, HEADER + BODY),
        (BODY, HEADER + BODY),
        (HEADER + BODY[:30], HEADER + BODY),
        (HEADER + b"no key: the lines are below\n" + BODY, HEADER + BODY),
        (b"t = '" + TOKEN[:20] + b"'\n", b"t = '" + TOKEN + b"'\n"),
        (b"t = '" + TOKEN[:20] + b"\n" + TOKEN[20:] + b"'\n", b"t = '" + TOKEN + b"'\n"),
    ],
)
def test_a_secret_that_two_patches_make_is_seen_with_the_second(
    first: bytes, second: bytes
) -> None:
    assert rules({"a": file(first)}) == []
    assert rules({"a": file(second)}, {"a": file(first)}) == ["secret"]


def test_a_secret_is_seen_in_other_encodings_and_in_names() -> None:
    assert rules({"a": file(f"x {TOKEN.decode()}".encode("utf-16"))}) == ["secret"]
    assert rules({"d/" + TOKEN.decode(): file()}) == ["secret"]


def test_a_secret_between_the_files_of_a_patch_is_seen() -> None:
    tree = Tree({}, {"a": file()}, text=b"From 1\n\nkey: " + TOKEN + b"\ndiff --git a/a b/a\n")
    assert [each.rule for each in check_changes(tree, DEFAULT)] == ["secret"]
    was_there = Tree({"a": file(TOKEN)}, {"a": file()}, text=b"-" + TOKEN)
    assert check_changes(was_there, DEFAULT) == []


def test_more_beginnings_of_secrets_than_can_be_looked_at_are_refused() -> None:
    assert rules({"a": file(b"ghp_" * (MAX_STEPS + 1))}) == ["secret_limit"]


@random_examples(20, 100, path=st.text())
def test_any_path_is_checked_without_an_error(path: str) -> None:
    check_changes(Tree({}, {path: file()}), DEFAULT)
    check_changes(Tree({}, {"l": (MODE_LINK, path.encode(errors="surrogatepass"))}), DEFAULT)
