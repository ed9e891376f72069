"""Answers with figures over many runs: what they cost, and how good the work was."""

from __future__ import annotations

from datetime import date
from typing import ClassVar

from pydantic import ConfigDict, Field

from ..domain.figures import Grouping
from ..domain.values import Usd
from . import Shape


class CostAnswer(Shape):
    """What one model, agent, category, project or day cost. `name` is empty where it is unknown.

    `phases` counts each phase once, at its last Builder result, so `tries` divided by `phases` is
    right for each group. `tickets` are patches that did not apply, `repairs` those that applied
    after a repair. `unpriced_results` used tokens at an unknown price. `tokens_measured` are those
    of `tokens` that a gateway counted, where the others are the agents' own figures.
    """

    name: str
    cost_usd: Usd
    cost_share: float | None
    tokens: int
    tokens_measured: int
    unpriced_results: int
    phases: int
    tries: int
    tries_per_phase: float | None
    tickets: int
    repairs: int


class CostsAnswer(Shape):
    """`total` is of all groups, also of those beyond the limit. Days are those of UTC."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)
    csv_rows: ClassVar[str] = "groups"

    by: Grouping
    start: date = Field(alias="from")
    end: date = Field(alias="to")
    total: CostAnswer
    groups: list[CostAnswer]


class RunQualityAnswer(Shape):
    ended: int
    succeeded: int
    failed: int
    cancelled: int
    success_rate: float | None = Field(description="Of runs that were not cancelled.")
    success_rate_before: float | None = Field(
        description="The same in the period of equal length before."
    )


class PhaseQualityAnswer(Shape):
    ended: int
    complete: int
    failed: int
    skipped: int
    complete_at_first_try: int
    tries_per_phase: float | None = Field(description="Of phases that were tried.")


class PatchQualityAnswer(Shape):
    """Results of Builders and Auditors; `needed_ticket` could not be applied as they came."""

    results: int
    needed_ticket: int
    repaired: int
    ticket_share: float | None
    repair_share: float | None


class TimesAnswer(Shape):
    """Times of one kind. `median_seconds` and `p90_seconds` are right to five percent."""

    number: int
    median_seconds: float | None
    p90_seconds: float | None


class CiQualityAnswer(Shape):
    """Runs of CI of one profile."""

    profile: str
    green: int
    red: int
    did_not_run: int
    times: TimesAnswer


class FlakyCheckAnswer(Shape):
    """A check that was red and then green on one commit."""

    name: str
    number: int
    share_of_ci_runs: float | None
    last_run_id: str


class DayAnswer(Shape):
    day: date
    runs_ended: int
    runs_failed: int
    cost_usd: Usd
    tokens: int
    ci_runs: int
    ci_median_seconds: dict[str, float] = Field(description="By profile.")


class QualityAnswer(Shape):
    """How work went in a period. `days` has one entry for each day of it."""

    model_config = ConfigDict(validate_by_name=True, serialize_by_alias=True)
    csv_rows: ClassVar[str] = "days"

    start: date = Field(alias="from")
    end: date = Field(alias="to")
    runs: RunQualityAnswer
    phases: PhaseQualityAnswer
    patches: PatchQualityAnswer
    builder_outcomes: dict[str, int]
    auditor_outcomes: dict[str, int]
    ci: list[CiQualityAnswer]
    flaky_checks: list[FlakyCheckAnswer]
    waits: dict[str, TimesAnswer] = Field(
        description="Until a `builder` or an `auditor` took a phase, and until `ci` began."
    )
    days: list[DayAnswer]
