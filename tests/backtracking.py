"""A slow regular expression engine that counts its steps: it backtracks as Python's own does."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

Nodes = Sequence[tuple[Any, Any]]

_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    op.CATEGORY_DIGIT: str.isdigit,
    op.CATEGORY_NOT_DIGIT: lambda sign: not sign.isdigit(),
    op.CATEGORY_SPACE: str.isspace,
    op.CATEGORY_NOT_SPACE: lambda sign: not sign.isspace(),
    op.CATEGORY_WORD: lambda sign: sign.isalnum() or sign == "_",
    op.CATEGORY_NOT_WORD: lambda sign: not (sign.isalnum() or sign == "_"),
}
_ONE_SIGN = (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN)


class TooManyStepsError(Exception):
    """The pattern took more steps than were allowed for the text."""


class Counter:
    """Reads texts by a pattern and counts its steps."""

    def __init__(self, pattern: re.Pattern[Any]) -> None:
        source = pattern.pattern
        self.text = source if isinstance(source, str) else source.decode("latin-1")
        self._flags = pattern.flags
        self._nodes: Nodes = list(_parser.parse(self.text, pattern.flags & ~re.UNICODE))
        self._steps = self._most = 0

    def search(self, text: str, most: int) -> None:
        """Find all matches. Raises TooManyStepsError."""
        self._steps, self._most = 0, most
        at = 0
        while at <= len(text):
            end = next(self._match(self._nodes, 0, text, at), None)
            at = max(at + 1, end if end is not None else 0)

    def match(self, text: str, most: int, at: int = 0) -> int | None:
        """Return the end of a match that begins at a place. Raises TooManyStepsError."""
        self._steps, self._most = 0, most
        return next(self._match(self._nodes, 0, text, at), None)

    def samples(self) -> set[str]:
        """Return signs and words that the pattern speaks of, to make hostile texts of."""
        found: set[str] = set()

        def walk(nodes: Nodes) -> None:
            word = ""
            for kind, value in nodes:
                if kind is op.LITERAL:
                    word += chr(value)
                    found.add(chr(value))
                    continue
                found.add(word)
                word = ""
                if kind in (op.IN, op.ANY, op.NOT_LITERAL):
                    members = (sign for sign in "a0 -@/.\\\n" if self._is(kind, value, sign))
                    found.update(list(members)[:2])
                for inner in _inner(kind, value):
                    walk(inner)
            found.add(word)

        walk(self._nodes)
        return found - {""}

    def _step(self) -> None:
        self._steps += 1
        if self._steps > self._most:
            raise TooManyStepsError(self.text)

    def _match(self, nodes: Nodes, index: int, text: str, at: int) -> Iterator[int]:
        """Yield every end of a match of nodes[index:] from `at`, in the order of backtracking."""
        self._step()
        if index == len(nodes):
            yield at
            return
        kind, value = nodes[index]
        for end in self._ends(kind, value, text, at):
            yield from self._match(nodes, index + 1, text, end)

    def _ends(self, kind: Any, value: Any, text: str, at: int) -> Iterator[int]:
        if kind in _ONE_SIGN:
            if at < len(text) and self._is(kind, value, text[at]):
                yield at + 1
        elif kind is op.BRANCH:
            for choice in value[1]:
                yield from self._match(choice, 0, text, at)
        elif kind is op.SUBPATTERN:
            yield from self._match(value[-1], 0, text, at)
        elif kind is op.ATOMIC_GROUP:
            yield from [end for end in [next(self._match(value, 0, text, at), None)] if end]
        elif kind is op.POSSESSIVE_REPEAT:
            yield from self._possessive(value, text, at)
        elif kind in (op.MAX_REPEAT, op.MIN_REPEAT):
            yield from self._repeat(kind, value, text, at)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            start = at if value[0] > 0 else at - value[1].getwidth()[0]
            met = start >= 0 and next(self._match(value[1], 0, text, start), None) is not None
            if met is (kind is op.ASSERT):
                yield at
        elif kind is op.AT:
            if self._is_at(value, text, at):
                yield at
        else:
            raise NotImplementedError(kind)

    def _possessive(self, value: Any, text: str, at: int) -> Iterator[int]:
        fewest, most, nodes = value
        count = 0
        while count < most:
            end = next(self._match(nodes, 0, text, at), None)
            if end is None or (end == at and count >= fewest):
                break
            at, count = end, count + 1
        if count >= fewest:
            yield at

    def _repeat(self, kind: Any, value: Any, text: str, at: int) -> Iterator[int]:
        """Go through the repeats without recursion: texts are longer than Python's stack."""
        fewest, most, nodes = value
        ends: list[int] = [at]
        tries: list[Iterator[int]] = []
        is_lazy = kind is op.MIN_REPEAT
        while True:
            if is_lazy and len(ends) > fewest:
                yield ends[-1]
            if len(tries) < len(ends) and len(ends) <= most:
                tries.append(self._match(nodes, 0, text, ends[-1]))
            elif len(tries) < len(ends):  # no more are allowed
                if not is_lazy and len(ends) > fewest:
                    yield ends[-1]
                ends.pop()
            while tries and len(tries) == len(ends):
                end = next(tries[-1], None)
                if end is not None and end != ends[-1]:
                    ends.append(end)
                    break
                if end is None:
                    tries.pop()
                    if not is_lazy and len(ends) > fewest:
                        yield ends[-1]
                    ends.pop()
            if not ends:
                return

    def _is(self, kind: Any, value: Any, sign: str) -> bool:
        if kind is op.ANY:
            return sign != "\n" or bool(self._flags & re.DOTALL)
        if kind in (op.LITERAL, op.NOT_LITERAL):
            same = sign == chr(value) or (
                bool(self._flags & re.IGNORECASE) and sign.lower() == chr(value).lower()
            )
            return same is (kind is op.LITERAL)
        is_negated = value[0][0] is op.NEGATE
        return is_negated is not any(_has(what, member, sign) for what, member in value)

    def _is_at(self, place: Any, text: str, at: int) -> bool:
        if place is op.AT_BEGINNING:
            return at == 0 or (bool(self._flags & re.MULTILINE) and text[at - 1] == "\n")
        if place is op.AT_BEGINNING_STRING:
            return at == 0
        if place is op.AT_END:
            return text[at:] in ("", "\n") or (
                bool(self._flags & re.MULTILINE) and text[at] == "\n"
            )
        if place is op.AT_END_STRING:
            return at == len(text)
        if place is op.AT_BOUNDARY:
            return _is_word(text[max(at - 1, 0) : at]) is not _is_word(text[at : at + 1])
        raise NotImplementedError(place)


def _is_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"


def _has(what: Any, member: Any, sign: str) -> bool:
    if what is op.LITERAL:
        return sign == chr(member)
    if what is op.RANGE:
        return bool(member[0] <= ord(sign) <= member[1])
    return what is op.CATEGORY and _CATEGORIES[member](sign)


def _inner(kind: Any, value: Any) -> Iterator[Nodes]:
    if kind is op.BRANCH:
        yield from value[1]
    elif kind is op.SUBPATTERN:
        yield value[-1]
    elif kind is op.ATOMIC_GROUP:
        yield value
    elif kind in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        yield value[2]
    elif kind in (op.ASSERT, op.ASSERT_NOT):
        yield value[1]
