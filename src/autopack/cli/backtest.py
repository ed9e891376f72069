"""`autopack backtest`: finished runs decided again under another ruleset. (docs/cli.md)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..views.project import BacktestAnswer, ComparisonAnswer, EndingAnswer
from .command import FINE, NO, command_app
from .service import asking, read_document
from .terminal import JsonOption, UrlOption, print_json, say

Row = tuple[str, str, str, str]

app = command_app()


@app.command()
def backtest(
    ruleset: Annotated[Path, typer.Option(help="A ruleset's file, JSON or YAML.")],
    run: Annotated[
        list[str] | None, typer.Option(metavar="RUN_ID", help="Only this run, or these.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="How many of the newest runs (100).")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> int:
    """Decide finished runs again under another ruleset.

    Ends with 0 when nothing would change, 1 when something would.
    """
    document = read_document(ruleset)
    with asking(url) as client:
        answer = client.backtest(document, run_ids=run or (), limit=limit)
    if json:
        print_json(answer)
    else:
        for line in _told(answer, ruleset):
            say(line)
    return NO if answer.changed_count else FINE


def _told(answer: BacktestAnswer, ruleset: Path) -> Iterator[str]:
    """Yield the lines of the report: what would change in each run."""
    changed = [run for run in answer.runs if run.changes]
    apart = [run for run in answer.runs if run.parted_at and not run.changes]
    yield f"{_runs(answer.compared_count)} decided again under {ruleset}: {_verdict(answer)}."
    if changed:
        rows = [("run", "what", "was", "would be")]
        rows += [row for run in changed for row in _rows(run)]
        yield ""
        yield from _table(rows)
    for run in apart:
        yield ""
        yield f"{run.run_id} would have the same result in another way: {_parting(run)}"
    assumed = sum(run.assumed_patches for run in answer.runs)
    if assumed:
        yield ""
        yield f"{assumed} patches that were never applied are assumed to apply."


def _verdict(answer: BacktestAnswer) -> str:
    if not answer.changed_count:
        return "no outcome, cost or eligibility would change"
    return f"{answer.changed_count} would change"


def _rows(run: ComparisonAnswer) -> Iterator[Row]:
    was, would = run.recorded, run.replayed
    found: list[tuple[str, str, str]] = []
    if would is None:
        found.append(("outcome", was.words, "; ".join(run.changes)))
    else:
        found.append(("outcome", was.words, would.words))
        found.append(("tokens", f"{was.tokens_used:,}", f"{would.tokens_used:,}"))
        found.append(("promotion", _eligibility(was), _eligibility(would)))
    name = run.run_id
    for what, before, after in found:
        if before != after:
            yield name, what, before, after
            name = ""
    yield name, "parting", "", _parting(run)
    if run.skipped_inputs:
        yield "", "refused", "", f"{run.skipped_inputs} of its requests"


def _eligibility(ending: EndingAnswer) -> str:
    return "eligible" if ending.promotion_eligible_to_main else "not eligible"


def _parting(run: ComparisonAnswer) -> str:
    if run.parted_at is None:
        return "nowhere: only the end differs"
    return f"at event {run.parted_at.sequence}: {run.parted_at.detail}"


def _table(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[3]]).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in (*widths, len(row[3])))


def _runs(count: int) -> str:
    return f"{count} finished run{'' if count == 1 else 's'}"
