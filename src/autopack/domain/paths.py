"""How file systems read paths, and globs over paths.

A path is normalized as far as any supported file system does: without regard to letter case,
Unicode form, and the characters that macOS and Windows leave out of names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

Names = tuple[str, ...]

# Characters that HFS+ leaves out of names, and the short names that NTFS gives to `.git` and
# similar files.
_IGNORED_BY_HFS = dict.fromkeys(
    [*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF]
)
_NTFS_SHORT = re.compile(r"(git|gitmod|gi7eba|gitatt|gi7d29)~[0-9]{1,20}+\Z")
_NTFS_LONG = {
    "git": ".git",
    "gitmod": ".gitmodules",
    "gi7eba": ".gitmodules",
    "gitatt": ".gitattributes",
    "gi7d29": ".gitattributes",
}
_DEVICES: Final = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"]
)
_NOT_ON_WINDOWS: Final = frozenset('<>:"|?*\\') | frozenset(map(chr, range(32)))


@lru_cache(maxsize=4096)
def names_of(path: str) -> Names:
    """Split a path into names, normalized as far as any supported file system does."""
    return tuple(_plain_name(name) for name in path.replace("\\", "/").split("/"))


def folded(name: str) -> str:
    """Return a key that is equal for names that differ only by letter case or Unicode form."""
    if name.isascii():
        return name.lower()
    composed = unicodedata.normalize("NFC", name.translate(_IGNORED_BY_HFS))
    return unicodedata.normalize("NFC", composed.casefold())


def windows_problem(name: str) -> str | None:
    """Return why Windows does not allow a name, as the end of a sentence; None: it does."""
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which Windows removes"
    forbidden = sorted(_NOT_ON_WINDOWS.intersection(name))
    if forbidden:
        return f"has {forbidden[0]!r} in it, which Windows does not allow"
    stem = name.partition(".")[0].rstrip(" ")
    if stem.lower() in _DEVICES:
        return f"is the device {stem} on Windows, not a file"
    return None


def _plain_name(name: str) -> str:
    if name in (".", ".."):
        return name
    plain = folded(name)
    plain = plain.partition(":")[0].rstrip(". ") or plain  # streams, and what NTFS removes
    short = _NTFS_SHORT.match(plain)
    return _NTFS_LONG[short.group(1)] if short else plain


class Globs:
    """Patterns of paths as one automaton, which reads a path once: one step for each character.

    `*` and `?` stand for characters of one name, `**` for any number of whole names, none
    included, so `a/**` is `a` and all below it. A pattern is anchored at the top. Paths are read
    as `names_of` reads them.

    The states are the bits of one number, those of all patterns side by side. Bit n is set where
    token n is expected next.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._accept = self._any = self._star = self._outside = self._inside = 0
        self._literal: dict[str, int] = {"/": 0}
        above: set[Names] = set()
        start, bit = 0, 1
        for pattern in patterns:
            names = names_of(pattern)
            start |= bit
            for name, follows in zip(names, (*names[1:], ""), strict=True):
                if not name == follows == "**":  # two of them in a row mean the same as one
                    bit = self._add_name(name, bit)
            self._accept |= bit
            bit <<= 1
            fixed, rest = fixed_part(pattern)
            above |= {fixed[:end] for end in range(1, len(fixed) + bool(rest))}
        self._above = frozenset(above)
        self._start = self._between_names(start)
        for sign in self._literal.keys() - {"/"}:
            self._literal[sign] |= self._any

    def _add_name(self, name: str, bit: int) -> int:
        if name == "**":
            self._outside |= bit  # between two names
            self._inside |= bit << 1  # within one
            return bit << 2
        for sign in re.sub(r"\*+", "*", name) + "/":
            if sign == "*":
                self._star |= bit
            elif sign == "?":
                self._any |= bit
            else:
                self._literal[sign] = self._literal.get(sign, 0) | bit
            bit <<= 1
        return bit

    def _between_names(self, states: int) -> int:
        """Add the states after tokens that may match nothing at the start of a name."""
        states |= (states & self._outside) << 2
        return states | (states & self._star) << 1

    def match(self, names: Names) -> bool:
        """Return whether a pattern matches the path of these names."""
        states, staying = self._start, self._star | self._inside
        for name in names:
            for sign in name:
                going = states & (self._literal.get(sign, self._any) | self._outside)
                states = going << 1 | states & staying
                states |= (states & self._star) << 1
            states = (states & self._literal["/"]) << 1 | (states & self._inside) >> 1
            states = self._between_names(states)
            if not states:
                return False
        return bool(states & self._accept)

    def stands_above(self, names: Names) -> bool:
        """Return whether a path is a folder that a pattern names literally, above its matches."""
        return names in self._above


def _is_open(name: str) -> bool:
    return "*" in name or "?" in name


def fixed_part(pattern: str) -> tuple[Names, Names]:
    """Split a pattern before its first name with a wildcard."""
    names = names_of(pattern)
    at = next((at for at, name in enumerate(names) if _is_open(name)), len(names))
    return names[:at], names[at:]


@lru_cache(maxsize=256)
def globs(patterns: tuple[str, ...]) -> Globs:
    """Return patterns as a cached automaton."""
    return Globs(patterns)


def matches(path: str, pattern: str) -> bool:
    """Return whether a glob matches a path; letter case does not matter."""
    return globs((pattern,)).match(names_of(path))


def may_overlap(some: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Return whether a path of some globs may be one of others, or be above or below it.

    False is certain; in doubt it is True. Patterns are compared name by name, up to the first `**`
    or the end of one: a path and a folder above it cannot both be files.
    """
    return any(_may_meet(one, other) for one in some for other in others)


@lru_cache(maxsize=4096)
def _may_meet(one: str, other: str) -> bool:
    for name, facing in zip(names_of(one), names_of(other), strict=False):
        if "**" in (name, facing):
            return True
        if not _may_equal(name, facing):
            return False
    return True


def _may_equal(name: str, other: str) -> bool:
    if not _is_open(name) and not _is_open(other):
        return name == other
    start, other_start = (_OPEN.split(each, maxsplit=1)[0] for each in (name, other))
    end, other_end = (_OPEN.split(each)[-1] for each in (name, other))
    return (start.startswith(other_start) or other_start.startswith(start)) and (
        end.endswith(other_end) or other_end.endswith(end)
    )


_OPEN: Final = re.compile(r"[*?]")
