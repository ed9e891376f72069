"""The typed shape of each answer, by noun.

HTTP, MCP, the files of a run and the client use the same shapes. Requests are not views: a
request's body is a value of the domain, or a model beside its route in `api/`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Self

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


@cache
def _reader(
    kind: type[Shape], given: frozenset[str]
) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    """Return the names to read, and a function that reads them all at once."""
    sources = (field.validation_alias or name for name, field in kind.model_fields.items())
    names = tuple(dict.fromkeys(str(source) for source in sources if source not in given))
    return names, attrgetter(*names)
