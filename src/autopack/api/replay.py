"""The header of an answer that was given before."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from ..services.replies import Answer


def replayed(response: Response, answer: Answer) -> dict[str, Any]:
    """Return an answer's body; mark a repeated answer in a header."""
    if answer.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return answer.body
