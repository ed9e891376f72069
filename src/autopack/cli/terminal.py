"""How commands speak: JSON for machines, plain words and tables for people.

What the service says may come from an agent: nothing of it may steer a terminal.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pydantic import BaseModel

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for machines.")]
UrlOption = Annotated[
    str | None, typer.Option("--url", help="The service (API_URL, http://localhost:8000).")
]


def shown(text: str) -> str:
    """Return text for one line of a terminal: what is no printable character is spelt out."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_json(answer: BaseModel | Any) -> None:
    """Print a document as the service has it, in ASCII."""
    document = answer if isinstance(answer, dict | list) else answer.model_dump(mode="json")
    print(json.dumps(document, indent=2))
