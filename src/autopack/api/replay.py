"""The header of an answer that was given before."""

from __future__ import annotations

from typing import Any

from fastapi import Response

from ..services.replies import Answer


def replayed(response: Response, answer: Answer) -> dict[str, Any]:
    """Return an answer's body; mark a repeated answer in a header."""
    mark_replay(response, is_replay=answer.is_replay)
    return answer.body


def mark_replay(response: Response, *, is_replay: bool) -> None:
    if is_replay:
        response.headers["Idempotency-Replayed"] = "true"
