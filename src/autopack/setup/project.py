"""The files of `autopack init` in a project's repository; only missing ones are written."""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from ..config import Settings, repository_top
from ..domain.naming import ruleset_name
from ..domain.ruleset import CiCommand, CiProfiles, CiRules, PathRules, Ruleset
from ..domain.terms import CiMode, CiProfile
from ..gitrepo import Repository
from ..mirror import Mirror
from .checks import NOTHING, Checks, find_checks, hidden_packages
from .placing import LinkError, append, is_taken, read_file, require_no_link, write_new
from .unit import Unit

PREFLIGHT_GATE: Final = "scripts/preflight_gate.sh"
PROMOTION: Final = ".github/workflows/promotion.yml"
PREFLIGHT: Final = ".github/workflows/preflight.yml"
SCRIPTS: Final = (PREFLIGHT_GATE, "scripts/check_promotion.py", "scripts/post_verdict.py")
IGNORED: Final = ("/.autonomous_runs/", "/.autopack/")
JUNIT: Final = ".preflight/junit.xml"
RETRIES: Final = 2


class SetUpError(Exception):
    """The repository cannot be set up. The message is one line that says why."""


class Action(StrEnum):
    WRITTEN = "written"
    EXTENDED = "extended"
    UPDATED = "updated"
    KEPT = "kept"
    DIFFERS = "kept, differs"


@dataclass(frozen=True, slots=True)
class SetUp:
    """What was done, by path, and the steps that are left to the operator."""

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
    unit: Unit | None = None,
    is_applied: bool = False,
    is_dry_run: bool = False,
) -> SetUp:
    """Write the files that a project needs for CI and promotion; existing files stay as they are.

    A default ruleset is updated. In an edited one, fields with default values are updated if
    `is_applied`; else only the difference is shown.

    `mode` selects the CI, if the project has checks. `command` runs these; without it they are
    detected. A `unit` is written for the service manager. A dry run only shows what would be done.
    Raises SetUpError, RepositoryUnusableError, MirrorUnusableError.
    """
    base_branch, remotes = _look_over(settings)
    top = repository_top(settings.repo_path)
    checks = Checks("its own command", command) if command else find_checks(top)
    ruleset = _ruleset(settings.project_id, mode, checks)
    ruleset_file = settings.autonomous_runs_dir / ruleset_name(settings.project_id)
    is_inside = ruleset_file.is_relative_to(top)
    shown_ruleset = str(ruleset_file.relative_to(top) if is_inside else ruleset_file)
    files = _files(base_branch, checks)
    try:
        for name in (*files, *([shown_ruleset] if is_inside else ())):
            require_no_link(top, name)  # before anything is written
        if is_inside and is_taken(top, shown_ruleset) and read_file(top, shown_ruleset) is None:
            raise LinkError(f"{shown_ruleset} is not a regular file: nothing is written through it")
        done = {name: _write(top, name, text, is_dry_run) for name, text in files.items()}
        if done[PREFLIGHT] is Action.DIFFERS and _is_filled_by_init(top):
            done[PREFLIGHT] = _replace(top, PREFLIGHT, files[PREFLIGHT], is_dry_run)
        done[".gitignore"] = _ignore(top, is_dry_run)
        left_to_do = list(_to_commit(base_branch, done, has_remote=bool(remotes)))
        change = _change_of(settings, ruleset, is_replacing=command is not None)
        done[shown_ruleset] = _put_ruleset(settings, change, is_dry_run, is_applied=is_applied)
        if unit is not None:
            done[str(unit.file)] = _put_unit(unit, is_dry_run)
    except LinkError as error:
        raise SetUpError(str(error)) from error
    except OSError as error:
        raise SetUpError(f"cannot write {error.filename}: {error.strerror}") from error
    left_to_do += _to_configure(ruleset, shown_ruleset, change, done[shown_ruleset])
    left_to_do += _to_install(settings, ruleset.ci.mode)
    left_to_do += _to_host(settings, base_branch, ruleset.ci.mode, remotes)
    if unit is not None:
        left_to_do += _to_start(unit, done[str(unit.file)])
    return SetUp(top, base_branch, checks, done, tuple(left_to_do))


