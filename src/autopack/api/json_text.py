"""JSON by RFC 8259, within limits that are checked before any value is built.

Every step is short: no call of C code processes more than some hundred kilobytes, because it keeps
the interpreter's lock, and so stops the event loop, until it returns.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from json.decoder import scanstring  # type: ignore[attr-defined]  # not in the stubs
from typing import Any, Final, NoReturn

# A smaller body is read in less time than a thread needs to start.
SMALL_BYTES: Final = 65_536
# Python refuses to parse an integer with more digits.
MAX_NUMBER_BYTES: Final = 4_300
MAX_NAME_BYTES: Final = 1_000
MAX_BLANKS: Final = 65_536

_TOKEN: Final = re.compile(
    rb'[ \t\n\r]{0,%d}+(?:(?P<quote>")|(?P<open>[\[{])|(?P<close>[\]}])|(?P<comma>,)|(?P<colon>:)'
    rb'|(?P<atom>[^ \t\n\r"\[\]{},:]{1,%d}+))' % (MAX_BLANKS, MAX_NUMBER_BYTES + 1)
)
_ESCAPES: Final = re.compile(rb'(?:\\.[^"\\]{0,1024}+){1,64}+', re.DOTALL)
# Whole characters of a string: neither an escape nor a surrogate pair is cut.
_PIECE: Final = re.compile(
    r'(?:[^"\\]{1,4096}+'
    r"|\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"
    r"|\\u[\da-fA-F]{4}|\\[^u]){0,64}+",
    re.DOTALL,
)

JsonPath = tuple[str | int, ...]


class JsonError(ValueError):
    """The text is not JSON in the accepted form. The message is one sentence about the body."""


class TextTooLongError(ValueError):
    """A string is longer than any that may be sent. The message is about the body."""


class TooManyItemsError(ValueError):
    """A list or an object has too many items. `path` says which one."""

    def __init__(self, path: JsonPath, message: str) -> None:
        super().__init__(message)
        self.path = path


@dataclass(frozen=True, slots=True)
class Limit:
    """The highest number of items of a list, and the setting for it."""

    count: int
    setting: str


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """The limits of a body. `lists` has the limits of single lists, by name."""

    depth: int
    values: Limit
    items: Limit
    text: Limit  # in bytes, as UTF-8
    lists: Mapping[str, Limit] = field(default_factory=dict)


@dataclass(slots=True)
class _Container:
    step: str | int | None  # its name or index in the surrounding value
    limit: Limit
    is_list: bool
    commas: int = 0


def read_json(body: bytes, limits: JsonLimits) -> Any:
    """Read JSON in UTF-8. Raises JsonError, TextTooLongError, TooManyItemsError."""
    body = _without_blanks_after_it(body)
    check_limits(body, limits)
    if body.startswith(codecs.BOM_UTF8):
        raise JsonError("begins with a BOM, which JSON does not allow")
    try:
        decoder = _SMALL if len(body) < SMALL_BYTES else _StepwiseDecoder(limits.text)
        return decoder.decode(body.decode())
    except json.JSONDecodeError as error:
        raise JsonError(
            f"is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
        ) from None
    except UnicodeDecodeError:
        raise JsonError("is not UTF-8") from None


def check_limits(body: bytes, limits: JsonLimits) -> None:
    """Check the limits of a body without building values. Raises JsonError, TooManyItemsError.

    Text that is not JSON passes here up to the place where the parser will refuse it.
    """
    stack: list[_Container] = []
    position = values = 0
    name: str | None = None
    last_string = b""
    while match := _TOKEN.match(body, position):
        kind, position = match.lastgroup, match.end()
        if kind == "comma":
            if not stack:
                return
            stack[-1].commas += 1
            if stack[-1].commas >= stack[-1].limit.count:
                raise _too_many(stack)
            continue
        if kind == "colon":
            if len(last_string) > MAX_NAME_BYTES:
                raise JsonError(f"has a name of more than {MAX_NAME_BYTES} bytes")
            name = _text(last_string)
            continue
        if kind == "close":
            if not stack:
                return
            stack.pop()
            continue
        values += 1
        if values > limits.values.count:
            most, setting = limits.values.count, limits.values.setting
            raise JsonError(f"has more than {most} values ({setting})")
        if kind == "open":
            if len(stack) == limits.depth:
                raise JsonError(f"is nested deeper than {limits.depth} levels")
            is_list = match.group()[-1:] == b"["
            limit = limits.lists.get(name or "", limits.items) if is_list else limits.items
            step = stack[-1].commas if stack and stack[-1].is_list else name
            stack.append(_Container(step, limit, is_list))
        elif kind == "quote":
            end = _string_end(body, position)
            if end < 0:
                return
            # An escape of six bytes is at least one byte of text.
            if end - position - 5 * body.count(b"\\", position, end) > limits.text.count + 1:
                raise _too_long(limits.text)
            last_string = body[position : min(end, position + MAX_NAME_BYTES + 2) - 1]
            position = end
            name = None
            continue
        elif len(match["atom"]) > MAX_NUMBER_BYTES and match["atom"][:1] in b"-0123456789":
            raise JsonError("has a number with thousands of digits")
        name, last_string = None, b""
    if len(body) - position > MAX_BLANKS and body[position : position + MAX_BLANKS].isspace():
        raise JsonError(f"has more than {MAX_BLANKS} blanks in a row")


def _without_blanks_after_it(body: bytes) -> bytes:
    """Remove the blanks after the value, so that the parser does not read them in one step."""
    end = len(body)
    while end > MAX_BLANKS and not body[end - MAX_BLANKS : end].strip(b" \t\n\r"):
        end -= MAX_BLANKS
    return body[:end]


def _too_many(stack: list[_Container]) -> TooManyItemsError:
    what = "items" if stack[-1].is_list else "names"
    limit = stack[-1].limit
    place = tuple(each.step for each in stack if each.step is not None)
    return TooManyItemsError(place, f"has more than {limit.count} {what} ({limit.setting})")


def _too_long(limit: Limit) -> TextTooLongError:
    return TextTooLongError(f"has a text of more than {limit.count} bytes ({limit.setting})")


def _text(name: bytes) -> str:
    """Read an object's name; the parser refuses one that is not a JSON string."""
    try:
        return str(json.loads(b'"%b"' % name)) if b"\\" in name else name.decode()
    except ValueError:
        return ""


