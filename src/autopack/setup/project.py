"""What `autopack init` writes into a project's repository: only what is not there yet."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from ..config import Settings, repository_top
from ..domain.ruleset import CiCommand, CiProfiles, CiRules, PathRules, Ruleset
from ..domain.values import CiMode, CiProfile
from ..gitrepo import Repository
from ..mirror import Mirror
from .checks import NOTHING, Checks, find_checks

GATE: Final = "scripts/preflight_gate.sh"
PROMOTION: Final = ".github/workflows/promotion.yml"
PREFLIGHT: Final = ".github/workflows/preflight.yml"
SCRIPTS: Final = (GATE, "scripts/check_promotion.py", "scripts/post_verdict.py")
IGNORED: Final = ("/.autonomous_runs/", "/.autopack/")
JUNIT: Final = ".preflight/junit.xml"
RETRIES: Final = 2


class SetUpError(Exception):
    """The repository cannot be set up. The message is one line that says why."""


class Action(StrEnum):
    WRITTEN = "written"
    EXTENDED = "extended"
    KEPT = "kept"
    DIFFERS = "kept, differs"


@dataclass(frozen=True, slots=True)
class SetUp:
    """What was done, by path, and what only its owner can do."""

    top: Path
    base_branch: str
    checks: Checks | None
    done: Mapping[str, Action]
    left_to_do: tuple[str, ...]


def set_up(
    settings: Settings,
    *,
    mode: CiMode = CiMode.LOCAL,
    command: str | None = None,
    is_dry_run: bool = False,
) -> SetUp:
    """Put in place what a project needs for CI and promotion; what is there stays as it is.

    `mode` says who judges runs' commits, where there are checks at all. `command` runs these;
    without it they are found. A dry run only says what would be done. Raises SetUpError,
    RepositoryUnusableError, MirrorUnusableError.
    """
    base_branch = _base_branch(settings)
    top = repository_top(settings.repo_path)
    checks = Checks("its own command", command) if command else find_checks(top)
    ruleset = _ruleset(settings.project_id, mode, checks)
    try:
        done = {
            name: _write(top / name, text, is_dry_run)
            for name, text in _files(base_branch, checks).items()
        }
        done[".gitignore"] = _ignore(top / ".gitignore", is_dry_run)
    except OSError as error:
        raise SetUpError(f"cannot write {error.filename}: {error.strerror}") from error
    ruleset_file = settings.autonomous_runs_dir / f"project_ruleset_{settings.project_id}.json"
    ruleset_name = str(
        ruleset_file.relative_to(top) if ruleset_file.is_relative_to(top) else ruleset_file
    )
    left_to_do = list(_to_commit(base_branch, done))
    done[ruleset_name] = _put_ruleset(settings, ruleset, is_dry_run)
    left_to_do += _to_configure(ruleset, ruleset_name, done[ruleset_name])
    left_to_do += _to_host(settings, base_branch, ruleset.ci.mode)
    return SetUp(top, base_branch, checks, done, tuple(left_to_do))


def _files(base_branch: str, checks: Checks | None) -> dict[str, str]:
    """Return what is copied, by path."""
    texts = {name: _source(name) for name in SCRIPTS}
    texts[PROMOTION] = _filled(_source(PROMOTION), BASE=base_branch)
    texts[PREFLIGHT] = _filled(
        _source(PREFLIGHT),
        BASE=base_branch,
        PREFLIGHT_SETUP=checks.needs if checks else NOTHING,
        PREFLIGHT_COMMAND=(checks.command if checks else None) or "",
    )
    return texts


def _base_branch(settings: Settings) -> str:
    """Look the repository over as the service would, without leaving anything in it."""
    with tempfile.TemporaryDirectory(prefix="autopack-init-") as home:
        repository = Repository.open(
            settings.model_copy(update={"home": Path(home), "git_remote": None})
        )
        if repository.is_bare:
            raise SetUpError(f"{repository.path} is bare: set up a clone of it, and push.")
        return repository.base().branch


def _source(name: str) -> str:
    """Return a file to copy: beside this code when installed, else at the checkout's top."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "files", here.parents[3]):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise SetUpError(f"{name} is missing beside {here.parent}: this Autopack is incomplete")


def _filled(workflow: str, **values: str) -> str:
    """Put values into the environment at a workflow's top. Every JSON string is one of YAML's."""
    lines = workflow.splitlines(keepends=True)
    for name, value in values.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}: "))
        lines[place] = f"  {name}: {json.dumps(value)}\n"
    return "".join(lines)


def _write(path: Path, text: str, is_dry_run: bool) -> Action:
    if path.is_symlink() or path.exists():
        is_same = path.is_file() and path.read_bytes() == text.encode()
        return Action.KEPT if is_same else Action.DIFFERS
    if not is_dry_run:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as opened:
            opened.write(text)
    return Action.WRITTEN


