"""Answers about promotion."""

from __future__ import annotations

from ..domain.promotion import PromotionCheck
from ..domain.rehearsal import Rehearsal
from . import Shape


class PromotionCheckAnswer(Shape):
    """One check of promotion; `passed` is null while it is not decided."""

    name: PromotionCheck
    passed: bool | None
    detail: str


class PromotionVerdictAnswer(Shape):
    """`reasons` are all reasons against it; `warnings` are what to check before merging.

    Eligibility is decided at the run's end; the merge with today's base branch is rehearsed in
    addition. `checks` are what was checked, passed or not. `is_signed`: whether the run's record is
    signed, null while there is none; whose signature counts is decided by `autopack verify`.
    """

    eligible: bool
    reasons: list[str]
    warnings: list[str]
    rehearsal: Rehearsal | None
    checks: list[PromotionCheckAnswer]
    is_signed: bool | None


class PullRequestAnswer(Shape):
    """Merge `head` into `base`; `body` is Markdown."""

    title: str
    body: str
    head: str
    base: str


class PromotionAnswer(PromotionVerdictAnswer):
    """The eligibility, and the pull request's text, also for an ineligible run."""

    run_id: str
    pull_request: PullRequestAnswer