def _files(base_branch: str, checks: Checks | None) -> dict[str, str]:
    """Return the files to copy, by path."""
    texts = {name: _source(name) for name in SCRIPTS}
    texts[PROMOTION] = _filled(_source(PROMOTION), BASE=base_branch)
    texts[PREFLIGHT] = _filled(
        _source(PREFLIGHT),
        BASE=base_branch,
        PREFLIGHT_SETUP=checks.needs if checks else NOTHING,
        PREFLIGHT_COMMAND=(checks.command if checks else None) or "",
    )
    return texts


def _look_over(settings: Settings) -> tuple[str, tuple[str, ...]]:
    """Return base branch and remotes as the service finds them, without writing anything."""
    with tempfile.TemporaryDirectory(prefix="autopack-init-") as home:
        repository = Repository.open(
            settings.model_copy(update={"home": Path(home), "git_remote": None})
        )
        if repository.is_bare:
            raise SetUpError(f"{repository.path} is bare: set up a clone of it, and push.")
        return repository.base().branch, repository.remote_names()


def _source(name: str) -> str:
    """Return the source of a file: in the installed package, else at the checkout's top."""
    here = Path(__file__).resolve()
    for folder in (here.parent / "files", here.parents[3]):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise SetUpError(f"{name} is missing beside {here.parent}: this Autopack is incomplete")


def _filled(workflow: str, **values: str) -> str:
    """Set values in the environment at a workflow's top. Every JSON string is a YAML string."""
    lines = workflow.splitlines(keepends=True)
    for name, value in values.items():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"  {name}: "))
        lines[place] = f"  {name}: {json.dumps(value)}\n"
    return "".join(lines)


def _write(top: Path, name: str, text: str, is_dry_run: bool) -> Action:
    if is_taken(top, name):
        return Action.KEPT if read_file(top, name) == text.encode() else Action.DIFFERS
    if not is_dry_run:
        write_new(top, name, text.encode())
    return Action.WRITTEN


def _is_filled_by_init(top: Path) -> bool:
    """Return whether the workflow differs from its source by nothing but the values at its top."""
    standing = (read_file(top, PREFLIGHT) or b"").decode(errors="replace")

    def without_values(text: str) -> str:
        return re.sub(r"(?m)^  (BASE|PREFLIGHT_SETUP|PREFLIGHT_COMMAND): .*$", r"  \1:", text)

    return without_values(standing) == without_values(_source(PREFLIGHT))


def _replace(top: Path, name: str, text: str, is_dry_run: bool) -> Action:
    if not is_dry_run:
        (top / name).write_text(text, encoding="utf-8")
    return Action.UPDATED


def _ignore(top: Path, is_dry_run: bool) -> Action:
    """Add the service's folders to `.gitignore`; git does not read it through a link."""
    name = ".gitignore"
    is_there = is_taken(top, name)
    content = read_file(top, name)
    if is_there and content is None:
        return Action.DIFFERS
    standing = (content or b"").decode(errors="surrogateescape")
    missing = [line for line in IGNORED if line not in standing.splitlines()]
    if not missing:
        return Action.KEPT
    if not is_dry_run:
        start = "" if not standing or standing.endswith("\n") else "\n"
        text = (start + "".join(f"{line}\n" for line in missing)).encode()
        (append if is_there else write_new)(top, name, text)
    return Action.EXTENDED if is_there else Action.WRITTEN


def _ruleset(project_id: str, mode: CiMode, checks: Checks | None) -> Ruleset:
    protected = PathRules(protected=SCRIPTS)
    if checks is None:
        return Ruleset(project_id=project_id, paths=protected)
    normal, strict = (_ci_command(profile, checks) for profile in CiProfile)
    ci = CiRules(mode=mode, profiles=CiProfiles(normal=normal, strict=strict))
    return Ruleset(project_id=project_id, paths=protected, ci=ci)


def _ci_command(profile: CiProfile, checks: Checks) -> CiCommand:
    """Return the command of the preflight gate, once: the service retries, to find flaky tests."""
    settings = f"CI_PROFILE={profile} MAX_ATTEMPTS=1"
    if checks.command is not None:
        settings += f" PREFLIGHT_COMMAND={shlex.quote(checks.command)}"
        return CiCommand(command=f"{settings} bash {PREFLIGHT_GATE}", retries=RETRIES)
    settings += f" PREFLIGHT_JUNIT={JUNIT}"
    return CiCommand(command=f"{settings} bash {PREFLIGHT_GATE}", retries=RETRIES, junit=JUNIT)


