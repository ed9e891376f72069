"""Answers about strategies and backtests."""

from __future__ import annotations

from ..domain.run import FailureCode
from ..domain.states import RunStatus
from ..domain.strategy import Strategy
from . import Shape, WireTime


class DryRunAnswer(Shape):
    """`today` is the strategy under today's ruleset, if the request has another one."""

    strategy: Strategy
    today: Strategy | None


class EndingAnswer(Shape):
    state: RunStatus
    failure_code: FailureCode | None
    failure_reason: str | None
    tokens_used: int
    promotion_eligible_to_main: bool


class PartingAnswer(Shape):
    sequence: int
    at: WireTime
    detail: str


class ComparisonAnswer(Shape):
    run_id: str
    recorded: EndingAnswer
    replayed: EndingAnswer | None
    changes: list[str]
    parted_at: PartingAnswer | None
    skipped_inputs: int
    assumed_patches: int


class BacktestAnswer(Shape):
    compared_count: int
    changed_count: int
    runs: list[ComparisonAnswer]
