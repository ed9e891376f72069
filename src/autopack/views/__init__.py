"""The typed shape of each answer, by noun.

HTTP, MCP, the files of a run and the client use the same shapes. Requests are not views: a
request's body is a value of the domain, or a model beside its route in `api/`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from datetime import datetime
from functools import cache, lru_cache
from operator import attrgetter
from typing import Annotated, Any, Self, cast, get_origin

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from ..domain.events import wire_time

WireTime = Annotated[
    datetime, PlainSerializer(wire_time, return_type=str, when_used="json-unless-none")
]

MeasuredTokens = Annotated[
    int,
    Field(
        description="Those of `tokens_used` that a gateway counted; the others are agents' figures."
    ),
]


class Shape(BaseModel):
    """An answer; it can be filled from a row that has attributes of these names."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, row: object, **given: Any) -> Self:
        """Return a view with the row's attributes of the same names, and with `given`."""
        if not given:
            return cls.model_validate(row)
        names, read = _reader(cls, frozenset(given))
        return cls.model_validate({**dict(zip(names, read(row), strict=True)), **given})

    @classmethod
    def shared(cls, row: object, **given: Any) -> Self:
        """Return what `of` does; equal values give the same view, which must not be changed.

        To find one costs a fifth of making it, and most phases of a run are as they were.
        """
        names, read = _reader(cls, frozenset(given))
        values = [*read(row), *given.values()]
        for place in _lists(cls, (*names, *given)):
            values[place] = tuple(values[place])
        try:
            found: Self = _shared(cast("Hashable", cls), (*names, *given), tuple(values))
        except TypeError:  # a JSON object within: it cannot be looked up
            return cls.of(row, **given)
        return found


@cache
def _lists(kind: type[Shape], names: tuple[str, ...]) -> tuple[int, ...]:
    """Return which of these fields are lists, which cannot be looked up."""
    fields = kind.model_fields
    return tuple(
        place for place, name in enumerate(names) if get_origin(fields[name].annotation) is list
    )


@lru_cache(maxsize=4_096)
def _shared(kind: Any, names: tuple[str, ...], values: tuple[object, ...]) -> Any:
    return kind.model_validate(dict(zip(names, values, strict=True)))


@cache
def _reader(
    kind: type[Shape], given: frozenset[str]
) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    """Return the names to read, and a function that reads them all at once."""
    sources = (field.validation_alias or name for name, field in kind.model_fields.items())
    names = tuple(dict.fromkeys(str(source) for source in sources if source not in given))
    return names, attrgetter(*names)