_OWN_COMMAND: Final = re.compile(
    r"CI_PROFILE=\w+ MAX_ATTEMPTS=1 PREFLIGHT_(?:COMMAND|JUNIT)=.* bash "
    + re.escape(PREFLIGHT_GATE)
)


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of the ruleset; `standing` is the present one, None if it is invalid."""

    wanted: Ruleset
    standing: Ruleset | None
    is_there: bool

    @property
    def is_untouched(self) -> bool:
        """Whether all of the present ruleset is what the service or an earlier `init` wrote."""
        if self.standing is None:
            return False
        default = dict(_leaves(Ruleset(project_id=self.wanted.project_id).model_dump(mode="json")))
        return all(
            value == default.get(name) or _has_own_values(name, value)
            for name, value in _leaves(self.standing.model_dump(mode="json"))
        )

    def lines(self) -> Iterator[str]:
        """Yield each field that would change, with its present and its new value."""
        before = dict(_leaves(self.standing.model_dump(mode="json"))) if self.standing else {}
        for name, value in _leaves(self.wanted.model_dump(mode="json")):
            if before.get(name) != value:
                yield f"{name}: {json.dumps(before.get(name))} -> {json.dumps(value)}"


def _leaves(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _is_own_command(value: object) -> bool:
    return isinstance(value, str) and _OWN_COMMAND.fullmatch(value) is not None


def _without_own_commands(default: dict[str, Any], document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a default in which the commands that `init` wrote are what was there before."""
    base: dict[str, Any] = json.loads(json.dumps(default))
    for name, profile in document["ci"]["profiles"].items():
        if _is_own_command(profile["command"]):
            base["ci"]["profiles"][name] = profile
    return base


def _has_own_values(name: str, value: object) -> bool:
    """Return whether `init` may have written this value; a mode is kept in any case."""
    match name.rpartition(".")[2]:
        case "command":
            return _is_own_command(value)
        case "retries":
            return value == RETRIES
        case "junit":
            return value == JUNIT
        case "protected":
            return value == list(SCRIPTS)
        case last:
            return last in ("mode", "version")


def _change_of(settings: Settings, ours: Ruleset, *, is_replacing: bool) -> _Change:
    """Merge the new fields into the present ruleset, where it has default values.

    `is_replacing`: a command was given, so it also takes the place of one that `init` wrote before.
    """
    content = Mirror(settings.autonomous_runs_dir).read_ruleset(ours.project_id)
    if content is None:
        return _Change(ours, None, is_there=False)
    try:
        standing = Ruleset.model_validate_json(content)
        default = Ruleset(project_id=ours.project_id).model_dump(mode="json")
        document = standing.model_dump(mode="json")
        base = _without_own_commands(default, document) if is_replacing else default
        merged = _merged(base, document, ours.model_dump(mode="json"))
        merged["paths"]["protected"] = list(
            dict.fromkeys([*standing.paths.protected, *ours.paths.protected])
        )
        if merged != document:
            merged["version"] = standing.version + 1
        return _Change(Ruleset.model_validate(merged), standing, is_there=True)
    except ValidationError:
        return _Change(ours, None, is_there=True)


