"""`autopack run`: start, show and control runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from ..domain.run import FailureCode
from ..views.runs import ListedRun, RunAnswer
from .board import Board, print_event
from .command import FINE, NO, command_app
from .completion import RunId, complete_phases
from .graph import GraphFormat, draw
from .graph import document as graph_document
from .service import asking, read_document
from .terminal import (
    CursorOption,
    JsonOption,
    LimitOption,
    PlanArgument,
    RawOption,
    UrlOption,
    make_console,
    print_json,
    print_table,
    print_text,
    say,
)

# About half a minute: `watch` continues after a restart of the service.
PATIENT_RETRIES = 7

app = command_app()

Reason = Annotated[str, typer.Option(help="The reason, for the record.")]


@app.command()
def start(
    plan: PlanArgument,
    watch: Annotated[bool, typer.Option("--watch", help="Then watch it until it is over.")] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> int:
    """Start a run; the same plan again returns the same run."""
    document = read_document(plan)
    with asking(url) as client:
        run = client.start_run(document)
    if watch:
        return _watch(run.run_id, url, after=0, as_json=json)
    _print_run(run, as_json=json)
    return FINE


@app.command("list")
def list_runs(
    status: Annotated[str | None, typer.Option(help="Only runs in this state.")] = None,
    live: Annotated[
        bool | None, typer.Option("--live/--ended", help="Only runs that are not over, or are.")
    ] = None,
    text: Annotated[
        str | None, typer.Option(help="Only runs with this text in their id, a phase or an issue.")
    ] = None,
    limit: LimitOption = 100,
    cursor: CursorOption = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List runs, newest first."""
    with asking(url) as client:
        page = client.list_runs(status=status, live=live, text=text, limit=limit, cursor=cursor)
    if json:
        print_json(page)
        return
    if sys.stdout.isatty():
        from .view import runs_view

        make_console().print(runs_view(page.runs))
    else:
        _print_runs(page.runs)
    if page.next_cursor:
        say(f"There are more: --cursor {page.next_cursor}")


def _print_runs(runs: Sequence[ListedRun]) -> None:
    """Print whole states and figures, for a pipe."""
    headings = ("run", "state", "phases", "tokens", "of", "started", "promotion")
    rows = [
        (
            run.run_id,
            # The state of a cancelled run is that of a failure.
            "cancelled" if run.failure_code is FailureCode.CANCELLED else run.state,
            f"{run.phases_complete}/{run.phases_total}",
            f"{run.tokens_used:,}",
            f"{run.token_cap:,}",
            f"{run.created_at:%Y-%m-%d %H:%M}",
            run.promotion,
        )
        for run in runs
    ]
    print_table(headings, rows)


@app.command()
def show(run_id: RunId, json: JsonOption = False, url: UrlOption = None) -> None:
    """Show a run with its tiers and phases."""
    with asking(url) as client:
        run = client.get_run(run_id)
    _print_run(run, as_json=json)


@app.command()
def watch(
    run_id: RunId,
    after: Annotated[int, typer.Option(help="Only events after this number.")] = 0,
    json: JsonOption = False,
    url: UrlOption = None,
) -> int:
    """Watch a run until it is over.

    A live view in a terminal, else one line for each event; with --json each event as a line of
    JSON. Ends with 0 when the run succeeded, 1 when it failed.
    """
    return _watch(run_id, url, after=after, as_json=json)


@app.command()
def events(
    run_id: RunId,
    after: Annotated[int, typer.Option(help="Only events after this number.")] = 0,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """List the events of a run; with --json each event as a line of JSON."""
    with asking(url) as client:
        for event in client.events(run_id, after=after):
            print_event(event, as_json=json)


@app.command()
def cancel(
    run_id: RunId,
    reason: Reason = "",
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """End a run now; its branch stays as it is."""
    with asking(url) as client:
        run = client.cancel(run_id, reason)
    _print_run(run, as_json=json)


@app.command()
def retry(
    run_id: RunId,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PHASE_ID",
            help="Only this phase; may be repeated.",
            autocompletion=complete_phases,
        ),
    ] = None,
    new_id: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Id of the new run (RUN_ID.2, .3, …).")
    ] = None,
    token_cap: Annotated[int | None, typer.Option(help="Its cap of tokens.")] = None,
    max_minutes: Annotated[int | None, typer.Option(help="Its longest duration.")] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Continue a run that failed, as a new run with the phases that are left.

    It starts from the last verified commit, with new budgets; agents see the earlier attempts. The
    same call again returns the same run.
    """
    given = {
        "phases": phase or None,
        "run_id": new_id,
        "token_cap": token_cap,
        "max_duration_minutes": max_minutes,
    }
    choice = {name: value for name, value in given.items() if value is not None}
    with asking(url) as client:
        run = client.continue_run(run_id, choice)
    _print_run(run, as_json=json)


@app.command()
def rebase(
    run_id: RunId,
    new_id: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Id of the new run (RUN_ID.2, .3, …).")
    ] = None,
    base_commit: Annotated[
        str | None,
        typer.Option(metavar="COMMIT", help="Only if the base branch is at this commit."),
    ] = None,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Make the branch of a run that may be promoted again on today's base, as a new run.

    Its patches are merged in their order, and CI judges the result. A conflict changes nothing.
    """
    given = {"run_id": new_id, "base_commit": base_commit}
    choice = {name: value for name, value in given.items() if value is not None}
    with asking(url) as client:
        run = client.rebase_run(run_id, choice)
    _print_run(run, as_json=json)


