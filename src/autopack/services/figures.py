"""Figures over many runs, and the periodic addition of those that are over."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, timedelta
from decimal import Decimal
from typing import Any, Final

from ..domain.figures import Grouping, Subject, per_phase, percentile, period, share
from ..domain.money import ZERO_USD
from ..domain.outcomes import Outcome
from ..domain.states import PhaseStatus
from ..domain.terms import Verdict
from ..store import figures
from ..store.figures import Count
from ..views.figures import (
    CiQualityAnswer,
    CostAnswer,
    CostsAnswer,
    DayAnswer,
    FlakyCheckAnswer,
    PatchQualityAnswer,
    PhaseQualityAnswer,
    QualityAnswer,
    RunQualityAnswer,
    TimesAnswer,
)
from .context import AppContext
from .reading import one_moment

FLAKY_CHECKS: Final = 20
# In one pass of the upkeep, so that other work does not wait for it.
MOST_BATCHES: Final = 10
# Attempts without a result.
NO_RESULT: Final = frozenset({Outcome.UNAVAILABLE, "lapsed"})
WAITS: Final = ("builder", "auditor", "ci")


def costs(
    context: AppContext, by: Grouping, start: date | None, end: date | None, *, limit: int
) -> CostsAnswer:
    """Return what a period cost, by one key. Raises InvalidPeriodError."""
    start, end = period(start, end, context.now().astimezone(UTC).date())
    with one_moment(context) as session:
        total, *groups = figures.read_costs(session, by, start, end, limit=limit)
    whole = total["cost_usd"] or ZERO_USD
    return CostsAnswer(
        by=by,
        start=start,
        end=end,
        total=_cost(total | {"name": ""}, whole),
        groups=[_cost(group, whole) for group in groups],
    )


def _cost(row: Mapping[str, Any], whole: Decimal) -> CostAnswer:
    values: dict[str, Any] = {name: value or 0 for name, value in row.items()}
    return CostAnswer(
        **values | {"name": row["name"]},
        cost_share=share(values["cost_usd"], whole),
        tries_per_phase=per_phase(values["tries"], values["phases"]),
    )


def quality(context: AppContext, start: date | None, end: date | None) -> QualityAnswer:
    """Return how work went in a period. Raises InvalidPeriodError."""
    start, end = period(start, end, context.now().astimezone(UTC).date())
    before = start - (end - start) - timedelta(days=1)
    with one_moment(context) as session:
        counts = figures.read_counts(session, before, start, end)
        flaky = figures.read_flaky_checks(session, start, end, limit=FLAKY_CHECKS)
    earlier = _Counts(count for count in counts if not count.is_within)
    within = _Counts(count for count in counts if count.is_within and count.day is None)
    ci_runs = within.number(Subject.CI)
    return QualityAnswer(
        start=start,
        end=end,
        runs=_runs(within, earlier),
        phases=_phases(within),
        patches=_patches(within),
        builder_outcomes=within.outcomes(Subject.BUILDER),
        auditor_outcomes=within.outcomes(Subject.AUDITOR),
        ci=[_ci(within.of(Subject.CI, name)) for name in within.names(Subject.CI)],
        flaky_checks=[
            FlakyCheckAnswer(
                name=name,
                number=number,
                share_of_ci_runs=share(number, ci_runs),
                last_run_id=last,
            )
            for name, number, last in flaky
        ],
        waits={name: within.of(Subject.WAIT, name).times() for name in WAITS},
        days=_days(counts, start, end),
    )


class _Counts:
    """Counts, and sums over them."""

    def __init__(self, counts: Iterable[Count]) -> None:
        self.all = tuple(counts)

    def of(self, subject: Subject, name: str | None = None) -> _Counts:
        return _Counts(
            count
            for count in self.all
            if count.subject is subject and (name is None or count.name == name)
        )

    def names(self, subject: Subject) -> list[str]:
        return sorted({count.name for count in self.of(subject).all})

    def number(self, subject: Subject, *outcomes: str) -> int:
        """Return how many there are, with one of these outcomes if any is given."""
        counts = self.of(subject).all
        return sum(each.number for each in counts if not outcomes or each.outcome in outcomes)

    def outcomes(self, subject: Subject) -> dict[str, int]:
        found: Counter[str] = Counter()
        for count in self.of(subject).all:
            found[count.outcome] += count.number
        return dict(sorted(found.items()))

    def times(self) -> TimesAnswer:
        steps: Counter[int] = Counter()
        for count in self.all:
            steps[count.step] += count.number
        return TimesAnswer(
            number=steps.total(),
            median_seconds=percentile(steps, 0.5),
            p90_seconds=percentile(steps, 0.9),
        )


def _success_rate(counts: _Counts) -> float | None:
    succeeded = counts.number(Subject.RUN, "succeeded")
    return share(succeeded, succeeded + counts.number(Subject.RUN, "failed"))


def _runs(counts: _Counts, earlier: _Counts) -> RunQualityAnswer:
    return RunQualityAnswer(
        ended=counts.number(Subject.RUN),
        succeeded=counts.number(Subject.RUN, "succeeded"),
        failed=counts.number(Subject.RUN, "failed"),
        cancelled=counts.number(Subject.RUN, "cancelled"),
        success_rate=_success_rate(counts),
        success_rate_before=_success_rate(earlier),
    )


def _phases(counts: _Counts) -> PhaseQualityAnswer:
    phases = counts.of(Subject.PHASE).all
    tried = sum(each.number for each in phases if each.step)
    tries = sum(each.number * each.step for each in phases)
    return PhaseQualityAnswer(
        ended=counts.number(Subject.PHASE),
        complete=counts.number(Subject.PHASE, PhaseStatus.COMPLETE),
        failed=counts.number(Subject.PHASE, PhaseStatus.FAILED),
        skipped=counts.number(Subject.PHASE, PhaseStatus.SKIPPED),
        complete_at_first_try=sum(
            each.number
            for each in phases
            if each.outcome == PhaseStatus.COMPLETE and each.step == 1
        ),
        tries_per_phase=per_phase(tries, tried),
    )


def _patches(counts: _Counts) -> PatchQualityAnswer:
    results = [
        each
        for each in counts.all
        if each.subject in (Subject.BUILDER, Subject.AUDITOR) and each.outcome not in NO_RESULT
    ]
    number = sum(each.number for each in results)
    tickets = sum(each.tickets for each in results)
    repaired = sum(each.repairs for each in results)
    return PatchQualityAnswer(
        results=number,
        needed_ticket=tickets,
        repaired=repaired,
        ticket_share=share(tickets, number),
        repair_share=share(repaired, number),
    )


def _ci(counts: _Counts) -> CiQualityAnswer:
    return CiQualityAnswer(
        profile=counts.all[0].name,
        green=counts.number(Subject.CI, Verdict.GREEN),
        red=counts.number(Subject.CI, Verdict.RED),
        did_not_run=counts.number(Subject.CI, Verdict.DID_NOT_RUN),
        times=counts.times(),
    )


def _days(counts: Sequence[Count], start: date, end: date) -> list[DayAnswer]:
    of_day: dict[date, list[Count]] = defaultdict(list)
    for count in counts:
        if count.day is not None:
            of_day[count.day].append(count)
    days = [start + timedelta(days=number) for number in range((end - start).days + 1)]
    return [_day(day, _Counts(of_day.get(day, ()))) for day in days]


def _day(day: date, counts: _Counts) -> DayAnswer:
    medians = {
        name: counts.of(Subject.CI, name).times().median_seconds
        for name in counts.names(Subject.CI)
    }
    return DayAnswer(
        day=day,
        runs_ended=counts.number(Subject.RUN),
        runs_failed=counts.number(Subject.RUN, "failed"),
        cost_usd=sum((each.cost_usd for each in counts.all), ZERO_USD),
        tokens=sum(each.tokens for each in counts.all),
        ci_runs=counts.number(Subject.CI),
        ci_median_seconds={name: median for name, median in medians.items() if median is not None},
    )


def count_ended_runs(context: AppContext) -> None:
    """Add the figures of runs that are over to those of their days, some at a time."""
    for _ in range(MOST_BATCHES):
        with context.autocommitting() as session:
            session.begin_change()
            is_done = figures.count_ended(session, context.now()) < figures.BATCH
            session.commit()
        if is_done:
            return
