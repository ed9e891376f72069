"""Finished runs judged again under another ruleset, told as a table. (02 §4)"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from ..api.schemas.project import BacktestAnswer, ComparisonAnswer, EndingAnswer

DEFAULT_URL: Final = "http://localhost:8000"
TIMEOUT_SECONDS: Final = 600.0  # a thousand long runs take their time
_MOST_SHOWN = 1_000

Row = tuple[str, str, str, str]


class BacktestError(Exception):
    """Nothing could be judged. The message is one line that names why."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """What would change, as text; `is_changed` says whether anything would."""

    text: str
    is_changed: bool


def run_backtest(
    ruleset: Path,
    *,
    url: str | None = None,
    run_ids: Sequence[str] = (),
    limit: int | None = None,
    as_json: bool = False,
) -> Backtest:
    """Ask the service what a ruleset would have made of finished runs. Raises BacktestError.

    `url` is API_URL's when it is not given. Without `run_ids` the newest runs are judged.
    """
    body: dict[str, Any] = {"ruleset": _read(ruleset)}
    if run_ids:
        body["run_ids"] = list(run_ids)
    if limit is not None:
        body["limit"] = limit
    document = _ask(url or os.environ.get("API_URL") or DEFAULT_URL, body)
    try:
        answer = BacktestAnswer.model_validate(document)
    except ValueError as error:
        raise BacktestError(
            _one_line(f"the service's answer is not a backtest: {error}")
        ) from error
    text = (
        json.dumps(answer.model_dump(mode="json"), indent=2) if as_json else _told(answer, ruleset)
    )
    return Backtest(text, answer.changed_count > 0)


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_bytes())
    except OSError as error:
        raise BacktestError(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise BacktestError(f"{file} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise BacktestError(f"{file} holds no JSON object, so it is no ruleset")
    return document


def _ask(url: str, body: Mapping[str, Any]) -> object:
    address = f"{url.rstrip('/')}/strategy/backtest"
    try:
        response = httpx.post(address, json=body, timeout=TIMEOUT_SECONDS, trust_env=False)
        document = response.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise BacktestError(f"cannot ask {address}: {error}") from error
    except ValueError as error:
        raise BacktestError(f"{address} answered {response.status_code}, and no JSON") from error
    if response.status_code != 200:
        detail = document.get("detail") if isinstance(document, dict) else None
        raise BacktestError(_one_line(f"{detail or response.text} ({response.status_code})"))
    return document


def _told(answer: BacktestAnswer, ruleset: Path) -> str:
    """Write what would change, run by run."""
    changed = [run for run in answer.runs if run.changes]
    apart = [run for run in answer.runs if run.parted_at and not run.changes]
    lines = [f"{_runs(answer.compared_count)} judged again under {ruleset}: {_verdict(answer)}."]
    if changed:
        rows = [("run", "what", "was", "would be")]
        rows += [row for run in changed for row in _rows(run)]
        lines += ["", *_table(rows)]
    for run in apart:
        lines += ["", f"{run.run_id} would come to the same end by another way: {_parting(run)}"]
    assumed = sum(run.assumed_patches for run in answer.runs)
    if assumed:
        lines += ["", f"{assumed} patches that git never saw are taken to fit."]
    return "\n".join(lines)


def _verdict(answer: BacktestAnswer) -> str:
    if not answer.changed_count:
        return "no outcome, spend or eligibility would change"
    return f"{answer.changed_count} would change"


def _rows(run: ComparisonAnswer) -> Iterator[Row]:
    was, would = run.recorded, run.replayed
    found: list[tuple[str, str, str]] = []
    if would is None:
        found.append(("outcome", _outcome(was), "; ".join(run.changes)))
    else:
        found.append(("outcome", _outcome(was), _outcome(would)))
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


def _outcome(ending: EndingAnswer) -> str:
    return f"{ending.state} ({ending.failure_code})" if ending.failure_code else ending.state


def _eligibility(ending: EndingAnswer) -> str:
    return "eligible" if ending.promotion_eligible_to_main else "not eligible"


def _parting(run: ComparisonAnswer) -> str:
    if run.parted_at is None:
        return "nowhere: only the end differs"
    return _one_line(f"at event {run.parted_at.sequence}: {run.parted_at.detail}")


def _table(rows: Sequence[Row]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for number, row in enumerate(rows):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[3]]).rstrip()
        if number == 0:
            yield "  ".join("-" * width for width in (*widths, len(row[3])))


def _runs(count: int) -> str:
    return f"{count} finished run{'' if count == 1 else 's'}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_MOST_SHOWN]
