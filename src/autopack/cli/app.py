"""The entry point of the command line: the list of commands, and their exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from .. import __version__
from .command import CLOSED_PIPE, FINE, WRONG_USE, ClosedPipeError, CommandError
from .terminal import be_quiet, choose_project, print_any_text, say

# Each is the Typer `app` of the module of that name in this package. A module is imported when its
# command is called, so that one command does not slow down another.
COMMANDS: Final = {
    "up": "Serve, start a run and work on it, with a live board, in one command.",
    "serve": "Serve the HTTP API on the git repository of the current folder.",
    "jobs": "Do background work until a signal comes.",
    "work": "Let agents' commands build and review what runs have to do.",
    "run": "Start, show and control runs.",
    "attention": "Show what needs a person, and dismiss what is settled.",
    "issues": "List the project's backlog, resolve and reopen issues.",
    "figures": "Show what runs cost, and how well they went.",
    "strategy": "Show and change the policy; compile a plan under it.",
    "promote": "Say whether a run's branch may be merged, and start that.",
    "verify": "Check a run's branch against its own record, without the service.",
    "keys": "Make, list, revoke and rotate API keys, beside the database.",
    "projects": "List, add, change and close the projects of a service.",
    "nodes": "List the nodes of a database, and remove those that are gone.",
    "webhooks": "Make, list and remove webhooks, look at their deliveries.",
    "login": "Store an API key for the service.",
    "logout": "Remove the stored API key.",
    "whoami": "Show by which key and roles the service knows the caller.",
    "db": "Upgrade the database, show its status, open a shell.",
    "ci": "Try the CI command on a commit, without a run.",
    "gate": "Show that the CI command tells good commits from bad ones.",
    "doctor": "Find what is wrong with a set-up, and say how to repair it.",
    "backtest": "Decide finished runs again under another ruleset.",
    "init": "Set the git repository of the current folder up for runs, CI and promotion.",
}


_built = cache(get_command)  # it reads the signatures of all functions


class _Register(TyperGroup):
    """Lists all commands, and imports only the one that is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = _built(import_module(f".{name}", __package__).app)
        return name, command, rest


app = typer.Typer(
    name="autopack",
    cls=_Register,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code; docs/cli.md names them."""
    print_any_text()
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except (ClosedPipeError, BrokenPipeError):
        code = CLOSED_PIPE
    if code == CLOSED_PIPE:
        # The buffers have no reader any more, so Python must not flush them at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(arguments: Sequence[str] | None) -> int:
    try:
        result = _built(app).main(arguments, prog_name="autopack", standalone_mode=False)
    except CommandError as error:
        say(f"autopack: {error}", is_error=True)
        return error.exit_code
    except TyperException as error:
        _tell_wrong_use(error)
        return WRONG_USE
    return result if isinstance(result, int) else FINE


def _tell_wrong_use(error: TyperException) -> None:
    """Print one line; if the command is missing, also list all commands."""
    text = error.format_message()
    if "\n" in text:
        say(*text.split("\n"), is_error=True)
        return
    context = getattr(error, "ctx", None)
    where = context.command_path if context else "autopack"
    say(f"autopack: {text.rstrip('.')}. See {where} --help.", is_error=True)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        say(f"autopack {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print it.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print no progress, warnings and hints.")
    ] = False,
    project: Annotated[
        str | None,
        typer.Option(
            metavar="PROJECT", help="The project that is asked (AUTOPACK_PROJECT, the default one)."
        ),
    ] = None,
) -> None:
    """Supervise autonomous builds."""
    be_quiet(quiet)
    choose_project(project)


def _called_by_its_module() -> None:
    """Return a placeholder for the list, for a command that is not imported yet."""


for _name, _help in COMMANDS.items():
    app.command(_name, help=_help)(_called_by_its_module)
