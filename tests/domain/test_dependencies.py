"""Which dependencies a patch adds or moves, in every known manifest, from hostile text too."""

from __future__ import annotations

import json
import time

import pytest

from autopack.domain.dependencies import (
    MAX_LISTED,
    DependencyChange,
    ManifestChange,
    changed_dependencies,
    merged,
    unlisted,
)
from autopack.domain.manifests import MAX_MANIFEST_BYTES

pytestmark = pytest.mark.unit

LOCK = '[[package]]\nname = "{}"\nversion = "{}"\n'


def changes(path: str, before: str | None, after: str) -> list[str]:
    old = None if before is None else before.encode()
    file = ManifestChange(path=path, before=old, after=after.encode())
    return [each.text for each in changed_dependencies([file])]


ROWS = [
    ("requirements.txt", "a==1\n", "a==1\nB_c>=2 ; python_version > '3'\n", "b-c >=2 (new;"),
    ("deps/requirements-dev.txt", "a==1\n", "A==2  # why\n", "a ==2 (was ==1;"),
    ("requirements.txt", "a==1\n", "a @ https://e.example/a.whl\n", "a @ https://e.example/a.whl"),
    ("requirements.txt", "", "git+https://e.example/x\n", "git+https://e.example/x any (new;"),
    ("requirements.txt", "", "--index-url https://e.example\n", "--index-url https://e.example"),
    (
        "requirements.txt",
        "a==1 \\\n  --hash=sha256:aa\n",
        "a==1 \\\n  --hash=sha256:bb\n",
        "with another hash (was ==1;",
    ),
    (
        "pyproject.toml",
        '[project]\ndependencies = ["a>=1"]',
        '[project]\ndependencies = ["a>=1", "b[x]~=2"]',
        "b ~=2 (new;",
    ),
    ("pyproject.toml", "", '[dependency-groups]\ndev = ["a", {include-group = "b"}]', "a any"),
    ("pyproject.toml", "", '[tool.poetry.dependencies]\na = {version = "^1"}', "a ^1 (new;"),
    ("pyproject.toml", "", '[build-system]\nrequires = ["hatchling"]', "hatchling any"),
    ("package.json", '{"dependencies": {"a": "^1"}}', '{"dependencies": {"a": "^2"}}', "a ^2 (was"),
    ("package.json", "{}", '{"overrides": {"a": {"b": "1"}}}', 'override of a {"b": "1"}'),
    (
        "package-lock.json",
        "{}",
        '{"packages": {"": {"version": "1"}, "node_modules/@s/a": {"version": "3"}}}',
        "@s/a 3 (new;",
    ),
    (
        "package-lock.json",
        "{}",
        '{"dependencies": {"a": {"version": "1", "dependencies": {"b": {"version": "2"}}}}}',
        "b 2 (new;",
    ),
    ("pnpm-lock.yaml", "", "packages:\n\n  /@s/a@1.2.3(b@1):\n    resolution: {x}\n", "@s/a 1.2.3"),
    ("pnpm-lock.yaml", "", "packages:\n  'a@1.2.3':\n    x: 1\n\nsnapshots:\n  b@1: {}\n", "a 1"),
    ("yarn.lock", "", '"@s/a@^1", "@s/a@~1":\n  version "1.2.3"\n', "@s/a 1.2.3 (new;"),
    ("yarn.lock", "", '"a@npm:^1":\n  version: 1.2.3\n  checksum: ab\n', "a 1.2.3 (new;"),
    ("go.mod", "require a.b/c v1\n", "require (\n\ta.b/c v2 // indirect\n)\n", "a.b/c v2 (was v1;"),
    ("go.mod", "", "replace a.b/c => ../c\n", "replace a.b/c ../c (new;"),
    ("go.sum", "", "a.b/c v1 h1:x=\na.b/d v1/go.mod h1:y=\n", "a.b/c v1 (new;"),
    ("Cargo.toml", "", '[dependencies]\na = "1"\n', "a 1 (new;"),
    ("Cargo.toml", "", "[target.'cfg(unix)'.dependencies]\na = {git = \"u\"}\n", "a u (new;"),
    ("Cargo.lock", LOCK.format("a", "1"), LOCK.format("a", "2"), "a 2 (was 1;"),
    ("poetry.lock", "", LOCK.format("a", "1"), "a 1 (new;"),
    ("uv.lock", "", LOCK.format("a", "1") + 'source = { registry = "r" }', "a 1 (new;"),
    (
        "uv.lock",
        LOCK.format("a", "1") + 'sdist = { hash = "x" }',
        LOCK.format("a", "1") + 'sdist = { hash = "y" }',
        "a 1, from another source",
    ),
]


@pytest.mark.parametrize(("path", "before", "after", "told"), ROWS)
def test_new_and_changed_entries_are_told_by_name_and_version(
    path: str, before: str, after: str, told: str
) -> None:
    found = changes(path, before, after)
    assert any(told in text for text in found), found
    assert changes(path, after, after) == []


