"""`autopack init`: prepare a project's repository for runs, CI and promotion."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from ..config import SettingsError
from ..domain.errors import AutopackError
from ..domain.terms import CiMode
from ..gitrepo.errors import RepositoryUnusableError
from ..setup import Action, SetUp, SetUpError, set_up, unit_here
from .command import CommandError, command_app
from .settings import read_settings
from .terminal import say, wrapped

# A dry run writes nothing, so its words say "would".
WOULD = {
    Action.WRITTEN: "would write",
    Action.EXTENDED: "would extend",
    Action.UPDATED: "would update",
}

app = command_app()


@app.command()
def init(
    ci: Annotated[
        CiMode, typer.Option(help="Which CI judges commits: the service's own, an external one.")
    ] = CiMode.LOCAL,
    ci_command: Annotated[
        str | None,
        typer.Option(help="Command for the project's checks; default: found by its files."),
    ] = None,
    apply: Annotated[
        bool,
        typer.Option("--apply", help="Change an edited ruleset too, where it has defaults."),
    ] = False,
    service: Annotated[
        bool,
        typer.Option("--service", help="Write a unit for systemd, or an agent for launchd, too."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done, write nothing.")
    ] = False,
) -> None:
    """Set the git repository of the current folder up for runs, CI and promotion.

    Overwrites nothing, and shows what is left to do.
    """
    try:
        settings = read_settings()
        found = set_up(
            settings,
            mode=ci,
            command=ci_command,
            unit=unit_here(settings, os.environ) if service else None,
            is_applied=apply,
            is_dry_run=dry_run,
        )
    except (SettingsError, SetUpError, RepositoryUnusableError, AutopackError) as error:
        raise CommandError(str(error)) from error
    say(*_lines(found, is_dry_run=dry_run))


def _lines(found: SetUp, *, is_dry_run: bool) -> list[str]:
    checks = f"checks by {found.checks.name}" if found.checks else "no checks found"
    lines = [f"{found.top} (base: {found.base_branch}, {checks})"]
    if is_dry_run:
        lines.append("This is a dry run: nothing is written.")
    words = WOULD if is_dry_run else {}
    lines += [f"  {words.get(action, action):<13} {name}" for name, action in found.done.items()]
    lines += ["", "Left to do:"]
    for number, step in enumerate(found.left_to_do, start=1):
        first, *others = step.split("\n")
        lines += wrapped(f"{number}. {first}", indent="   ")
        for other in others:  # commands, and settings, which are to be copied as they are
            is_command = other.lstrip().startswith("git ")
            lines += wrapped(other, "       ", is_command=True) if is_command else [other]
    return lines
