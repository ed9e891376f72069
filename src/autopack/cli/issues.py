"""`autopack issues`: the project's backlog, and an operator's changes to it."""

from __future__ import annotations

from typing import Annotated

import typer

from ..client import ApiError
from ..domain.issues import BacklogOrder
from ..views.issues import BacklogEntryAnswer, BacklogIssueAnswer
from .command import NO, CommandError, command_app
from .completion import complete_issues, complete_runs
from .service import asking
from .terminal import CursorOption, JsonOption, LimitOption, UrlOption, print_json, print_table, say

app = command_app()

Key = Annotated[
    str,
    typer.Argument(metavar="ISSUE_KEY", help="The issue's key.", autocompletion=complete_issues),
]


@app.command("list")
def list_issues(
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN_ID",
            help="The issues of a run, not the backlog.",
            autocompletion=complete_runs,
        ),
    ] = None,
    status: Annotated[
        str | None, typer.Option(help="Only these: open, needs_cleanup or resolved.")
    ] = None,
    category: Annotated[str | None, typer.Option(help="Only of this category.")] = None,
    severity: Annotated[str | None, typer.Option(help="Only these: minor or major.")] = None,
    text: Annotated[str | None, typer.Option(help="Only keys with this text.")] = None,
    order: Annotated[
        BacklogOrder | None, typer.Option(help="first_seen, pressing, last_seen or often.")
    ] = None,
    limit: LimitOption = 100,
    cursor: CursorOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List the backlog, or the issues of a run."""
    if run is not None:
        if status or category or severity or text or order or cursor:
            raise CommandError("--run takes no filter: it lists all issues of the run.")
        _list_of_run(run, as_json=json, url=url)
        return
    with asking(url) as client:
        page = client.backlog(
            status=status,
            category=category,
            severity=severity,
            text=text,
            order=order,
            limit=limit,
            cursor=cursor,
        )
    if json:
        print_json(page)
        return
    rows = [_row(entry) for entry in page.issues_by_key.values()]
    print_table(HEADINGS, rows, least=("tiers", "runs", "category"))
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


@app.command()
def show(issue_key: Key, json: JsonOption = False, url: UrlOption = None) -> None:
    """Show an issue of the backlog: its last reports, and the phases that reported it last."""
    with asking(url) as client:
        try:
            issue = client.get_issue(issue_key)
        except ApiError as error:
            if error.code != "not_found":
                raise
            raise CommandError(error.detail, NO) from error
    _print_entry(issue, as_json=json)
    if not json:
        _print_details(issue)


@app.command()
def resolve(issue_key: Key, json: JsonOption = False, url: UrlOption = None) -> None:
    """Close an issue; a new report opens it again."""
    with asking(url) as client:
        entry = client.resolve_issue(issue_key)
    _print_entry(entry, as_json=json)


@app.command()
def reopen(issue_key: Key, json: JsonOption = False, url: UrlOption = None) -> None:
    """Open a closed issue again, with its former age."""
    with asking(url) as client:
        entry = client.reopen_issue(issue_key)
    _print_entry(entry, as_json=json)


HEADINGS = ("issue", "status", "severity", "category", "runs", "tiers", "seen", "last seen in")


def _row(entry: BacklogEntryAnswer) -> tuple[object, ...]:
    return (
        entry.issue_key,
        entry.status,
        entry.base_severity,
        entry.category,
        entry.age_in_runs,
        entry.age_in_tiers,
        entry.total_occurrences,
        entry.last_seen_run,
    )


def _print_entry(entry: BacklogEntryAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(entry)
    else:
        print_table(HEADINGS, [_row(entry)])


def _print_details(issue: BacklogIssueAnswer) -> None:
    """Indent text of agents, so that none of its lines looks like a line of the command."""
    limits = issue.thresholds
    say(
        "",
        f"counts as {issue.effective_severity} in a new run; a minor issue needs cleanup after"
        f" {limits.after_runs} runs or {limits.after_tiers} tiers",
        f"first seen in {issue.first_seen_run}, last at {issue.last_seen_at:%Y-%m-%d %H:%M UTC}"
        f" in {issue.last_seen_run}",
        f"tiers: {', '.join(issue.tiers) or 'none'}",
    )
    for what, at in (
        ("needs cleanup since", issue.needs_cleanup_at),
        ("resolved at", issue.resolved_at),
    ):
        if at is not None:
            say(f"{what} {at:%Y-%m-%d %H:%M UTC}")
    for heading, lines in (
        ("description", (issue.description or "none").splitlines()),
        ("evidence", issue.evidence_refs or ["none"]),
    ):
        say("", heading, *(f"  {line}" for line in lines))
    _print_life(issue)
    say("", "seen in")
    headings = ("run", "is", "phase", "is", "issue", "severity", "source", "seen", "last seen")
    rows = [
        (
            *(place.run_id, place.run_state, place.phase_id, place.phase_state, place.status),
            *(place.effective_severity, place.source, place.occurrence_count),
            f"{place.last_seen_at:%Y-%m-%d %H:%M UTC}",
        )
        for place in issue.places
    ]
    print_table(headings, rows)


def _print_life(issue: BacklogIssueAnswer) -> None:
    """Show the checks that were red, the cleanup phases, and what happened, newest first."""
    say("", "checks that were red there", *(f"  {name}" for name in issue.red_checks or ["none"]))
    if issue.cleanups:
        say("", "cleanup phases")
        rows = [
            (each.run_id, each.run_state, each.phase_id, each.phase_state, each.verdict or "none")
            for each in issue.cleanups
        ]
        print_table(("run", "is", "phase", "is", "verdict"), rows)
    say("", "life")
    happened = [
        (
            f"{each.at:%Y-%m-%d %H:%M UTC}",
            each.kind,
            "/".join(part for part in (each.run_id, each.phase_id) if part) or each.actor or "",
            ", ".join(each.checks),
            each.reason or "",
        )
        for each in issue.life
    ]
    if happened:
        print_table(("when", "what", "by", "checks", "why"), happened)
    else:
        say("  none")


def _list_of_run(run_id: str, *, as_json: bool, url: str | None) -> None:
    with asking(url) as client:
        index = client.issue_index(run_id)
    if as_json:
        print_json(index)
        return
    headings = ("issue", "status", "severity", "counts as", "category", "seen", "phases")
    rows = [
        (
            key,
            entry.status,
            entry.severity,
            entry.effective_severity,
            entry.category,
            entry.occurrence_count,
            ", ".join(entry.phases),
        )
        for key, entry in index.issues_by_key.items()
    ]
    print_table(headings, rows, least=("category", "severity"))
