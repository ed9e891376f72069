"""Requests of reviews, with what became of them."""

from __future__ import annotations

from typing import Final

from ..models import ReviewRequest
from .rows import Rows
from .session import RowSession

REVIEW_REQUESTS: Final = Rows(ReviewRequest)


def add_review_request(session: RowSession, request: ReviewRequest) -> ReviewRequest:
    """Store a request; it has its id at once."""
    request.id = session.next_id(REVIEW_REQUESTS)
    return session.put(REVIEW_REQUESTS, request)


def find_review_request(
    session: RowSession, phase_pk: int, request_id: int
) -> ReviewRequest | None:
    """Return a request of a review of a phase."""
    return session.row(REVIEW_REQUESTS, "WHERE phase_pk = %s AND id = %s", (phase_pk, request_id))


def find_open_request(session: RowSession, phase_pk: int) -> ReviewRequest | None:
    """Return the oldest request of a phase that has no answer."""
    is_open = "WHERE phase_pk = %s AND answered_at IS NULL ORDER BY id LIMIT 1"
    return session.row(REVIEW_REQUESTS, is_open, (phase_pk,))
