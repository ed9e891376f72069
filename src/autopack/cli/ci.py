"""`autopack ci`: try the CI command, without a run and without the service. (docs/ci.md)"""

from __future__ import annotations

from typing import Annotated

import typer

from ..config import SettingsError
from ..domain.errors import AutopackError
from ..domain.terms import CiProfile, Sandbox, Verdict
from ..gitrepo.errors import RepositoryUnusableError
from .command import FINE, NO, UNAVAILABLE, CommandError, command_app
from .settings import read_settings
from .terminal import JsonOption, busy, cell, make_console, print_json, say
from .trial import RulesetError, Trial, read_ruleset, reading_repository, try_commit

EXIT_CODES = {Verdict.GREEN: FINE, Verdict.RED: NO, Verdict.DID_NOT_RUN: UNAVAILABLE}

app = command_app()


@app.callback()
def _group() -> None:
    """Try the CI command."""


@app.command("try")
def try_(
    commit: Annotated[
        str | None,
        typer.Argument(metavar="COMMIT", help="A branch, tag or id; default: the base branch."),
    ] = None,
    profile: Annotated[CiProfile, typer.Option(help="The profile.")] = CiProfile.NORMAL,
    log: Annotated[bool, typer.Option("--log", help="Print the whole log.")] = False,
    json: JsonOption = False,
) -> int:
    """Run the ruleset's CI command on a commit, in the sandbox of the service.

    Records nothing, needs no service. Ends with 0 for green, 1 for red, 3 if it did not run.
    """
    trial = _try(commit, profile)
    outcome = trial.outcome
    if json:
        print_json(
            {
                "commit": trial.commit,
                "profile": trial.profile,
                "command": trial.command,
                "verdict": outcome.verdict,
                "reason": outcome.reason,
                "sandbox": outcome.sandbox,
                "tests": outcome.tests.model_dump(mode="json") if outcome.tests else None,
                "failing_checks": list(outcome.failing_checks),
                "hint": trial.hint,
                "log": trial.lines if log else trial.last_lines,
            }
        )
    else:
        _print(trial, is_whole=log)
    return EXIT_CODES[outcome.verdict]


def _try(wanted: str | None, profile: CiProfile) -> Trial:
    try:
        settings = read_settings()
        file, ruleset = read_ruleset(settings)
        rules = ruleset.ci.command_for(profile) if ruleset is not None else None
        if rules is None or not rules.command:
            raise CommandError(
                f"{file} has no command for the profile {profile}: `autopack init` sets it"
            )
        with reading_repository(settings) as repository:
            base = repository.base()
            commit = base.commit if wanted is None else repository.find_commit(wanted)
            if commit is None:
                raise CommandError(f"{repository.path} has no commit {wanted!r}")
            with busy(f"{rules.command}  on {commit[:12]}"):
                return try_commit(
                    settings,
                    repository,
                    branch=base.branch,
                    commit=commit,
                    profile=profile,
                    rules=rules,
                )
    except (SettingsError, RulesetError, RepositoryUnusableError) as error:
        raise CommandError(str(error)) from error
    except AutopackError as error:
        raise CommandError(error.detail) from error


def _print(trial: Trial, *, is_whole: bool) -> None:
    outcome = trial.outcome
    lines = trial.lines if is_whole else trial.last_lines
    is_green = outcome.verdict is Verdict.GREEN
    if is_whole or not is_green:
        say(*(f"  {line}" for line in lines))
    counts = outcome.tests
    tests = f", {counts.passed} of {counts.total} tests passed" if counts else ""
    console = make_console()
    console.print(
        cell(outcome.verdict, "green" if is_green else "red"),
        cell(f"on {trial.commit[:12]}, profile {trial.profile}{tests}: {outcome.reason}"),
    )
    if outcome.sandbox is Sandbox.NONE:
        console.print(cell("It ran without a sandbox: `autopack doctor` says why.", "yellow"))
    if trial.hint is not None:
        console.print(cell("CI commands do not see what is installed in the project. Set:"))
        say(f"  {trial.hint}")
