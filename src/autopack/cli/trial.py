"""A trial of the CI command: on a commit, as the service runs it, but without the service.

`doctor` and `autopack ci try` use it. Nothing is recorded, and the service's folders stay as they
are: the commit is checked out in a temporary folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ..ci import CheckRunner, CommandOutcome, Job, environment_for
from ..config import Settings
from ..domain.errors import AutopackError
from ..domain.naming import ruleset_name
from ..domain.ruleset import CiCommand, Ruleset
from ..domain.secret_rules import redact_bytes
from ..domain.terms import CiProfile, Sandbox, Verdict
from ..gitrepo.checkout import Checkout, checked_out
from ..gitrepo.repository import Repository
from ..gitrepo.workspace import WorkspaceError
from ..setup import hidden_packages

LAST_LINES: Final = 12
# AUTOPACK_RUN_ID and AUTOPACK_PHASE_ID of a trial.
NAME: Final = "trial"


class RulesetError(Exception):
    """The ruleset's file cannot be used. The message is one line."""

    def __init__(self, message: str, *, is_readable: bool = True) -> None:
        super().__init__(message)
        self.is_readable = is_readable


def read_ruleset(settings: Settings) -> tuple[Path, Ruleset | None]:
    """Return the file of the ruleset, and the ruleset; None before the first start writes it.

    Raises RulesetError.
    """
    file = settings.autonomous_runs_dir / ruleset_name(settings.project_id)
    try:
        return file, Ruleset.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return file, None
    except OSError as error:
        raise RulesetError(f"{file}: {error.strerror}", is_readable=False) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = " ".join(f"{file}: {where} {first['msg']}".split())
        raise RulesetError(message) from error


@contextmanager
def reading_repository(settings: Settings) -> Iterator[Repository]:
    """Open the repository, and leave the service's folder as it is.

    Raises RepositoryUnusableError.
    """
    with tempfile.TemporaryDirectory(prefix="autopack-read-") as home:
        alone = {"home": Path(home), "git_remote": None, "signing_key": None}
        yield Repository.open(settings.model_copy(update=alone))


@contextmanager
def laid_out(
    settings: Settings, repository: Repository, branch: str, commit: str
) -> Iterator[Checkout]:
    """Check out a commit in a temporary folder, outside of the service's.

    Raises AutopackError, WorkspaceError, OSError.
    """
    with tempfile.TemporaryDirectory(prefix="autopack-trial-") as home:
        alone = settings.model_copy(update={"home": Path(home)})
        with checked_out(alone, repository, branch, commit) as checkout:
            yield checkout


@dataclass(frozen=True, slots=True)
class Edit:
    """A file's content for a trial, with git's mode."""

    content: bytes
    mode: str = "100644"


Edits = Mapping[str, Edit | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The result of a trial; `hint` is what may be missing in the sandbox."""

    commit: str
    profile: CiProfile
    command: str
    outcome: CommandOutcome
    hint: str | None

    @property
    def lines(self) -> list[str]:
        """All lines of the log, without credentials."""
        return redact_bytes(self.outcome.log).decode(errors="replace").splitlines()

    @property
    def last_lines(self) -> list[str]:
        return [line for line in self.lines if line.strip()][-LAST_LINES:]


def try_commit(
    settings: Settings,
    repository: Repository,
    *,
    branch: str,
    commit: str,
    profile: CiProfile,
    rules: CiCommand,
    edits: Edits | None = None,
) -> Trial:
    """Run a profile's command on a commit once, in the sandbox of the service.

    `edits` are files that differ from the commit for this trial.
    """
    runner = CheckRunner(settings)
    try:
        with laid_out(settings, repository, branch, commit) as checkout:
            if edits:
                workspace = checkout.workspace
                workspace.edit(
                    {
                        path: None if edit is None else workspace.store(edit.content, edit.mode)
                        for path, edit in edits.items()
                    }
                )
            outcome = runner.run(
                Job(
                    tree=checkout.tree,
                    objects=checkout.objects,
                    command=rules.command or "",
                    timeout_seconds=rules.timeout_seconds,
                    environment=environment_for(
                        profile=profile, run_id=NAME, phase_id=NAME, commit=commit, attempt=1
                    ),
                    junit=rules.junit,
                ),
                should_stop=lambda: False,
            )
    except (AutopackError, WorkspaceError, OSError) as error:
        outcome = CommandOutcome.without_checkout(error, runner.sandbox)
    is_green = outcome.verdict is Verdict.GREEN
    is_walled = outcome.sandbox is Sandbox.BUBBLEWRAP
    hint = hidden_packages(settings) if is_walled and not is_green else None
    return Trial(
        commit=commit, profile=profile, command=rules.command or "", outcome=outcome, hint=hint
    )
