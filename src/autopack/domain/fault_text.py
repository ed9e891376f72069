"""Faults in languages that are read line by line, without a parser. (rules §6.1)

Strings and comments are blanked out first, each sign by one sign, so that places stay the same. A
fault may still be none that a compiler accepts: such a fault does not count.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from enum import StrEnum
from itertools import islice
from typing import Final

from .fault_terms import Edit, FaultOperator


class Language(StrEnum):
    """How a language writes comments, strings and conditions."""

    C = "c"  # C, C++, Java and similar
    SCRIPT = "script"  # JavaScript and TypeScript
    GO = "go"
    RUST = "rust"
    SHELL = "shell"
    PLAIN = "plain"  # Ruby, Perl, Lua, R and similar


_MAX_EDITS_IN_LINE: Final = 20
_BLANK: Final = b"\x01"  # stands for a sign of a string or comment

_C_TOKEN: Final = re.compile(
    rb"//[^\n]*|/\*|'(?:\\.|[^'\\\n]){0,20}'|\"(?:\\.|[^\"\\\n])*\"?|`", re.DOTALL
)
_SCRIPT_TOKEN: Final = re.compile(
    rb"//[^\n]*|/\*|'(?:\\.|[^'\\\n])*'?|\"(?:\\.|[^\"\\\n])*\"?|`(?:\\.|[^`\\])*`?", re.DOTALL
)
_HASH_TOKEN: Final = re.compile(
    rb"(?:^|(?<=[\s;]))#[^\n]*|(?:^|(?<=\s))--[ \t][^\n]*|'[^'\n]*'?|\"(?:\\.|[^\"\\\n])*\"?",
    re.MULTILINE | re.DOTALL,
)
_SHELL_TOKEN: Final = re.compile(
    rb"(?:^|(?<=[\s;]))#[^\n]*|'[^']*'?|\"(?:\\.|[^\"\\\n])*\"?", re.MULTILINE | re.DOTALL
)

_IMPORT: Final = re.compile(
    rb"\s*(#|@|export \*|(import|from|package|use|using|include|require|module|extern)\b)"
)
_LOOP: Final = re.compile(rb"\s*(\}\s*)?(for|while|until|loop)\b")
_LOGGING: Final = re.compile(
    rb"\s*(console\.|log(ger)?[.(]|logging\.|debug|printf?\b|println|eprintln|fmt\.Print|echo\b|puts\b"
    rb"|System\.(out|err)|NSLog|warn)"
)
_NOTHING_LEFT: Final = re.compile(rb"[\s{}()\[\];,\x01]*")

_COMPARISON: Final = re.compile(
    rb"(?<![=!<>&|:+*/%^-])(===|!==|==|!=|<=|>=)(?![=<>])|(?<=[\w)\]\x01] )(<|>)(?= [\w(\x01-])"
)
_OTHER_COMPARISON: Final = {
    b"===": b"!==",
    b"!==": b"===",
    b"==": b"!=",
    b"!=": b"==",
    b"<=": b">",
    b">=": b"<",
    b"<": b">=",
    b">": b"<=",
}
_SHELL_TEST: Final = re.compile(rb"(?<=\s)(-eq|-ne|-lt|-le|-gt|-ge|-z|-n|=|==|!=)(?=\s)")
_OTHER_TEST: Final = {
    b"-eq": b"-ne",
    b"-ne": b"-eq",
    b"-lt": b"-ge",
    b"-ge": b"-lt",
    b"-le": b"-gt",
    b"-gt": b"-le",
    b"-z": b"-n",
    b"-n": b"-z",
    b"=": b"!=",
    b"==": b"!=",
    b"!=": b"=",
}
_LOGIC: Final = re.compile(rb"(?<=[\w)\]\x01}] )(&&|\|\|)(?= \S)")
_BOOLEAN: Final = re.compile(rb"(?<![\w.$-])(true|false|TRUE|FALSE|True|False)(?![\w-])")
_NUMBER: Final = re.compile(rb"(?<![\w.$#&<>\x01-])(\d{1,15})(?![\w.:<>\x01])")
_ARITHMETIC: Final = re.compile(rb"(?<=[\w)\]] )([+-])(?= [\w(])")
_CONDITION: Final = re.compile(rb"\s*(?:\}\s*)?(?:else\s+)?if\s*\(")
_BARE_CONDITION: Final = re.compile(rb"\s*(?:\}\s*)?(?:else\s+)?if\s+([^;{]*\S)\s*\{\s*$")
_SHELL_CONDITION: Final = re.compile(rb"\s*(?:el)?if\s+(?!!)(.*\S)\s*;\s*then\b")
_RETURN: Final = re.compile(
    rb"(?<![\w.])return\s+(?!undefined\b|null\b|nil\b)([^;{}(\[]+|[^;]*\))\s*;?\s*$"
)
_ARGUMENTS: Final = re.compile(rb"\w\((\w[\w.]*), (\w[\w.]*)[,)]")
_DEFINITION: Final = re.compile(
    rb"\s*((pub|export|default|async|static|public|private|protected)\s+)*(function|fn|func|def|sub|fun)\b"
)
_CALL_LINE: Final = re.compile(rb"\s*(?:await\s+)?\w+(?:(?:\.|->|::)\w+)*\(.*\)(;?)\s*$")
_SET_LINE: Final = re.compile(rb"\s*\w+(?:(?:\.|->)\w+|\[\w+\])+\s*(?:[+*-]=|=)\s*[^=].*(;)\s*$")


def text_edits(content: bytes, lines: Collection[int] | None, language: Language) -> Iterator[Edit]:
    """Yield the faults of a file in these lines. `lines` count from 1; None stands for all."""
    masked = _masked(content, language)
    start = 0
    for number, line in enumerate(masked.split(b"\n"), start=1):
        if (lines is None or number in lines) and not _is_left_out(line):
            found = _edits(line.rstrip(b"\r"), language)
            for operator, begin, end, text in islice(found, _MAX_EDITS_IN_LINE):
                kept = text(content[start + begin : start + end])
                yield Edit(number, operator, start + begin, start + end, kept)
        start += len(line) + 1


def _masked(content: bytes, language: Language) -> bytes:
    """Blank out strings and comments, one sign for each byte; newlines stay."""
    token = {
        Language.SCRIPT: _SCRIPT_TOKEN,
        Language.SHELL: _SHELL_TOKEN,
        Language.PLAIN: _HASH_TOKEN,
    }.get(language, _C_TOKEN)
    parts: list[bytes] = []
    place = 0
    while (found := token.search(content, place)) is not None:
        end = found.end()
        if found[0] == b"/*":
            close = content.find(b"*/", end)
            end = len(content) if close < 0 else close + 2
        elif found[0] == b"`":
            close = content.find(b"`", end)
            end = len(content) if close < 0 else close + 1
        parts += content[place : found.start()], _blanked(content[found.start() : end])
        place = end
    parts.append(content[place:])
    return b"".join(parts)


def _blanked(text: bytes) -> bytes:
    is_comment = text.startswith((b"//", b"/*", b"#", b"--"))
    return re.sub(rb"[^\n]", b" " if is_comment else _BLANK, text)


def _is_left_out(line: bytes) -> bool:
    return (
        _NOTHING_LEFT.fullmatch(line.rstrip()) is not None
        or _IMPORT.match(line) is not None
        or _LOGGING.match(line) is not None
        or _LOOP.match(line) is not None  # a loop without end would cost the whole time limit
    )


_Found = tuple[FaultOperator, int, int, Callable[[bytes], bytes]]


def _edits(line: bytes, language: Language) -> Iterator[_Found]:
    yield from _comparisons(line, language)
    yield from _conditions(line, language)
    yield from _logic(line, language)
    yield from _constants(line)
    yield from _returns(line, language)
    if language is not Language.SHELL:
        for found in _ARITHMETIC.finditer(line):
            other = b"-" if found[1] == b"+" else b"+"
            yield FaultOperator.CHANGE_ARITHMETIC, *found.span(1), _becomes(other)
        yield from _arguments(line)
    yield from _dropped(line, language)


def _comparisons(line: bytes, language: Language) -> Iterator[_Found]:
    operator = FaultOperator.NEGATE_COMPARISON
    if language is Language.SHELL:
        if re.search(rb"\[|\btest\b", line):
            for found in _SHELL_TEST.finditer(line):
                yield operator, *found.span(1), _becomes(_OTHER_TEST[found[1]])
        return
    for found in _COMPARISON.finditer(line):
        sign = found[1] or found[2]
        yield operator, *found.span(), _becomes(_OTHER_COMPARISON[sign])


def _conditions(line: bytes, language: Language) -> Iterator[_Found]:
    operator = FaultOperator.NEGATE_CONDITION
    if language is Language.SHELL:
        found = _SHELL_CONDITION.match(line)
        if found:
            yield operator, *found.span(1), lambda old: b"! " + old
    elif language in (Language.GO, Language.RUST):
        found = _BARE_CONDITION.match(line)
        if found and not re.search(rb"\blet\b|:=", found[1]):
            yield operator, *found.span(1), lambda old: b"!(" + old + b")"
    elif language in (Language.C, Language.SCRIPT):
        found = _CONDITION.match(line)
        end = _closing(line, found.end()) if found else None
        if found and end is not None:
            yield operator, found.end(), end, lambda old: b"!(" + old + b")"


def _closing(line: bytes, start: int) -> int | None:
    """Return the place of the bracket that closes the one before `start`, in the same line."""
    depth = 1
    for place in range(start, len(line)):
        depth += {40: 1, 41: -1}.get(line[place], 0)
        if depth == 0:
            return place
    return None


def _logic(line: bytes, language: Language) -> Iterator[_Found]:
    for found in _LOGIC.finditer(line):
        if language is Language.RUST and line[: found.start()].rstrip().endswith(b"move"):
            continue
        other = b"||" if found[1] == b"&&" else b"&&"
        yield FaultOperator.SWAP_LOGIC, *found.span(1), _becomes(other)


def _constants(line: bytes) -> Iterator[_Found]:
    for found in _BOOLEAN.finditer(line):
        yield FaultOperator.CHANGE_CONSTANT, *found.span(1), _becomes(_other_boolean(found[1]))
    for found in _NUMBER.finditer(line):
        number = b"%d" % (int(found[1]) + 1)
        yield FaultOperator.CHANGE_CONSTANT, *found.span(1), _becomes(number)


def _other_boolean(word: bytes) -> bytes:
    other = b"false" if word.lower() == b"true" else b"true"
    return other.upper() if word.isupper() else other.title() if word.istitle() else other


def _returns(line: bytes, language: Language) -> Iterator[_Found]:
    """Only where a function may return nothing without a compiler's objection."""
    nothing = {Language.SCRIPT: b"undefined", Language.PLAIN: b"nil"}.get(language)
    found = _RETURN.search(line) if nothing else None
    if found and nothing and found[1].count(b"(") == found[1].count(b")"):
        yield FaultOperator.RETURN_NOTHING, *found.span(1), _becomes(nothing)


def _arguments(line: bytes) -> Iterator[_Found]:
    if _DEFINITION.match(line) or line.rstrip().endswith(b"{"):
        return
    for found in _ARGUMENTS.finditer(line):
        if found[1] != found[2]:
            swapped = found[2] + b", " + found[1]
            yield FaultOperator.SWAP_ARGUMENTS, found.start(1), found.end(2), _becomes(swapped)


def _dropped(line: bytes, language: Language) -> Iterator[_Found]:
    """Drop a call or an assignment to a part of a value; only lines that are whole statements."""
    indent = len(line) - len(line.lstrip())
    if language is Language.SHELL or _DEFINITION.match(line):
        return
    found = _CALL_LINE.match(line) or _SET_LINE.match(line)
    if found is None or line.count(b"(") != line.count(b")"):
        return
    if not found[1] and language in (Language.C, Language.RUST):
        return  # the last expression of a function, or a part of a longer statement
    if re.match(rb"\s*(if|for|while|switch|return|throw|super|catch|function|match)\b", line):
        return
    yield FaultOperator.DROP_LINE, indent, len(line.rstrip()), _becomes(found[1])


def _becomes(text: bytes) -> Callable[[bytes], bytes]:
    return lambda _: text
