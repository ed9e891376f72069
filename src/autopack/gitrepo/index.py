"""git's index file, version 2, as far as `git apply --cached` needs it: names, modes and ids."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping

from .objects import Entry

_HEADER = struct.Struct(">4sII")
_ENTRY = struct.Struct(">24xI12x20sH")  # the `stat` fields are zero: nothing is checked out
_NAME_LENGTH = 0xFFF  # longer names end at their NUL


def write_index(entries: Mapping[bytes, Entry]) -> bytes:
    parts = [_HEADER.pack(b"DIRC", 2, len(entries))]
    for path, (mode, oid) in sorted(entries.items()):
        head = _ENTRY.pack(mode, bytes.fromhex(oid), min(len(path), _NAME_LENGTH))
        parts += head, path, bytes(_padding(len(path)))
    data = b"".join(parts)
    return data + hashlib.sha1(data, usedforsecurity=False).digest()


def read_index(data: bytes) -> dict[bytes, Entry]:
    """Read an index that git wrote without configuration. Raises ValueError for other forms."""
    signature, version, count = _HEADER.unpack_from(data)
    if signature != b"DIRC" or version not in (2, 3):
        raise ValueError(f"index version {version} was not expected")
    entries: dict[bytes, Entry] = {}
    at = _HEADER.size
    for _ in range(count):
        mode, oid, flags = _ENTRY.unpack_from(data, at)
        if flags & 0x7000:
            raise ValueError("an index entry is unmerged or extended")
        start = at + _ENTRY.size
        end = data.index(b"\0", start)
        entries[data[start:end]] = (mode, oid.hex())
        at = end + _padding(end - start)
    return entries


def _padding(name_length: int) -> int:
    """Return the number of NULs after a name: at least one, up to a multiple of eight."""
    return 8 - (_ENTRY.size + name_length) % 8
