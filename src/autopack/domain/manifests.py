"""Readers of manifests and lock files: names, versions, and where each comes from.

Each reader takes hostile text and returns a dictionary, or raises ManifestError. Only what decides
about content is read: environment markers and comments are not.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

MAX_MANIFEST_BYTES: Final = 4_000_000
MAX_TOML_BYTES: Final = 2_000_000  # whose reader is slower
# A dotted key of TOML costs the square of its length, in a table's header ten times that; so what
# dots can cost is bounded first. Addresses of files have up to thirty.
_MAX_DOTS: Final = 30
_MAX_HEADER_DOTS: Final = 3
_HEADER_COST: Final = 10
_MAX_DOT_COST: Final = 3_000_000
_NAME: Final = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]{0,199})\s*(?:\[[^\]\n]{0,200}\])?\s*")
_SEPARATORS: Final = re.compile(r"[-_.]+")


class ManifestError(ValueError):
    """A manifest cannot be read. The message is one line."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A dependency: `version` for people; `source` tells one content from another."""

    version: str
    source: str = ""


class _Found:
    """The entries as they are read; one name with several versions is one entry that has all."""

    def __init__(self) -> None:
        self._parts: dict[str, dict[Entry, None]] = {}

    def put(self, name: object, version: object, source: str = "") -> None:
        """Add an entry; what is no text in a foreign file becomes one."""
        self._parts.setdefault(_text(name), {})[Entry(_text(version), source)] = None

    def __bool__(self) -> bool:
        return bool(self._parts)

    def entries(self) -> dict[str, Entry]:
        """Return each name with all its versions and sources."""
        return {
            name: Entry(
                ", ".join(dict.fromkeys(part.version for part in parts)),
                "\n".join(part.source for part in parts),
            )
            for name, parts in self._parts.items()
        }


def is_manifest(path: str) -> bool:
    """Tell by its name whether a file is a known manifest or lock file."""
    return _reader_of(path) is not None


def read_manifest(path: str, data: bytes) -> Mapping[str, Entry]:
    """Return a manifest's entries by name. Raises ManifestError."""
    reader = _reader_of(path)
    if reader is None:
        raise ManifestError("it is no known manifest")
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"it is larger than {MAX_MANIFEST_BYTES:,} bytes")
    try:
        return reader(data.decode("utf-8-sig")).entries()
    except ManifestError:
        raise
    except RecursionError:
        raise ManifestError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ManifestError("it is not UTF-8") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        words = str(error).splitlines() or [type(error).__name__]
        raise ManifestError(words[0][:120]) from None


def _reader_of(path: str) -> Callable[[str], _Found] | None:
    folder, _, name = path.rpartition("/")
    is_named = name.startswith(("requirements", "constraints"))
    if name.endswith(".txt") and (is_named or folder.rpartition("/")[2] == "requirements"):
        return _read_requirements
    return _BY_NAME.get(name)


def _text(value: Any) -> str:
    """Return a value of a manifest as text."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _normal(name: str) -> str:
    """Return the one form of a Python package's name."""
    return _SEPARATORS.sub("-", name).lower()


# Python


def _read_requirements(text: str) -> _Found:
    found = _Found()
    for line in _logical_lines(text):
        words = line.split(" --hash=")
        requirement, hashes = words[0].strip(), sorted(words[1:])
        if requirement.startswith("-"):
            option, _, value = requirement.replace("=", " ", 1).partition(" ")
            found.put(f"{option} {value.strip()}".strip(), "option")
        else:
            _put_requirement(found, requirement, "\n".join(hashes))
    return found


def _logical_lines(text: str) -> Iterator[str]:
    """Yield lines without comments; a backslash at the end joins a line with the next."""
    parts: list[str] = []
    for line in text.split("\n"):
        line = line.strip()
        is_continued = line.endswith("\\")
        code = "" if line.startswith("#") else line.removesuffix("\\").partition(" #")[0].strip()
        parts.append(code)
        if is_continued:
            continue
        whole = " ".join(part for part in parts if part)
        parts = []
        if whole:
            yield whole
    if parts:
        yield " ".join(part for part in parts if part)


def _put_requirement(found: _Found, requirement: str, source: str = "") -> None:
    """Add a requirement in the form of PEP 508; any other text is its own name."""
    name = _NAME.match(requirement)
    rest = requirement[name.end() :] if name else ""
    if name is None or (rest and rest[0] not in "=<>!~@;("):
        found.put(requirement, "any", source)
        return
    version = (rest if rest.startswith("@") else rest.partition(";")[0]).strip() or "any"
    found.put(_normal(name[1]), version, source)


