"""From rows to the rules' own values, which are dataclasses; views read rows themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from operator import attrgetter
from typing import Any, TypeVar

Value = TypeVar("Value")


def read_off(kind: type[Value], row: object, **given: Any) -> Value:
    """Make a dataclass from the attributes of the same names of a row, and from `given`.

    JSON lists become tuples.
    """
    names, read = _reader(kind, tuple(given))  # type: ignore[arg-type]  # a class is hashable
    values = dict(zip(names, read(row), strict=True))
    for name, value in values.items():
        if type(value) is list:
            values[name] = tuple(value)
    return kind(**values, **given)


@cache
def _reader(
    kind: type[Any], given: tuple[str, ...]
) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    """Return which attributes are read, and a function that reads them all at once."""
    names = tuple(field.name for field in fields(kind) if field.name not in given)
    return names, attrgetter(*names)
