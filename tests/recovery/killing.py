"""Makes the service of this process able to kill itself at a step of its work.

The fork server runs this before the service's command. The file that KILL_AT names says where to
die next, as `<step> <passage>`; while there is none, the service is as its users know it, but it
looks after its node ten times as often: only then it finds other nodes.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autopack.gitrepo.objects import LooseFile, Objects
from autopack.gitrepo.quarantine import Quarantine
from autopack.gitrepo.ref_lock import RefLock
from autopack.gitrepo.refs import PreparedRefs
from autopack.gitrepo.repository import Repository
from autopack.mirror import files
from autopack.mirror.mirror import Mirror
from autopack.services import nodes, sightings
from autopack.store import issues, leases, runs
from autopack.store.session import RowSession

Function = Callable[..., Any]
LOOK_SECONDS = 0.5


class Fate:
    """Where this process is to die."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._passages = 0

    def passes(self, step: str) -> None:
        """End the process with SIGKILL if this is the step and the passage of it."""
        try:
            wanted, passage = self._path.read_text().split()
        except FileNotFoundError:
            self._passages = 0
            return
        if wanted != step:
            return
        self._passages += 1
        if self._passages == int(passage):
            os.kill(os.getpid(), signal.SIGKILL)


def before(fate: Fate, step: str, function: Function) -> Function:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        fate.passes(step)
        return function(*arguments, **named)

    return wrapped


def after(fate: Fate, step: str, function: Function) -> Function:
    @functools.wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = function(*arguments, **named)
        fate.passes(step)
        return result

    return wrapped


def within(fate: Fate, outside: str, inside: str, function: Function) -> Function:
    """Pass one step before a context manager is entered, and one right after."""

    @functools.wraps(function)
    @contextmanager
    def wrapped(*arguments: Any, **named: Any) -> Iterator[Any]:
        fate.passes(outside)
        with function(*arguments, **named) as value:
            fate.passes(inside)
            yield value

    return wrapped


def gathered(function: Function) -> Function:
    """Note at a session that it has the mark to send."""

    @functools.wraps(function)
    def wrapped(session: RowSession, *arguments: Any) -> Any:
        session.info["has_mark"] = True
        return function(session, *arguments)

    return wrapped


def sent(fate: Fate, step: str, commit: Function) -> Function:
    """Pass a step after the commit that has sent the mark."""

    @functools.wraps(commit)
    def wrapped(session: RowSession) -> None:
        commit(session)
        if session.info.pop("has_mark", False):
            fate.passes(step)

    return wrapped


class WatchedOs:
    """The module `os` as the mirror sees it, with a step after each rename."""

    def __init__(self, fate: Fate) -> None:
        self.rename = after(fate, "file_renamed", os.rename)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def watch(fate: Fate) -> None:
    """Put a step at each place where a crash leaves something different behind."""
    wrap: list[tuple[object, str, Callable[[Function], Function]]] = [
        (runs, "run_lock", lambda f: within(fate, "asked", "locked", f)),
        (leases, "add_lease", lambda f: after(fate, "leased", f)),
        (Quarantine, "take", lambda f: before(fate, "objects_verified", f)),
        (LooseFile, "rename", lambda f: before(fate, "object_written", f)),
        (Objects, "install", lambda f: after(fate, "objects_written", f)),
        (Repository, "write_commit", lambda f: after(fate, "commit_written", f)),
        (Repository, "prepare_refs", lambda f: within(fate, "flushed", "refs_prepared", f)),
        (RefLock, "write", lambda f: before(fate, "ref_locked", f)),
        (RefLock, "move", lambda f: after(fate, "ref_moved", f)),
        (PreparedRefs, "commit", lambda f: before(fate, "committed", f)),
        (PreparedRefs, "commit", lambda f: after(fate, "refs_moved", f)),
        (issues, "list_entries", lambda f: before(fate, "counted", f)),
        (issues, "lock_entries", lambda f: after(fate, "entries_locked", f)),
        (sightings, "let_age", lambda f: after(fate, "aged", f)),
        (Mirror, "write_run", lambda f: before(fate, "files_begun", f)),
        (Mirror, "write_run", lambda f: after(fate, "files_written", f)),
        (Mirror, "write_backlog", lambda f: after(fate, "backlog_written", f)),
        (runs, "mark_mirrored", lambda f: before(fate, "projected", f)),
        (runs, "mark_mirrored", gathered),
        (RowSession, "commit", lambda f: sent(fate, "mirrored", f)),
    ]
    for owner, name, wrapping in wrap:
        setattr(owner, name, wrapping(getattr(owner, name)))
    vars(files)["os"] = WatchedOs(fate)


if __name__ == "__main__":
    assert nodes.LOOK_SECONDS > LOOK_SECONDS  # it is Final, and still has this name
    vars(nodes)["LOOK_SECONDS"] = LOOK_SECONDS
    watch(Fate(Path(os.environ["KILL_AT"])))
