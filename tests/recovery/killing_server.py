"""Starts the real service many times, each time able to kill itself at a step of its work.

A process that has imported everything and forks a child for each service, which is then up in a
moment. It reads one JSON line a command: `{"start": {…environment…}, "log": path}` is answered by
the child's id, `{"wait": id}` by how it ended. The file that KILL_AT names says where to die next,
as `<step> <passage>`; while there is none, the service is as its users know it.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

# All that a service imports, before the fork: the last three it imports only when it needs them.
import alembic.command  # noqa: F401
import anyio._backends._asyncio  # noqa: F401
import uvicorn.lifespan.on  # noqa: F401

from autopack import main as _imported  # noqa: F401
from autopack.cli import serve as _command  # noqa: F401
from autopack.cli.app import main
from autopack.gitrepo.objects import Objects
from autopack.gitrepo.refs import PreparedRefs
from autopack.gitrepo.repository import Repository
from autopack.mirror import files
from autopack.mirror.mirror import Mirror
from autopack.store import runs
from autopack.store.session import RowSession

Function = Callable[..., Any]


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
        (Objects, "install", lambda f: before(fate, "objects_verified", f)),
        (Repository, "apply", lambda f: after(fate, "objects_written", f)),
        (Repository, "write_commit", lambda f: after(fate, "commit_written", f)),
        (Repository, "prepare_refs", lambda f: within(fate, "flushed", "refs_prepared", f)),
        (PreparedRefs, "commit", lambda f: before(fate, "committed", f)),
        (PreparedRefs, "commit", lambda f: after(fate, "refs_moved", f)),
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


def start(environment: dict[str, str], log: str) -> int:
    """Fork a service and return its process id."""
    child = os.fork()
    if child:
        return child
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (sys.stdout.fileno(), sys.stderr.fileno()):
        os.dup2(output, descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    os.chdir(environment["AUTOPACK_REPO_PATH"])
    os.setpgid(0, 0)
    watch(Fate(Path(environment["KILL_AT"])))
    status = 1
    try:
        status = main(["serve"])
    finally:
        os._exit(status)


def serve(commands: TextIO, answers: TextIO) -> None:
    for line in commands:
        command = json.loads(line)
        if "start" in command:
            answer = start(command["start"], command["log"])
        else:
            _, status = os.waitpid(command["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        answers.write(f"{answer}\n")
        answers.flush()


if __name__ == "__main__":
    gc.freeze()  # what was imported is garbage in no service
    serve(sys.stdin, sys.stdout)