def _string_end(body: bytes, start: int) -> int:
    """Return where a string that begins before `start` ends; -1 if it does not end."""
    position, quote = start, -1
    while True:
        if quote < position:
            quote = body.find(b'"', position)
            if quote < 0:
                return -1
        backslash = body.find(b"\\", position, quote)
        if backslash < 0:
            return quote + 1
        escapes = _ESCAPES.match(body, backslash)
        if escapes is None:  # the text ends in a backslash
            return -1
        position = escapes.end()


def _string(limit: Limit, text: str, start: int, strict: bool = True) -> tuple[str, int]:
    """Read a string piece by piece, as `json.decoder.scanstring` does in one step."""
    pieces: list[str] = []
    length = 0
    while length <= limit.count:
        match = _PIECE.match(text, start)
        cut = match.end() if match else start
        if cut == start or text[cut : cut + 1] in ('"', ""):  # its end, or an error
            piece, end = scanstring(text, start, strict)
            return "".join([*pieces, piece]), end
        try:
            piece, _ = scanstring(f'{text[start:cut]}"', 0, strict)
        except json.JSONDecodeError as error:
            raise json.JSONDecodeError(error.msg, text, start + error.pos) from None
        pieces.append(piece)
        length += len(piece)
        start = cut
    raise _too_long(limit)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is twice in one object: parsers disagree about which value counts."""
    found = dict(pairs)
    if len(found) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise JsonError(f"has {twice[:100]!r} twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise JsonError(f"has {name}, which is not a JSON number")


class _StepwiseDecoder(json.JSONDecoder):
    """The standard library's decoder in Python; reads long strings in pieces."""

    def __init__(self, text: Limit) -> None:
        super().__init__(parse_constant=_refuse_constant, object_pairs_hook=_unique)
        self.parse_string = partial(_string, text)
        # Not in the type stubs, but the library's own fallback without C code.
        self.scan_once = json.scanner.py_make_scanner(self)  # type: ignore[attr-defined]


_SMALL: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_unique)
