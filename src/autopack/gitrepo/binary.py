"""Read the frame of a `GIT binary patch`: the declared sizes, and the size of a delta's result.

git checks the content (`apply_to_tree` refuses what git calls corrupt) and unpacks a literal to its
declared size, never more. A delta declares only its own size. So the size of its result, which git
would allocate, is read from its first bytes.
"""

from __future__ import annotations

import base64
import re
import zlib
from dataclasses import dataclass

_METHOD = re.compile(rb"(literal|delta) (\d{1,12})$")
_HEAD_BYTES = 20  # two numbers of at most ten bytes


class BinaryProblemError(Exception):
    """Why a binary hunk is refused, and at which line."""

    def __init__(self, detail: str, at: int) -> None:
        super().__init__(detail)
        self.at = at


@dataclass(frozen=True, slots=True)
class BinaryHunk:
    """A binary hunk's frame; `size` is the size of its content after inflation."""

    is_delta: bool
    size: int
    start: int
    end: int


def find_hunk(lines: list[bytes], at: int) -> BinaryHunk | None:
    """Return the binary hunk that starts at this line, with its last blank line; else None."""
    method = _METHOD.match(lines[at]) if at < len(lines) else None
    if method is None:
        return None
    end = at + 1
    while end < len(lines) and lines[end]:
        end += 1
    if end == len(lines):
        raise BinaryProblemError("The binary content does not end with a blank line.", end - 1)
    return BinaryHunk(method.group(1) == b"delta", int(method.group(2)), at + 1, end)


def delta_result_size(lines: list[bytes], hunk: BinaryHunk) -> int:
    """Return the size of the file that a delta makes: the second number of its head.

    The first number is the size of the file that it starts from. Each byte has seven bits of a
    number, the lowest first; the last byte of a number is below 128.
    """
    sizes = []
    value = shift = 0
    for byte in _head(lines, hunk):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            sizes.append(value)
            value = shift = 0
    if len(sizes) < 2:
        raise BinaryProblemError("The binary delta has no readable head.", hunk.start)
    return sizes[1]


def _head(lines: list[bytes], hunk: BinaryHunk) -> bytes:
    """Return the first bytes of a hunk's content, inflated line by line and only as far as needed.

    A line is its length as one letter, then base-85.
    """
    inflater = zlib.decompressobj()
    head = b""
    for at in range(hunk.start, hunk.end):
        try:
            packed = base64.b85decode(lines[at][1:])
            head += inflater.decompress(packed, _HEAD_BYTES - len(head))
        except (ValueError, zlib.error) as error:
            raise BinaryProblemError("The binary content is damaged.", at) from error
        if len(head) == _HEAD_BYTES or inflater.eof:
            break
    return head
