"""What is shown: one typed shape for each answer, by noun.

HTTP, MCP, the files of a run and the client have the same ones. What is asked is not shown: a
request's body is the domain's own value, or stands at its route in `api/`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from functools import cache
from operator import attrgetter
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, PlainSerializer

from ..domain.events import wire_time

WireTime = Annotated[
    datetime, PlainSerializer(wire_time, return_type=str, when_used="json-unless-none")
]


class Shape(BaseModel):
    """An answer, which can be read off a row that has attributes of these names."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of(cls, row: object, **given: Any) -> Self:
        """Make a view from the attributes of the same names of a row, and from `given`."""
        if not given:
            return cls.model_validate(row)
        names, read = _reader(cls, frozenset(given))
        return cls.model_validate({**dict(zip(names, read(row), strict=True)), **given})


@cache
def _reader(
    kind: type[Shape], given: frozenset[str]
) -> tuple[tuple[str, ...], Callable[[object], tuple[Any, ...]]]:
    """Return which attributes are read, and a function that reads them all at once."""
    sources = (field.validation_alias or name for name, field in kind.model_fields.items())
    names = tuple(dict.fromkeys(str(source) for source in sources if source not in given))
    return names, attrgetter(*names)
