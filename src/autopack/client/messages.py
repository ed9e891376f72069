"""Server-sent events, read from lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

MEDIA_TYPE: Final = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `event` is its name, by default `message`."""

    event: str
    data: str


def read_messages(lines: Iterable[str]) -> Iterator[Message]:
    """Yield each complete message; skips comments, which only keep the connection open."""
    event = ""
    data: list[str] = []
    for line in lines:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Message(event or "message", "\n".join(data))
            event, data = "", []
        elif name == "event":
            event = value
        elif name == "data":
            data.append(value)
