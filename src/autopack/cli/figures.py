"""`autopack figures`: what runs cost, and how well they went."""

from __future__ import annotations

from typing import Annotated

import typer

from ..domain.figures import Grouping
from ..domain.money import short_usd
from ..domain.times import duration
from ..views.figures import QualityAnswer, TimesAnswer
from .command import command_app
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, print_table

app = command_app()


From = Annotated[
    str | None,
    typer.Option("--from", metavar="DATE", help="First day (UTC); else 30 days up to the last."),
]
To = Annotated[str | None, typer.Option("--to", metavar="DATE", help="Last day (UTC); else today.")]


@app.command()
def costs(
    by: Annotated[Grouping, typer.Option(help="The key of the groups.")] = Grouping.MODEL,
    start: From = None,
    end: To = None,
    limit: Annotated[int, typer.Option(help="How many groups.")] = 100,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show what runs cost, the highest costs first."""
    with asking(url) as client:
        answer = client.costs(by=by, start=start, end=end, limit=limit)
    if json:
        print_json(answer)
        return
    rows = [*answer.groups, answer.total.model_copy(update={"name": "in all"})]
    print_table(
        (by, "cost", "share", "tokens", "phases", "tries", "tickets", "repairs"),
        (
            (
                each.name or "unknown",
                short_usd(each.cost_usd),
                _percent(each.cost_share),
                f"{each.tokens:,}",
                each.phases,
                each.tries,
                each.tickets,
                each.repairs,
            )
            for each in rows
        ),
    )


@app.command()
def quality(
    start: From = None, end: To = None, json: JsonOption = False, url: UrlOption = None
) -> None:
    """Show how well runs went, which checks are flaky, and how long phases waited."""
    with asking(url) as client:
        answer = client.quality(start=start, end=end)
    if json:
        print_json(answer)
        return
    print_table(("figure", "value", "more"), _quality(answer))


def _quality(answer: QualityAnswer) -> list[tuple[object, ...]]:
    runs, phases, patches = answer.runs, answer.phases, answer.patches
    before = _percent(runs.success_rate_before)
    rows: list[tuple[object, ...]] = [
        ("runs ended", runs.ended, f"{runs.failed} failed, {runs.cancelled} cancelled"),
        ("succeeded", _percent(runs.success_rate), f"in the period before: {before}"),
        ("phases complete", phases.complete, f"{phases.complete_at_first_try} at the first try"),
        ("tries a phase", phases.tries_per_phase or "-", f"{phases.ended} phases ended"),
        ("patches that needed a ticket", _percent(patches.ticket_share), patches.needed_ticket),
        ("patches repaired", _percent(patches.repair_share), patches.repaired),
    ]
    rows += [(f"waited for {name}", *_times(times)) for name, times in answer.waits.items()]
    for ci in answer.ci:
        median, more = _times(ci.times)
        more = f"{ci.green} green, {ci.red} red, {ci.did_not_run} did not run; {more}"
        rows.append((f"CI {ci.profile}", median, more))
    for check in answer.flaky_checks:
        rows.append((f"flaky: {check.name}", check.number, f"last in {check.last_run_id}"))
    return rows


def _times(times: TimesAnswer) -> tuple[str, str]:
    if times.median_seconds is None or times.p90_seconds is None:
        return "-", "never"
    return (
        f"{duration(times.median_seconds)} (median)",
        f"1 of 10 over {duration(times.p90_seconds)}",
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
