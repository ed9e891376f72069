"""`autopack strategy`: the operator's policy, and a plan's strategy under it. (rules §9)"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ..client import ApiError
from ..domain.strategy import Strategy
from .command import CommandError, command_app
from .service import asking, read_document
from .terminal import JsonOption, PlanArgument, UrlOption, print_json, print_table, say

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
    plan: PlanArgument,
    ruleset: Annotated[Path | None, typer.Option(help="Another ruleset's file.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show the caps and checks that a plan would get; start nothing."""
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
    """Print the ruleset as JSON, in the form that `put` accepts."""
    with asking(url) as client:
        print_json(client.get_ruleset())


@ruleset_app.command("put")
def put_ruleset(
    file: Annotated[Path, typer.Argument(help="A ruleset's file, JSON or YAML.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Change the ruleset; active runs keep theirs.

    A document with all fields replaces the ruleset; one without some fields only changes the fields
    that it has. The version is raised, unless the document has a higher one.
    """
    document = read_document(file)
    with asking(url) as client:
        standing = client.get_ruleset()
        wanted = document if standing.keys() <= document.keys() else _merged(standing, document)
        given = wanted["version"]
        if isinstance(given, int) and given <= standing["version"]:
            wanted["version"] = standing["version"]
        is_same = wanted == standing
        if not is_same and wanted["version"] == standing["version"]:
            wanted["version"] += 1
        try:
            ruleset = standing if is_same else client.put_ruleset(wanted)
        except ApiError as error:
            raise CommandError(f"{file}: {_where(error)} ({error.code})") from error
    if json:
        print_json(ruleset)
    elif is_same:
        say(f"The ruleset is already as in {file}: version {ruleset['version']}.")
    else:
        say(f"The ruleset was changed: version {ruleset['version']}.")


def _merged(standing: Mapping[str, Any], fragment: Mapping[str, Any]) -> dict[str, Any]:
    """Return a document with the fields of a fragment; lists are replaced as a whole."""
    merged = dict(standing)
    for name, value in fragment.items():
        inner = merged.get(name)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[name] = _merged(inner, value)
        else:
            merged[name] = value
    return merged


def _where(error: ApiError) -> str:
    """Name each wrong field by its place in the given file, not in the merged document."""
    problems = error.problem.get("errors")
    if not isinstance(problems, list):
        return error.detail
    return "; ".join(f"{each['loc']}: {each['message']}" for each in problems)


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
