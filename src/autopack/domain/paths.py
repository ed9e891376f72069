"""How file systems read paths, and the globs that mean them.

A path is judged as the most forgetful file system would read it: without regard to letter case,
Unicode form, and what macOS and Windows leave out of names.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

Names = tuple[str, ...]

# What HFS+ leaves out of names, and the names that NTFS gives to `.git` and its kin besides.
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
    """Split a path into names as the most forgetful file system would read them."""
    return tuple(_plain_name(name) for name in path.replace("\\", "/").split("/"))


def folded(name: str) -> str:
    """Return what names have in common that differ by letter case or Unicode form alone."""
    if name.isascii():
        return name.lower()
    composed = unicodedata.normalize("NFC", name.translate(_IGNORED_BY_HFS))
    return unicodedata.normalize("NFC", composed.casefold())


def windows_problem(name: str) -> str | None:
    """Say why Windows cannot hold a name, as the end of a sentence; None: it can."""
    if name.endswith((".", " ")):
        return "ends in a dot or a space, which Windows cuts off"
    forbidden = sorted(_NOT_ON_WINDOWS.intersection(name))
    if forbidden:
        return f"has {forbidden[0]!r} in it, which Windows cannot hold"
    stem = name.partition(".")[0].rstrip(" ")
    if stem.lower() in _DEVICES:
        return f"is {stem} to Windows, which is a device and no file"
    return None


def _plain_name(name: str) -> str:
    if name in (".", ".."):
        return name
    plain = folded(name)
    plain = plain.partition(":")[0].rstrip(". ") or plain  # streams, and what NTFS cuts off
    short = _NTFS_SHORT.match(plain)
    return _NTFS_LONG[short.group(1)] if short else plain


class Globs:
    """Patterns of paths as one automaton, which reads a path once: a step a character.

    `*` and `?` stand for characters of one name, `**` for any number of whole names, none
    included, so `a/**` is `a` and all below it. A pattern is anchored at the top. Paths are read
    as `names_of` reads them.

    States are bits of a number, all patterns' side by side; bit n is where token n is awaited.
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
                if not name == follows == "**":  # two of them mean what one does
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
        """Add the states behind what may stand for nothing where a name begins."""
        states |= (states & self._outside) << 2
        return states | (states & self._star) << 1

    def match(self, names: Names) -> bool:
        """Say whether some pattern means the path of these names."""
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
        """Say whether a path is a folder that a pattern spells out on its way to what it means."""
        return names in self._above


def _is_open(name: str) -> bool:
    return "*" in name or "?" in name


def fixed_part(pattern: str) -> tuple[Names, Names]:
    """Split a pattern where its first name with a wildcard stands."""
    names = names_of(pattern)
    at = next((at for at, name in enumerate(names) if _is_open(name)), len(names))
    return names[:at], names[at:]


@lru_cache(maxsize=256)
def globs(patterns: tuple[str, ...]) -> Globs:
    """Return patterns made ready to be asked."""
    return Globs(patterns)


def matches(path: str, pattern: str) -> bool:
    """Say whether a path is one that a glob means; case does not matter."""
    return globs((pattern,)).match(names_of(path))
