"""The paths in a patch's header lines, read as `git apply -p1` reads them.

git guesses in some cases (names cut at a tab or a date, broken quotes taken literally, the number
of stripped folders taken from the first names). Here a name that git could read in two ways is
refused, so that this module and git never read different paths.
"""

from __future__ import annotations

import re

from ..domain.changes import DIFF_COMMAND

# What git puts before the old and the new path: a/ b/, the letters of `diff.mnemonicPrefix`, and
# the digits of `git diff --no-index`. Without one, `-p1` would remove a real folder.
_PREFIX = re.compile(rb"[abciow12]/")
_PREFIX_LENGTH = 2

_QUOTED = re.compile(rb'"((?:[^"\\]|\\.)*)"')
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2}|.)", re.DOTALL)
_ESCAPED = dict(zip(b'abtnvfr"\\', b'\a\b\t\n\v\f\r"\\', strict=True))
_NEEDS_QUOTES = re.compile(rb'[\x00-\x1f\x7f"\\]')
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
_DATE_PART = re.compile(rb"\d\d-\d\d-\d\d")
_DATE_LETTERS = b"0123456789 :.+-"
_DATE = re.compile(rb"\d{4}-\d\d-\d\d(?: \d\d:\d\d:\d\d(?:\.\d+)?)?(?: [+-]\d\d:?\d\d)?$")

DEV_NULL = b"/dev/null"


class NameProblemError(Exception):
    """Why a name is refused, as the end of a sentence; the scanner adds the line."""


def unquote(text: bytes) -> tuple[bytes, bytes]:
    """Split a C-quoted name from the text after it.

    Raises NameProblemError for quotes that do not close, unknown escapes, and `\\000`, at which
    git would silently end the name.
    """
    match = _QUOTED.match(text)
    if match is None:
        raise NameProblemError("has a quoted name without its closing quote")

    def plain(escape: re.Match[bytes]) -> bytes:
        code = escape.group(1)
        if len(code) == 3:
            byte = int(code, 8)
            if byte == 0:
                raise NameProblemError("has \\000 in a quoted name")
            return bytes([byte])
        if code[0] not in _ESCAPED:
            raise NameProblemError(f"has the unknown escape \\{show(code)} in a quoted name")
        return bytes([_ESCAPED[code[0]]])

    return _ESCAPE.sub(plain, match.group(1)), text[match.end() :]


def bare_name(text: bytes) -> bytes:
    """Return the name of a `rename` or `copy` line: the whole line, without a prefix."""
    if text.startswith(b'"'):
        name, rest = unquote(text)
        if rest:
            raise NameProblemError("has text after the quoted name")
    else:
        name = text
        _check_unquoted(name)
    return checked_path(name)


def side_name(text: bytes, *, is_traditional: bool) -> bytes | None:
    """Return the name of a `---` or `+++` line, without its prefix; None for /dev/null."""
    name = written_name(text, is_traditional=is_traditional)
    return None if name is None else checked_path(_without_prefix(name))


def written_name(text: bytes, *, is_traditional: bool) -> bytes | None:
    """Return the name of a `---` or `+++` line as it is written; None for /dev/null.

    Without a `diff --git` line git also removes a date after the name, even after spaces; what
    could be date or name is refused.
    """
    if text.startswith(b'"'):
        name, rest = unquote(text)
        if rest and not rest.startswith(b"\t"):
            raise NameProblemError("has text after the quoted name")
    else:
        name, _, stamp = text.partition(b"\t")
        if is_traditional:
            _check_date(name, stamp)
        _check_unquoted(name)
        if name == DEV_NULL:
            return None
    return name


def common_name(text: bytes) -> bytes | None:
    """Return the one name that both halves of a `diff --git` line have, else None.

    git uses that line only where no other one names the file. A rename has two names, which spaces
    can make ambiguous; its `rename` lines are clear.
    """
    both = written_names(text)
    if both is None or not all(has_prefix(name) for name in both):
        return None
    first, second = (name[_PREFIX_LENGTH:] for name in both)
    return checked_path(first) if first == second else None


def written_names(text: bytes) -> tuple[bytes, bytes] | None:
    """Return both names of a `diff --git` line as they are written, if they are equally long."""
    if text.startswith(b'"'):
        first, rest = unquote(text)
        second = rest[1:]
        if second.startswith(b'"'):
            second, rest = unquote(second)
    elif text.endswith(b'"'):
        first, _, rest = text.partition(b' "')
        second, _ = unquote(b'"' + rest)
        _check_unquoted(first)
    else:
        middle = len(text) // 2
        first, second = text[:middle], text[middle + 1 :]
        if text[middle : middle + 1] != b" ":
            return None
        _check_unquoted(text)
    return first, second


def has_prefix(name: bytes) -> bool:
    """Return whether a name starts with a prefix of git, such as a/ and b/."""
    return _PREFIX.match(name) is not None


def quoted(name: bytes) -> bytes:
    """Return a name as git writes it: in quotes where it needs them."""
    if not _NEEDS_QUOTES.search(name):
        return name
    return b'"%b"' % _NEEDS_QUOTES.sub(lambda found: b"\\%03o" % found.group()[0], name)


def show(name: bytes) -> str:
    """Return a name or line as printable text of bounded length, for any encoding."""
    text = name.decode(errors="backslashreplace")
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _check_unquoted(name: bytes) -> None:
    if _CONTROL.search(name) or name.startswith(b'"') or b' "' in name:
        raise NameProblemError("has control characters or quotes in a name that is not quoted")


def _check_date(name: bytes, stamp: bytes) -> None:
    """Refuse anything at the end that git could read as a date, except after a single tab."""
    text = stamp or name
    end = text[len(text.rstrip(_DATE_LETTERS)) :]
    if _DATE_PART.search(end) and not _DATE.match(stamp):
        raise NameProblemError("ends in text that may be a date or part of the name")


def _without_prefix(name: bytes) -> bytes:
    if not has_prefix(name):
        raise NameProblemError(
            f"names {show(name)}, without the a/ or b/ that git puts before; where `diff.noprefix`"
            f" is set, make the diff by `{DIFF_COMMAND}`"
        )
    return name[_PREFIX_LENGTH:]


def checked_path(name: bytes) -> bytes:
    """Return a path that stays inside the repository. Raises NameProblemError for others."""
    if any(part in (b"", b".", b"..") for part in name.split(b"/")):
        raise NameProblemError(f"names {show(name)}, which is not a path inside the repository")
    return name