def test_removed_entries_are_told_and_other_files_are_not() -> None:
    assert changes("requirements.txt", "a==1\nb==1\n", "a==1\n") == [
        "b removed (was ==1; requirements.txt)"
    ]
    assert changes("requirements.md", "", "a==1\n") == []
    assert changes("requirements/base.txt", "", "a==1\n") != []
    gone = ManifestChange(path="go.mod", before=b"require a v1\n", after=None)
    assert [each.after for each in changed_dependencies([gone])] == [None]


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("package-lock.json", '{"packages": {"node_modules/a": {"name": 5, "version": [1]}}}'),
        ("package-lock.json", '{"packages": {"node_modules/a": {"name": ["x"]}, "b": {}}}'),
        ("Cargo.lock", "[[package]]\nname = 1979-05-27\nversion = 1.5\n"),
        ("Cargo.toml", "[dependencies]\na = {package = 5, version = []}\nb = [1]\n"),
        ("pyproject.toml", "[tool.poetry.dependencies]\na = [{version = 1}, 2]\n"),
        ("package.json", '{"dependencies": {"\\ud800": {"x": null}}}'),
    ],
)
def test_values_of_any_kind_become_texts(path: str, text: str) -> None:
    for line in changes(path, None, text):
        assert line.isprintable()


@pytest.mark.parametrize(
    ("path", "text", "why"),
    [
        ("package.json", "{", "Expecting property name"),
        ("package.json", "[]", "no attribute"),
        ("package.json", "[" * 100_000, "nested too deeply"),
        ("package.json", '{"dependencies": 7}', "no attribute"),
        ("Cargo.toml", "a = " + "[" * 100_000, "nested too deeply"),
        ("Cargo.toml", "dependencies = 1", "no attribute"),
        ("Cargo.lock", "package = [{}]", "name"),
        ("pyproject.toml", ".".join("a" * 5_000) + " = 1\n", "too many dots"),
        ("requirements.txt", "x" * (MAX_MANIFEST_BYTES + 1), "larger than 4,000,000 bytes"),
        ("go.sum", "\udcff", "not UTF-8"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told(path: str, text: str, why: str) -> None:
    data = text.encode(errors="surrogateescape")
    (found,) = changed_dependencies([ManifestChange(path=path, before=b"", after=data)])
    assert found.name is None
    assert why in (found.problem or "")


def test_an_unreadable_old_side_makes_everything_new() -> None:
    assert changes("package.json", "{", '{"dependencies": {"a": "1"}}') == [
        "a 1 (new; package.json)"
    ]


def test_the_list_is_bounded_and_says_what_it_leaves_out() -> None:
    many = "".join(f"p{number:04}==1\n" for number in range(MAX_LISTED + 5))
    found = changed_dependencies(
        [ManifestChange(path="requirements.txt", before=None, after=many.encode())]
    )
    assert len(found) == MAX_LISTED
    assert found[-1].problem == "6 more changes are not listed"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("requirements.txt", "a==1\n" * 40_000),
        ("requirements.txt", "".join(f"a=={number}\n" for number in range(40_000))),
        ("requirements.txt", "\\\n" * 40_000),
        ("Cargo.lock", "\n".join([".".join("a" * 31) + "=1"] * 2_000)),
        ("go.mod", "require (\n" + "a v1\n" * 60_000),
        ("yarn.lock", "a@1:\n" * 60_000),
        ("pnpm-lock.yaml", "packages:\n" + "  a@1:\n" * 40_000),
    ],
)
def test_hostile_sizes_take_bounded_time(path: str, text: str) -> None:
    """The bound is generous: what must not happen takes minutes."""
    started = time.process_time()
    changes(path, None, text)
    assert time.process_time() - started < 20


def test_names_are_one_line_of_bounded_length() -> None:
    document = json.dumps({"dependencies": {"a\n\x1b[2J" + "b" * 500: "1\t2"}})
    (text,) = changes("package.json", None, document)
    assert text.isprintable()
    assert len(text) < 200


def change(name: str, before: str | None, after: str | None) -> DependencyChange:
    return DependencyChange(manifest="go.mod", name=name, before=before, after=after)


def test_a_phase_tells_the_first_version_before_and_the_last_after() -> None:
    first, second = (change("a", "1", "2"),), (change("a", "2", "3"), change("b", None, "1"))
    assert merged(first, second) == (change("a", "1", "3"), change("b", None, "1"))
    assert merged((), second) == second
    assert unlisted(first, second) == [change("b", None, "1")]


def test_what_is_taken_back_brings_nothing_in() -> None:
    new = (change("a", "1", "2"), change("b", None, "1"))
    back = (change("a", "2", "1"), change("b", "1", None))
    assert merged(new, back) == ()
    assert merged((), (change("c", "1", None),)) == ()
    broken = DependencyChange(manifest="go.mod", problem="cannot be read")
    assert merged((broken,), (change("a", None, "1"),)) == (change("a", None, "1"),)
    assert unlisted((), back[1:]) == []
