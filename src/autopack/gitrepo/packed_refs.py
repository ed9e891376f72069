"""git's file packed-refs: a line a ref, sorted by name, so that one of 100,000 is found at once."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HEADER = b"# pack-refs with:"
_PEELED = b"^"  # such a line says what the tag of the line above points to
_NAME_AT = 41  # after the id and a space


class PackedRefs:
    """The packed refs of one repository. Has no state, so any number of threads may use it."""

    def __init__(self, git_dir: Path) -> None:
        self._path = git_dir / "packed-refs"

    def find(self, ref: str) -> str | None:
        """Return the id (or whatever is in its place) of a ref; None where it is not packed."""
        name = _bytes(ref)
        line = self._first_from(name)
        return _text(line[: _NAME_AT - 1]) if line[_NAME_AT:] == name else None

    def first_within(self, ref: str) -> str | None:
        """Return a ref whose name begins with this one and a slash."""
        prefix = _bytes(f"{ref}/")
        name = self._first_from(prefix)[_NAME_AT:]
        return _text(name) if name.startswith(prefix) else None

    def _first_from(self, name: bytes) -> bytes:
        """Return the line of the first ref that has this name or a later one; empty without one."""
        with self._mapped() as packed:
            at = packed.find(b"\n") + 1
            if b" sorted " not in packed[:at].replace(b"\n", b" "):
                return min(
                    (line for line in _lines(packed[:]) if line[_NAME_AT:] >= name),
                    key=lambda line: line[_NAME_AT:],
                    default=b"",
                )
            end = len(packed)
            while at < end:  # `at` and `end` are where a ref's line begins
                middle = _line_of(packed, at, (at + end) // 2)
                if packed[middle + _NAME_AT : _end(packed, middle)] < name:
                    at = _next(packed, middle)
                else:
                    end = middle
            return packed[at : _end(packed, at)]

    @contextmanager
    def _mapped(self) -> Iterator[mmap.mmap | bytes]:
        """Yield the content, which may be many megabytes long; git replaces the file as a whole."""
        try:
            file = self._path.open("rb")
        except FileNotFoundError:
            yield b""
            return
        with file:
            try:
                packed = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:  # the file is empty
                yield b""
                return
            with packed:
                yield packed


def _lines(packed: bytes) -> Iterator[bytes]:
    return (line for line in packed.split(b"\n") if line and line[:1] not in (b"#", _PEELED))


def _line_of(packed: mmap.mmap | bytes, first: int, at: int) -> int:
    """Return where the ref's line begins that has or peels a byte; `first` is one, too."""
    start = packed.rfind(b"\n", first, at) + 1 or first
    if packed[start : start + 1] == _PEELED:
        start = packed.rfind(b"\n", first, start - 1) + 1 or first
    return start


def _end(packed: mmap.mmap | bytes, start: int) -> int:
    end = packed.find(b"\n", start)
    return len(packed) if end < 0 else end


def _next(packed: mmap.mmap | bytes, start: int) -> int:
    following = min(_end(packed, start) + 1, len(packed))
    if packed[following : following + 1] == _PEELED:
        following = min(_end(packed, following) + 1, len(packed))
    return following


def _bytes(ref: str) -> bytes:
    return ref.encode(errors="surrogateescape")


def _text(found: bytes) -> str:
    return found.decode(errors="surrogateescape")