def _read_pyproject(text: str) -> _Found:
    document = _toml(text)
    found = _Found()
    project, tool = document.get("project", {}), document.get("tool", {})
    lists = [project.get("dependencies", []), document.get("build-system", {}).get("requires", [])]
    lists += project.get("optional-dependencies", {}).values()
    lists += document.get("dependency-groups", {}).values()
    lists.append(tool.get("uv", {}).get("dev-dependencies", []))
    lists += tool.get("pdm", {}).get("dev-dependencies", {}).values()
    for each in lists:
        for requirement in each:
            if isinstance(requirement, str):  # a group may include another one
                _put_requirement(found, requirement)
    poetry = tool.get("poetry", {})
    tables = [poetry.get("dependencies", {}), poetry.get("dev-dependencies", {})]
    tables += [group.get("dependencies", {}) for group in poetry.get("group", {}).values()]
    for table in tables:
        for name, value in table.items():
            found.put(_normal(name), _version_of(value), _source_of(value))
    for name, value in tool.get("uv", {}).get("sources", {}).items():
        found.put(f"source of {_normal(name)}", _text(value))
    for index in (*tool.get("uv", {}).get("index", []), *poetry.get("source", [])):
        found.put(f"index {index.get('name', '')}".strip(), _text(index.get("url", "")))
    return found


def _read_packages(text: str) -> _Found:
    """Read `[[package]]` of poetry.lock, uv.lock and Cargo.lock."""
    found = _Found()
    for package in _toml(text).get("package", []):
        source = {name: package[name] for name in _CONTENT if name in package}
        found.put(_text(package["name"]), _text(package.get("version", "any")), _text(source))
    return found


_CONTENT: Final = ("source", "checksum", "files", "sdist", "wheels", "resolved", "integrity")


def _toml(text: str) -> dict[str, Any]:
    if len(text) > MAX_TOML_BYTES:
        raise ManifestError(f"it is larger than {MAX_TOML_BYTES:,} bytes")
    if sum(map(_dot_cost, text.split("\n"))) > _MAX_DOT_COST:
        raise ManifestError("it has lines with too many dots")
    return tomllib.loads(text)


def _dot_cost(line: str) -> int:
    dots = line.count(".")
    if dots > _MAX_HEADER_DOTS and line.lstrip().startswith("["):
        return _HEADER_COST * dots * dots
    return dots * dots if dots > _MAX_DOTS else 0


def _version_of(value: Any) -> str:
    """Return the version of an entry that is a text, a table, or a list of tables."""
    if isinstance(value, list):
        return ", ".join(_version_of(each) for each in value)
    if isinstance(value, dict):
        return _text(value.get("version") or _where(value) or "any")
    return _text(value)


def _where(value: Mapping[str, Any]) -> str:
    parts = (value.get(name) for name in ("git", "url", "path", "rev", "tag", "branch"))
    return " ".join(_text(part) for part in parts if part is not None)


def _source_of(value: Any) -> str:
    return "" if isinstance(value, str) else _text(value)


# Rust


def _read_cargo(text: str) -> _Found:
    document = _toml(text)
    found = _Found()
    places = [document, document.get("workspace", {}), *document.get("target", {}).values()]
    for place in places:
        for kind in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name, value in place.get(kind, {}).items():
                is_table = isinstance(value, dict)
                package = value.get("package", name) if is_table else name
                found.put(_text(package), _version_of(value), _source_of(value))
    for registry in document.get("patch", {}).values():
        for name, value in registry.items():
            found.put(f"patch of {name}", _version_of(value), _source_of(value))
    return found


# JavaScript


def _read_package_json(text: str) -> _Found:
    document = json.loads(text)
    found = _Found()
    for kind in ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies"):
        for name, value in document.get(kind, {}).items():
            found.put(name, _text(value))
    for kind in ("overrides", "resolutions"):
        for name, value in document.get(kind, {}).items():
            found.put(f"override of {name}", _text(value))
    return found


def _read_package_lock(text: str) -> _Found:
    document = json.loads(text)
    found = _Found()
    for path, value in document.get("packages", {}).items():
        if path:  # the empty path is the project itself
            name = value.get("name") or path.rpartition("node_modules/")[2]
            _put_locked(found, name, value)
    waiting = [] if found else [document.get("dependencies", {})]  # of older files
    while waiting:
        for name, value in waiting.pop().items():
            _put_locked(found, name, value)
            waiting.append(value.get("dependencies", {}))
    return found


