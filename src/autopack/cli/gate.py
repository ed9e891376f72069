"""`autopack gate`: show that the CI command tells good commits from bad ones. (docs/ci.md)"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from ..config import Settings, SettingsError
from ..domain.errors import AutopackError
from ..domain.gate_proof import Proof, ProofResult, is_proved
from ..domain.ruleset import CiRules
from ..domain.terms import CiProfile, Sandbox, Verdict
from ..gitrepo.errors import RepositoryUnusableError
from ..gitrepo.repository import Base, Repository
from ..gitrepo.workspace import WorkspaceError
from .command import FINE, NO, UNAVAILABLE, CommandError, command_app
from .proving import Prover
from .settings import read_settings
from .terminal import JsonOption, busy, cell, make_console, print_json, say
from .trial import RulesetError, Trial, read_ruleset, reading_repository

_COLOURS = {ProofResult.PASSED: "green", ProofResult.FAILED: "red"}

app = command_app()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proved:
    """What was found of one command; `profiles` are those that run it."""

    profiles: tuple[CiProfile, ...]
    trial: Trial
    proofs: tuple[Proof, ...]


@app.callback()
def _group() -> None:
    """Show that the CI command tells good commits from bad ones."""


@app.command()
def prove(
    profile: Annotated[
        CiProfile | None, typer.Option(help="Only this profile; default: each command once.")
    ] = None,
    json: JsonOption = False,
) -> int:
    """Show that the CI command is green on the base, and not green where it must not be.

    Runs it on the base branch, with a failing test, without tests, and without its program, in the
    sandbox of the service. Records nothing, needs no service. Ends with 0 if all is as it must be,
    1 if not, 3 if the command does not run on the base.
    """
    found = list(_prove(profile))
    if json:
        print_json({"commands": [_document(each) for each in found]})
    else:
        for each in found:
            _print(each)
    if any(each.trial.outcome.verdict is Verdict.DID_NOT_RUN for each in found):
        return UNAVAILABLE
    return FINE if all(is_proved(each.proofs) for each in found) else NO


def _prove(wanted: CiProfile | None) -> Iterator[Proved]:
    try:
        settings = read_settings()
        file, ruleset = read_ruleset(settings)
        rules = ruleset.ci if ruleset is not None else CiRules()
        by_command: dict[object, list[CiProfile]] = {}
        for profile in CiProfile if wanted is None else (wanted,):
            command = rules.command_for(profile)
            if command.command:
                key = (command.command, command.junit)
                by_command.setdefault(key, []).append(profile)
        if not by_command:
            named = f"the profile {wanted}" if wanted else "any profile"
            raise CommandError(f"{file} has no command for {named}: `autopack init` sets it")
        with reading_repository(settings) as repository:
            base = repository.base()
            for profiles in by_command.values():
                yield _proved(settings, repository, base, rules, tuple(profiles))
    except (SettingsError, RulesetError, RepositoryUnusableError, WorkspaceError) as error:
        raise CommandError(str(error)) from error
    except AutopackError as error:
        raise CommandError(error.detail) from error


def _proved(
    settings: Settings,
    repository: Repository,
    base: Base,
    rules: CiRules,
    profiles: tuple[CiProfile, ...],
) -> Proved:
    prover = Prover(settings, repository, base, rules, profiles[0])
    with busy(f"{rules.command_for(profiles[0]).command}  on {base.branch}, and on broken ones"):
        trial = prover.try_base()
        return Proved(profiles=profiles, trial=trial, proofs=tuple(prover.proofs(trial)))


def _document(found: Proved) -> dict[str, object]:
    return {
        "profiles": list(found.profiles),
        "command": found.trial.command,
        "commit": found.trial.commit,
        "sandbox": found.trial.outcome.sandbox,
        "is_proved": is_proved(found.proofs),
        "proofs": [asdict(proof) for proof in found.proofs],
        "hint": found.trial.hint,
    }


def _print(found: Proved) -> None:
    console = make_console()
    profiles = ", ".join(found.profiles)
    say(f"{found.trial.command}  ({profiles}, on {found.trial.commit[:12]})")
    for proof in found.proofs:
        console.print(
            " ",
            cell(f"{proof.result:<8}", _COLOURS.get(proof.result, "yellow")),
            cell(f"{proof.step:<13}"),
            cell(proof.detail),
        )
    if found.trial.outcome.verdict is not Verdict.GREEN:
        say("  `autopack ci try --log` shows the whole log.")
    if found.trial.outcome.sandbox is Sandbox.NONE:
        console.print(cell("It ran without a sandbox: `autopack doctor` says why.", "yellow"))
    if found.trial.hint is not None:
        say(f"  Set {found.trial.hint}")