@app.command()
def rollback(
    run_id: RunId,
    to: Annotated[
        str,
        typer.Option(
            metavar="PHASE_ID", help="The phase to go back to.", autocompletion=complete_phases
        ),
    ],
    reason: Reason = "",
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Reset a finished run's branch to the snapshot of a phase, by a new commit."""
    with asking(url) as client:
        answer = client.rollback(run_id, to, reason)
    if json:
        print_json(answer)
    else:
        say(answer.message)


@app.command()
def diff(
    run_id: RunId,
    phase: Annotated[
        str | None,
        typer.Option(
            metavar="PHASE_ID",
            help="Only the changes of this phase.",
            autocompletion=complete_phases,
        ),
    ] = None,
    raw: RawOption = False,
    url: UrlOption = None,
) -> None:
    """Print the changes of a run as a patch; with --raw in a form that git applies."""
    with asking(url) as client:
        patch = client.diff(run_id, phase)
    print_text(patch, is_raw=raw)


@app.command()
def phase(
    run_id: RunId,
    phase_id: Annotated[str, typer.Argument(metavar="PHASE_ID", help="The phase's id.")],
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show what happened in a phase: its time, attempts, CI runs and issues."""
    with asking(url) as client:
        report = client.get_phase(run_id, phase_id)
    if json:
        print_json(report)
        return
    from .phase_view import print_phase

    print_phase(report)


@app.command()
def graph(
    run_id: RunId,
    form: Annotated[
        GraphFormat, typer.Option("--format", help="Text, or a drawing's source.")
    ] = GraphFormat.TEXT,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show the order of a run's phases: what depends on what, what waits, what may start now."""
    with asking(url) as client:
        run = client.get_run(run_id)
    if json:
        print_json(graph_document(run))
    else:
        say(*draw(run, form))


@app.command()
def incident(run_id: RunId, json: JsonOption = False, url: UrlOption = None) -> None:
    """Show why a run failed: phases in trouble, budgets, open issues, and what to do next."""
    with asking(url) as client:
        if json:
            print_json(client.incident(run_id))
        else:
            print_text(client.incident_page(run_id), is_raw=False)


@app.command()
def patch(
    run_id: RunId,
    patch_id: Annotated[int, typer.Argument(metavar="ID", help="From `autopack run phase`.")],
    raw: RawOption = False,
    url: UrlOption = None,
) -> None:
    """Print a patch that an agent sent, on the branch or not."""
    with asking(url) as client:
        content = client.patch(run_id, patch_id)
    print_text(content, is_raw=raw)


@app.command()
def ci(
    run_id: RunId,
    log: Annotated[
        int | None, typer.Option(metavar="ID", help="Print the whole log of this CI run.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option(metavar="LINES", help="Only this many last lines of the log.")
    ] = None,
    raw: RawOption = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> None:
    """Show the verdicts of CI on a run's phases, or print one log."""
    with asking(url) as client:
        if log is not None:
            print_text(client.ci_log(run_id, log, tail=tail), is_raw=raw)
            return
        answer = client.ci_runs(run_id)
    if json:
        print_json(answer)
        return
    print_table(
        ("id", "phase", "commit", "profile", "try", "verdict", "sandbox", "tests", "why"),
        [
            (
                str(run.id),
                run.phase_id,
                run.commit_sha[:12],
                run.profile,
                str(run.attempt),
                ("flaky " if run.flaky else "") + (run.verdict or "under way"),
                run.sandbox or "",
                f"{run.tests.passed} of {run.tests.total}" if run.tests else "",
                run.reason or "",
            )
            for run in answer.ci_runs
        ],
    )
    for run in answer.ci_runs:
        if run.evidence:
            say("", f"evidence of CI run {run.id}", *(f"  {each.text}" for each in run.evidence))


def _watch(run_id: str, url: str | None, *, after: int, as_json: bool) -> int:
    with asking(url, retries=PATIENT_RETRIES) as client:
        board = Board(client, run_id, after=after)
        is_live = sys.stdout.isatty() and not as_json
        run = board.show_live() if is_live else board.show_lines(as_json=as_json)
    return FINE if run.state == "DONE_SUCCESS" else NO


def _print_run(run: RunAnswer, *, as_json: bool) -> None:
    if as_json:
        print_json(run)
        return
    from .view import run_view

    make_console().print(run_view(run))
