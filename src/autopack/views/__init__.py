"""What is shown: one typed shape for each answer, by noun.

HTTP, MCP, the files of a run and the client have the same ones. What is asked is not shown: a
request's body is the domain's own value, or stands at its route in `api/`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer

from ..domain.events import wire_time

WireTime = Annotated[
    datetime, PlainSerializer(wire_time, return_type=str, when_used="json-unless-none")
]


class Shape(BaseModel):
    """An answer, read off whatever has attributes of these names."""

    model_config = ConfigDict(from_attributes=True)
