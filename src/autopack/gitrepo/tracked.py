"""Files that the served repository tracks must not configure the service.

Every author of a commit can write a tracked file. If settings, home or runs directory were tracked,
such an author could decide which clients may call and how CI is confined.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..config import Settings, repository_top
from ..domain.naming import RECORD
from .errors import RepositoryUnusableError
from .process import GitRunner

# The repository may belong to another user: none of its hooks or filters run here.
TRUST = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "safe.directory",
    "GIT_CONFIG_VALUE_0": "*",
}
_REGULAR = ("100644", "100755")
_RULESET = re.compile(r"project_ruleset_.+\.json")
_MAX_LINKS = 40  # as many as Linux follows


@dataclass(frozen=True, slots=True)
class _WorkTree:
    """The top of a work tree, and the git directory that it shares with other work trees."""

    top: Path
    git_dir: Path


@dataclass(frozen=True, slots=True)
class _Tracked:
    """An entry of a repository's index, by its place in the work tree."""

    mode: str
    place: Path


def require_untracked(settings: Settings) -> None:
    """Check that no repository tracks the settings' file, home or runs directory.

    The runs directory may contain tracked rulesets and finished records. Raises
    RepositoryUnusableError, which names the variable, the place and why.
    """
    executable = shutil.which("git")
    if executable is None:
        return  # the service does not start then
    runner = GitRunner(executable, settings.git_timeout_seconds, settings.git_memory_bytes)
    if settings.env_file is not None:
        top = Path(os.path.realpath(repository_top(settings.repo_path)))
        served = _work_tree(runner, top)
        for place in _places(settings.env_file):
            around = _work_tree(runner, place.parent)
            # An operator may keep settings in another repository, but not in the served one, in
            # another work tree of it, or in a submodule.
            is_served = place.is_relative_to(top) or (
                served is not None and around is not None and served.git_dir == around.git_dir
            )
            if is_served and _tracked_at(runner, place):
                raise _refusal("env_file", place, "it is tracked in the served repository")
    folders = {"home": settings.home, "autonomous_runs_dir": settings.autonomous_runs_dir}
    for name, folder in folders.items():
        *links, place = _places(folder)
        for link in links:
            if _tracked_at(runner, link):
                raise _refusal(name, link, "it is a link that a repository tracks")
        found = _tracked_at(runner, place)
        if name == "autonomous_runs_dir":
            found = _other_than_records(found, place)
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            raise _refusal(name, folder, f"a repository tracks {found[0].place}{more}")


def _refusal(name: str, place: Path, why: str) -> RepositoryUnusableError:
    variable = Settings.variable(name)
    return RepositoryUnusableError(
        f"{variable} ({place}): {why}, and a tracked file must not configure the service."
        f" Untrack it (`git rm --cached`), or set {variable} to another place."
    )


def _other_than_records(found: list[_Tracked], runs_dir: Path) -> list[_Tracked]:
    """Leave out rulesets and records of runs, if they are regular files at their usual paths."""
    names = {each.place: each.place.relative_to(runs_dir).parts for each in found}
    recorded = {parts[0] for parts in names.values() if parts[1:] == (RECORD,)}

    def is_known(each: _Tracked) -> bool:
        parts = names[each.place]
        is_ruleset = len(parts) == 1 and _RULESET.fullmatch(parts[0]) is not None
        return each.mode in _REGULAR and (is_ruleset or (len(parts) > 1 and parts[0] in recorded))

    return [each for each in found if not is_known(each)]


def _places(path: Path) -> list[Path]:
    """Return each link on the way to a path, then its target; no link is above them."""
    links: list[Path] = []
    place, ahead = Path(path.anchor), list(reversed(path.parts[1:]))
    while ahead:
        step = ahead.pop()
        place = place.parent if step == ".." else place / step
        if not place.is_symlink():
            continue
        links.append(place)
        if len(links) > _MAX_LINKS:
            raise RepositoryUnusableError(f"{path} leads through links that form a loop.")
        target = place.readlink()
        place = Path(target.anchor or place.parent)
        ahead += reversed(target.parts[1:] if target.anchor else target.parts)
    return [*links, place]


def _tracked_at(runner: GitRunner, place: Path) -> list[_Tracked]:
    """Return what repositories track at a path: the repository around it, or within it."""
    folders = (place.parent, place) if _may_be_repository(place) else (place.parent,)
    trees = dict.fromkeys(_work_tree(runner, each) for each in folders)
    return [each for tree in trees if tree for each in _entries(runner, tree.top, place)]


def _work_tree(runner: GitRunner, folder: Path) -> _WorkTree | None:
    """Return the work tree that a folder is in; the folder need not exist."""
    present = next(each for each in (folder, *folder.parents) if each.is_dir())
    real = present.resolve()
    if not any(_may_be_repository(each) for each in (real, *real.parents)):
        return None
    asked = ("rev-parse", "--path-format=absolute", "--git-common-dir", "--show-toplevel")
    answer = runner.run(*asked, folder=present, environment=TRUST, allowed=(0, 128))
    if answer.status:
        return None
    git_dir, top = answer.stdout.decode(errors="surrogateescape").removesuffix("\n").split("\n")
    return _WorkTree(Path(top), Path(git_dir))


def _may_be_repository(folder: Path) -> bool:
    """Say whether git would look closer at a folder: a repository has a `.git` or is bare.

    Most homes are in no repository, and no process of git is needed to see that.
    """
    return any(os.path.lexists(folder / name) for name in (".git", "HEAD"))


def _entries(runner: GitRunner, top: Path, place: Path) -> Iterator[_Tracked]:
    if not place.is_relative_to(top):
        return
    path = "" if place == top else str(place.relative_to(top))  # git refuses `.` here
    options = ("ls-files", "--stage", "-z", "--", f":(top,literal){path}")
    output = runner.run(*options, folder=top, environment=TRUST).stdout
    for line in output.decode(errors="surrogateescape").split("\0")[:-1]:
        what, _, name = line.partition("\t")
        yield _Tracked(what.partition(" ")[0], top / name)
