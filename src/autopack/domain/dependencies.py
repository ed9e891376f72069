"""Which dependencies a change adds or moves, by name and version. (rules §2.6)

The manifests come from agents, so they are hostile text: sizes, depths and the number of listed
entries are bounded, and a manifest that cannot be read is told as such, which stops nothing by
itself. The parsers live in manifests.py.

Standard library alone: `scripts/check_promotion.py` is made from this module among others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Final

from .manifests import Entry, ManifestError, is_manifest, read_manifest

MAX_LISTED: Final = 200  # of one patch; a new lock file has thousands
_MAX_TEXT: Final = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class DependencyChange:
    """One dependency before and after, in one manifest.

    `before` is None for a new one, `after` for one that was removed.

    A `problem` stands in place of a name: the manifest cannot be read, or has more changes than are
    listed.
    """

    manifest: str
    name: str | None = None
    before: str | None = None
    after: str | None = None
    problem: str | None = None

    @property
    def text(self) -> str:
        """Say what changed in one line."""
        if self.name is None:
            return f"{self.manifest}: {self.problem}"
        if self.after is None:
            return f"{self.name} removed (was {self.before}; {self.manifest})"
        how = "new" if self.before is None else f"was {self.before}"
        return f"{self.name} {self.after} ({how}; {self.manifest})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestChange:
    """A file before and after; None where there is none."""

    path: str
    before: bytes | None
    after: bytes | None


def changed_dependencies(files: Iterable[ManifestChange]) -> tuple[DependencyChange, ...]:
    """Return the entries that were added, changed or removed, and manifests that cannot be read.

    Raises nothing.
    """
    found: list[DependencyChange] = []
    for file in sorted(files, key=lambda each: each.path):
        if is_manifest(file.path):
            found += _changes_in(file.path, file.before, file.after)
    found.sort(key=lambda each: each.after is None and each.name is not None)  # removed ones last
    if len(found) <= MAX_LISTED:
        return tuple(found)
    last = found[MAX_LISTED - 1]
    more = f"{len(found) - MAX_LISTED + 1} more changes are not listed"
    return (*found[: MAX_LISTED - 1], DependencyChange(manifest=last.manifest, problem=more))


def merged(
    earlier: tuple[DependencyChange, ...], later: tuple[DependencyChange, ...]
) -> tuple[DependencyChange, ...]:
    """Return what a phase brings in after one more patch: first `before`, last `after`.

    What was removed again, or put back to what it was, brings nothing in.
    """
    places = {_place(each): each for each in earlier}
    readable = {each.manifest for each in later if each.name is not None}
    for manifest in readable:
        places.pop((manifest, None), None)
    for each in later:
        first = places.get(_place(each), each)
        if each.name is not None and each.after in (None, first.before):
            places.pop(_place(each), None)
        else:
            places[_place(each)] = replace(each, before=first.before)
    return tuple(places.values())


def unlisted(
    recorded: Iterable[DependencyChange], found: Iterable[DependencyChange]
) -> list[DependencyChange]:
    """Return the changes that were found and that a record does not name."""
    named = {_place(each) for each in recorded}
    brought = (each for each in found if each.name is None or each.after is not None)
    return [each for each in brought if _place(each) not in named]


def dependency_document(change: DependencyChange) -> dict[str, str]:
    """Return a change as it is written in events, rows and records."""
    given = {each.name: getattr(change, each.name) for each in fields(change)}
    return {name: value for name, value in given.items() if value is not None}


def _place(change: DependencyChange) -> tuple[str, str | None]:
    return change.manifest, change.name


def _changes_in(path: str, before: bytes | None, after: bytes | None) -> list[DependencyChange]:
    manifest = _excerpt(path, 200)
    try:
        new: Mapping[str, Entry] = read_manifest(path, after) if after is not None else {}
    except ManifestError as error:
        return [DependencyChange(manifest=manifest, problem=f"cannot be read: {error}")]
    try:
        old: Mapping[str, Entry] = read_manifest(path, before) if before is not None else {}
    except ManifestError:  # what it named is not known, so all that it names now is listed
        old = {}
    return [
        DependencyChange(
            manifest=manifest,
            name=_excerpt(name),
            before=_excerpt(old[name].version) if name in old else None,
            after=_after(old.get(name), new[name]) if name in new else None,
        )
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def _after(old: Entry | None, new: Entry) -> str:
    is_same = old is not None and old.version == new.version
    version = _excerpt(new.version)
    return f"{version}, from another source or with another hash" if is_same else version


def _excerpt(text: str, most: int = _MAX_TEXT) -> str:
    """Return a foreign text as a piece of one line."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text) or "any"
    return text if len(text) <= most else text[:most] + "…"