def _ignore(path: Path, is_dry_run: bool) -> Action:
    """Add our folders to what git ignores."""
    is_there = path.exists()
    standing = path.read_text(encoding="utf-8", errors="surrogateescape") if is_there else ""
    missing = [line for line in IGNORED if line not in standing.splitlines()]
    if not missing:
        return Action.KEPT
    if not is_dry_run:
        start = "" if not standing or standing.endswith("\n") else "\n"
        with path.open("a", encoding="utf-8") as opened:
            opened.write(start + "".join(f"{line}\n" for line in missing))
    return Action.EXTENDED if is_there else Action.WRITTEN


def _ruleset(project_id: str, mode: CiMode, checks: Checks | None) -> Ruleset:
    protected = PathRules(protected=SCRIPTS)
    if checks is None:
        return Ruleset(project_id=project_id, paths=protected)
    normal, strict = (_ci_command(profile, checks) for profile in CiProfile)
    ci = CiRules(mode=mode, profiles=CiProfiles(normal=normal, strict=strict))
    return Ruleset(project_id=project_id, paths=protected, ci=ci)


def _ci_command(profile: CiProfile, checks: Checks) -> CiCommand:
    """Return the gate's call. The service tries again itself, and so learns what is flaky."""
    settings = f"CI_PROFILE={profile} MAX_ATTEMPTS=1"
    if checks.command is not None:
        settings += f" PREFLIGHT_COMMAND={shlex.quote(checks.command)}"
        return CiCommand(command=f"{settings} bash {GATE}", retries=RETRIES)
    settings += f" PREFLIGHT_JUNIT={JUNIT}"
    return CiCommand(command=f"{settings} bash {GATE}", retries=RETRIES, junit=JUNIT)


def _put_ruleset(settings: Settings, ruleset: Ruleset, is_dry_run: bool) -> Action:
    mirror = Mirror(settings.autonomous_runs_dir)
    standing = mirror.read_ruleset(ruleset.project_id)
    if standing is not None:
        try:
            is_same = Ruleset.model_validate_json(standing).ci == ruleset.ci
        except ValidationError:
            is_same = False
        return Action.KEPT if is_same else Action.DIFFERS
    if not is_dry_run:
        mirror.prepare()
        content = json.dumps(ruleset.model_dump(mode="json"), indent=2) + "\n"
        mirror.write_ruleset(ruleset.project_id, content.encode(), only_if_absent=True)
    return Action.WRITTEN


def _to_commit(base_branch: str, done: Mapping[str, Action]) -> Iterator[str]:
    changed = [name for name, action in done.items() if action in {Action.WRITTEN, Action.EXTENDED}]
    if changed:
        yield (
            f"On {base_branch}: git add {' '.join(changed)} && git commit && git push."
            " Runs start from what is committed there."
        )
    other = [name for name, action in done.items() if action is Action.DIFFERS]
    if other:
        yield f"Compare with Autopack's own, which you may want instead: {', '.join(other)}."


def _to_configure(ruleset: Ruleset, name: str, action: Action) -> Iterator[str]:
    if not ruleset.ci.profiles.normal.command:
        yield (
            "Nothing here tells how the project is checked: say so by --ci-command, or put"
            f" PREFLIGHT_COMMAND into {PREFLIGHT}, ci.mode and ci.profiles into {name}."
            " Without CI a run with a strict phase cannot be promoted."
        )
    elif action is Action.DIFFERS:
        wanted = ruleset.model_dump(mode="json", include={"ci", "paths"})
        yield (
            f"Look whether {name}, which was there, is what you want; a new one would have:"
            f" {json.dumps(wanted)}"
        )
    if ruleset.ci.mode is CiMode.LOCAL:
        yield (
            "Install what the checks need where the service runs: there they have no network, and"
            " see of the machine what AUTOPACK_CI_READABLE_PATHS names beside the system."
        )


def _to_host(settings: Settings, base_branch: str, mode: CiMode) -> Iterator[str]:
    if settings.git_remote is None:
        yield (
            "Start the service with AUTOPACK_GIT_REMOTE=origin, so that it pushes runs' branches"
            + ("; without, no run starts." if mode is CiMode.EXTERNAL else ".")
        )
    if mode is CiMode.EXTERNAL:
        yield (
            "Let GitHub's verdicts reach the service: its address as the repository's variable"
            " AUTOPACK_URL, and a key for what stands before it as the secret AUTOPACK_API_KEY."
        )
    yield (
        f"On GitHub: protect {base_branch}; let only the service push autonomous/**; allow Actions"
        " to create pull requests (Settings, Actions, General)."
    )