def _put_locked(found: _Found, name: str, value: Mapping[str, Any]) -> None:
    if value.get("link"):
        found.put(name, f"link to {_text(value.get('resolved', ''))}")
        return
    source = {each: value[each] for each in ("resolved", "integrity") if each in value}
    found.put(name, _text(value.get("version", "any")), _text(source))


def _read_pnpm_lock(text: str) -> _Found:
    """Read the keys of `packages:`: `/name@1.2.3(peer@1):`, `name@1.2.3:`, `/name/1.2.3:`."""
    found = _Found()
    is_inside, key, source = False, "", ""
    for line in [*text.split("\n"), "end:"]:
        depth = len(line) - len(line.lstrip(" "))
        if depth == 2 or (line.strip() and depth == 0):
            if is_inside and key:
                _put_pnpm(found, key, source)
            key, source = "", ""
        if line.strip() and depth == 0:
            is_inside = line.startswith("packages:")
        elif is_inside and depth == 2:
            key = line.strip().partition(": {}")[0].removesuffix(":").strip("'\"")
        elif is_inside and depth == 4 and line.lstrip().startswith("resolution:"):
            source = line.strip()
    return found


def _put_pnpm(found: _Found, key: str, source: str) -> None:
    key = key.removeprefix("/").partition("(")[0]
    name, at, version = key.rpartition("@")
    if not at or not name:
        name, _, version = key.rpartition("/")
    found.put(name or key, version or "any", source)


def _read_yarn_lock(text: str) -> _Found:
    """Read yarn.lock of both formats: `"name@^1", name@~1:`, then indented `version "1.2.3"`."""
    found = _Found()
    name, version, source = "", "", ""
    for line in [*text.split("\n"), "end:"]:
        if line[:1] not in ("", " ", "#", "\r"):
            if name and version:
                found.put(name, version, source)
            first = line.strip().removesuffix(":").partition(",")[0].strip().strip('"')
            # The name of a scope begins with an at sign too.
            name = first[:1] + first[1:].partition("@")[0]
            version = source = ""
            continue
        key, _, value = line.strip().replace(": ", " ", 1).partition(" ")
        if line.startswith("  ") and not line.startswith("   "):
            if key.strip('"') == "version":
                version = value.strip('"')
            elif key.strip('"') in ("resolved", "integrity", "resolution", "checksum"):
                source += f"{value}\n"
    return found


# Go


def _read_go_mod(text: str) -> _Found:
    found = _Found()
    block = ""
    for line in text.split("\n"):
        words = line.partition("//")[0].split()
        if not words:
            continue
        if words[-1] == "(":
            block = words[0]
        elif words[0] == ")":
            block = ""
        else:
            _put_go(found, [block, *words] if block else words)
    return found


def _put_go(found: _Found, words: list[str]) -> None:
    if words[0] == "require" and len(words) >= 3:
        found.put(words[1], words[2])
    elif words[0] == "replace" and "=>" in words:
        at = words.index("=>")
        found.put(f"replace {' '.join(words[1:at])}", " ".join(words[at + 1 :]))
    elif words[0] in ("go", "toolchain", "tool") and len(words) >= 2:
        found.put(words[0] if words[0] != "tool" else f"tool {words[1]}", words[1])


def _read_go_sum(text: str) -> _Found:
    found = _Found()
    for line in text.split("\n"):
        words = line.split()
        # The hash of a module's go.mod alone does not bring its code in.
        if len(words) == 3 and not words[1].endswith("/go.mod"):
            found.put(words[0], words[1], words[2])
    return found


_BY_NAME: Final[Mapping[str, Callable[[str], _Found]]] = {
    "pyproject.toml": _read_pyproject,
    "poetry.lock": _read_packages,
    "uv.lock": _read_packages,
    "package.json": _read_package_json,
    "package-lock.json": _read_package_lock,
    "npm-shrinkwrap.json": _read_package_lock,
    "pnpm-lock.yaml": _read_pnpm_lock,
    "yarn.lock": _read_yarn_lock,
    "go.mod": _read_go_mod,
    "go.sum": _read_go_sum,
    "Cargo.toml": _read_cargo,
    "Cargo.lock": _read_packages,
}
