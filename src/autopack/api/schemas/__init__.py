"""The shapes of answers, by noun. Requests are the domain's own values."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, PlainSerializer

from ...domain.events import wire_time

WireTime = Annotated[
    datetime, PlainSerializer(wire_time, return_type=str, when_used="json-unless-none")
]


class Shape(BaseModel):
    """An answer, read off whatever has attributes of these names."""

    model_config = ConfigDict(from_attributes=True)
