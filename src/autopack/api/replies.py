"""The answer of a use case as a response, whose header says if it was given before."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from ..services.replies import Answer
from .errors import REPEATED


def reply(response: Response, answer: Answer) -> dict[str, Any]:
    """Return an answer's body; mark a repeated answer in a header."""
    mark_repeat(response, is_repeat=answer.is_repeat)
    return answer.body


def mark_repeat(response: Response, *, is_repeat: bool) -> None:
    """Mark an answer that was given to the same request before."""
    if is_repeat:
        response.headers.update(REPEATED)
