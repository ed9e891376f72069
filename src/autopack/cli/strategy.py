"""`autopack strategy`: the operator's policy, and what it makes of a plan. (02 §4)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..domain.strategy import Strategy
from .command import command_app
from .service import asking, read_document
from .terminal import JsonOption, UrlOption, print_json, print_table, say

app = command_app()
ruleset_app = command_app()
app.add_typer(ruleset_app, name="ruleset", help="Read or replace the ruleset as a document.")


@app.command()
def show(json: JsonOption = False, url: UrlOption = None) -> None:
    """Show the policy that runs start with."""
    with asking(url) as client:
        ruleset = client.get_ruleset()
    if json:
        print_json(ruleset)
        return
    categories = ruleset.pop("categories")
    print_table(("setting", "value"), _flat(ruleset))
    columns = sorted({name for rule in categories.values() for name in rule})
    say("")
    print_table(
        ("category", *columns),
        ((name, *(rule.get(column) for column in columns)) for name, rule in categories.items()),
    )


@app.command()
def dry_run(
    plan: Annotated[Path, typer.Argument(help="A plan's file, JSON or YAML.")],
    ruleset: Annotated[Path | None, typer.Option(help="Another ruleset's file.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show what a plan would cost at most and how it would be judged; start nothing."""
    document = read_document(plan)
    other = None if ruleset is None else read_document(ruleset)
    with asking(url) as client:
        answer = client.dry_run(document, other)
    if json:
        print_json(answer)
        return
    if answer.today is not None:
        say("under today's ruleset")
        _print_strategy(answer.today)
        say("", f"under {ruleset}")
    _print_strategy(answer.strategy)


@ruleset_app.command("get")
def get_ruleset(url: UrlOption = None) -> None:
    """Print the ruleset as JSON, as `put` takes it."""
    with asking(url) as client:
        print_json(client.get_ruleset())


@ruleset_app.command("put")
def put_ruleset(
    file: Annotated[Path, typer.Argument(help="A ruleset's file, JSON or YAML.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Replace the ruleset; runs that are under way keep theirs."""
    document = read_document(file)
    with asking(url) as client:
        ruleset = client.put_ruleset(document)
    if json:
        print_json(ruleset)
    else:
        say(f"The ruleset is replaced: version {ruleset['version']}.")


def _print_strategy(strategy: Strategy) -> None:
    run = strategy.model_dump(
        mode="json",
        include={
            "safety_profile",
            "run_scope",
            "token_cap",
            "max_duration_minutes",
            "max_minor_issues_total",
        },
    )
    print_table(("run", "value"), [*run.items(), ("ci", strategy.ci.mode)])
    for warning in strategy.warnings:
        print_table((), [(f"warning: {warning}",)])
    say("")
    headings = ("phase", "category", "complexity", "tokens", "builder tries", "auditor tries")
    rows = [
        (
            phase_id,
            phase.task_category,
            phase.complexity,
            f"{phase.incident_token_cap:,}",
            phase.max_builder_attempts,
            phase.max_auditor_attempts,
            phase.ci_profile,
            "" if phase.auto_apply else phase.auditor_profile or "any",
        )
        for phase_id, phase in strategy.phases.items()
    ]
    print_table((*headings, "ci", "auditor before apply"), rows)


def _flat(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield each value of a document that is set, with its path."""
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", value
