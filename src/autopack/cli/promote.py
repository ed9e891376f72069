"""`autopack promote`: show whether a run's branch may be merged, and start its merge."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from typing import Annotated

import typer

from ..views.promotion import PromotionAnswer
from .command import FINE, NO, CommandError, command_app
from .completion import RunId
from .service import asking
from .terminal import JsonOption, UrlOption, print_json, say

WORKFLOW = "promotion.yml"
START_SECONDS = 60

app = command_app()


@app.command()
def promote(
    run_id: RunId,
    is_opening: Annotated[
        bool, typer.Option("--open", help="Start the promotion workflow on GitHub by `gh`.")
    ] = False,
    json: JsonOption = False,
    url: UrlOption = None,
) -> int:
    """Show whether a run's branch may be merged, with every reason against it.

    Ends with 0 when it may, 1 when it may not.
    """
    with asking(url) as client:
        answer = client.promotion(run_id)
    if json:
        print_json(answer)
    else:
        _tell(answer)
    if not answer.eligible:
        return NO
    if is_opening:
        _open(answer)
        if not json:
            say(f"{WORKFLOW} was started: `gh run list --workflow {WORKFLOW}` shows it.")
    return FINE


def _tell(answer: PromotionAnswer) -> None:
    say(f"{answer.run_id} is {'' if answer.eligible else 'not '}eligible for promotion.")
    for reason in answer.reasons:
        say(f"  against it: {reason}")
    for check in answer.checks:
        if check.passed:
            say(f"  for it: {check.detail}")
    if answer.is_signed is not None:
        say(f"  the record is {'' if answer.is_signed else 'not '}signed")
    if answer.rehearsal is not None:
        base = f"{answer.rehearsal.base_branch} at {answer.rehearsal.base_commit[:7]}"
        say(f"  merge with {base}: {answer.rehearsal.result}")
    for warning in answer.warnings:
        say(f"  look at: {warning}")


def _open(answer: PromotionAnswer) -> None:
    """Start the workflow in the repository of the current folder. Raises CommandError."""
    request = answer.pull_request
    command = ["gh", "workflow", "run", WORKFLOW]
    command += ["-f", f"run_id={answer.run_id}", "-f", f"integration_branch={request.head}"]
    by_hand = shlex.join(command)
    if shutil.which("gh") is None:
        raise CommandError(
            f"gh is not installed: install it (https://cli.github.com), or run {WORKFLOW} from the"
            f" repository's Actions page; the command is: {by_hand}"
        )
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=START_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise CommandError(f"gh did not end within {START_SECONDS} s: {by_hand}") from error
    if done.returncode != 0:
        reason = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise CommandError(f"gh could not start {WORKFLOW}: {reason}")