def _merged(
    base: Mapping[str, Any], theirs: Mapping[str, Any], ours: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge three ways; where both sides changed a field, the operator's value stays.

    What belongs to a command, such as its report, stays with it.
    """
    if theirs.get("command") != base.get("command"):
        return dict(theirs)
    merged: dict[str, Any] = {}
    for name, value in theirs.items():
        before, wanted = base.get(name), ours.get(name, value)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            merged[name] = _merged(before, value, wanted)
        else:
            merged[name] = wanted if value == before else value
    return merged


def _put_ruleset(
    settings: Settings, change: _Change, is_dry_run: bool, *, is_applied: bool
) -> Action:
    if change.is_there and change.wanted == change.standing:
        return Action.KEPT
    if change.is_there and (change.standing is None or not (change.is_untouched or is_applied)):
        return Action.DIFFERS
    if not is_dry_run:
        mirror = Mirror(settings.autonomous_runs_dir)
        mirror.prepare()
        content = json.dumps(change.wanted.model_dump(mode="json"), indent=2) + "\n"
        mirror.write_ruleset(
            change.wanted.project_id, content.encode(), only_if_absent=not change.is_there
        )
    return Action.UPDATED if change.is_there else Action.WRITTEN


def _put_unit(unit: Unit, is_dry_run: bool) -> Action:
    """Write a file for the service manager. It is no foreign folder, so links are followed."""
    if unit.file.exists() or unit.file.is_symlink():
        is_same = unit.file.is_file() and unit.file.read_bytes() == unit.content
        return Action.KEPT if is_same else Action.DIFFERS
    if not is_dry_run:
        unit.file.parent.mkdir(parents=True, exist_ok=True)
        with unit.file.open("xb") as file:
            file.write(unit.content)
    return Action.WRITTEN


def _to_start(unit: Unit, action: Action) -> Iterator[str]:
    if action is Action.DIFFERS:
        yield f"{unit.file} is another one, and is kept: remove it to get a new one."
        return
    if unset := ", ".join(unit.unset):
        yield (
            f"Put these settings into a file, chmod 600, and name it by AUTOPACK_ENV_FILE in"
            f" {unit.file}: {unset}. They are set in this shell only."
        )
    yield f"Start the service: {' && '.join(unit.start)}"


def _to_commit(base_branch: str, done: Mapping[str, Action], *, has_remote: bool) -> Iterator[str]:
    changed = [name for name, action in done.items() if action in {Action.WRITTEN, Action.EXTENDED}]
    if changed:
        push = " && git push" if has_remote else ""
        yield (
            f"Commit on {base_branch}, as runs start from what is committed there:"
            f"\n     git add {' '.join(changed)} && git commit{push}"
        )
    other = [name for name, action in done.items() if action is Action.DIFFERS]
    if other:
        yield f"Compare with Autopack's own, which you may want instead: {', '.join(other)}."


def _to_configure(ruleset: Ruleset, name: str, change: _Change, action: Action) -> Iterator[str]:
    if not ruleset.ci.profiles.normal.command:
        yield (
            "No file shows how the project is checked: give --ci-command, or put"
            f" PREFLIGHT_COMMAND into {PREFLIGHT}, ci.mode and ci.profiles into {name}."
            " Without CI a run with a strict phase cannot be promoted."
        )
    elif action is Action.DIFFERS and change.standing is None:
        yield f"{name} is not a valid ruleset: `autopack doctor` names the field. It is kept."
    elif action is Action.DIFFERS:
        changes = "".join(f"\n     {line}" for line in change.lines())
        yield f"{name} was changed by hand. `autopack init --apply` changes in it:{changes}"


def _to_install(settings: Settings, mode: CiMode) -> Iterator[str]:
    if mode is not CiMode.LOCAL:
        return
    setting = hidden_packages(settings)
    if setting is None:
        yield (
            "Install what the checks need on the service's machine: they have no network there, and"
            " see only the system and the folders of AUTOPACK_CI_READABLE_PATHS."
        )
    else:
        yield (
            "Show the installed packages to the checks, which see nothing else outside of the"
            f" system; start the service with\n     {setting}"
        )
    yield (
        "Try the checks where the service runs them, and show that they are red where they must be:"
        "\n     autopack ci try && autopack gate prove"
    )


def _to_host(
    settings: Settings, base_branch: str, mode: CiMode, remotes: Sequence[str]
) -> Iterator[str]:
    if not remotes and settings.git_remote is None:
        if mode is CiMode.EXTERNAL:
            yield "Add a remote, and set AUTOPACK_GIT_REMOTE to it: no run starts without."
        return
    if settings.git_remote is None:
        yield (
            f"Start the service with AUTOPACK_GIT_REMOTE={remotes[0]}, so that it pushes runs'"
            " branches" + ("; no run starts without it." if mode is CiMode.EXTERNAL else ".")
        )
    if mode is CiMode.EXTERNAL:
        yield (
            "Let GitHub's verdicts reach the service: set the repository's variable"
            " AUTOPACK_URL, and a key for what stands before it as the secret AUTOPACK_API_KEY."
        )
    yield (
        f"On GitHub: protect {base_branch}; let only the service push autonomous/**; allow Actions"
        " to create pull requests (Settings, Actions, General)."
    )
