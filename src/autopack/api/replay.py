"""How an answer that was given before is marked."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from ..services.replies import Answer


def replayed(response: Response, answer: Answer) -> dict[str, Any]:
    """Return an answer's body; one given again says so in a header."""
    if answer.is_replay:
        response.headers["Idempotency-Replayed"] = "true"
    return answer.body
