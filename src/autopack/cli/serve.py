"""`autopack serve`: the service on the repository of the current folder."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..ci.sandbox import Bubblewrap
from ..config import Settings, SettingsError, repository_top
from ..domain.errors import UnavailableError
from ..gitrepo.repository import Repository
from ..migrating import DatabaseError
from .address import address_line
from .answering import BACKLOG, Answering, answer
from .command import ClosedPipeError, CommandError, command_app, importing
from .settings import read_settings
from .signals import leave_on_signals
from .terminal import say

app = command_app()

# A client that reads nothing for so long is disconnected; else its connection stays open forever.
STALLED_SECONDS = 60

FIRST_KEY = """\
umask 077; autopack keys create --name ada --role operator >key
autopack login --url {url} <key"""
NEXT_STEP = """\
curl -X POST {url}/runs/start -H 'Content-Type: application/json' -d '{{
  "run": {{"run_id": "first-run"}},
  "tiers": [{{"tier_id": "T1", "tier_index": 0, "name": "First tier"}}],
  "phases": [{{"phase_id": "P1.1", "phase_index": 0, "tier_id": "T1", "name": "First phase",
              "task_category": "docs", "complexity": "low"}}]
}}'"""


@app.command()
def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (AUTOPACK_HOST, 127.0.0.1).")
    ] = None,
    port: Annotated[
        str | None, typer.Option(help="Port to listen on, 0 for any (AUTOPACK_PORT, 8000).")
    ] = None,
    demo: Annotated[
        bool,
        typer.Option("--demo", help="Serve a sample repository and carry out one run on it."),
    ] = False,
    processes: Annotated[
        str | None, typer.Option(help="Processes that answer requests (AUTOPACK_PROCESSES, 1).")
    ] = None,
) -> None:
    """Serve the HTTP API on the git repository of the current folder."""
    leave_on_signals()
    given = {"host": host, "port": port, "processes": processes}
    try:
        with ExitStack() as stack:
            _serve(
                stack,
                {name: value for name, value in given.items() if value is not None},
                is_demo=demo,
            )
    except (SettingsError, DatabaseError, UnavailableError) as error:
        raise CommandError(str(error)) from error


def _serve(stack: ExitStack, given: dict[str, str], *, is_demo: bool) -> None:
    """Check the set-up, with one line for each error, then serve until a signal comes."""
    values: dict[str, object] = {**given}
    if is_demo:
        values |= _demo_values(stack)
    settings = read_settings(**values)
    repository = Repository.open(settings)
    branch = repository.base().branch
    listener = stack.enter_context(_listen(settings.host, settings.port))
    url = f"http://{_shown_host(settings.host)}:{listener.getsockname()[1]}"

    def announce() -> None:
        with suppress(ClosedPipeError):  # the service runs nevertheless
            _announce(settings, branch, url, is_demo=is_demo)

    if settings.processes > 1:
        answering = Answering(settings, url, is_answering_only=True)
        _serve_by_several(stack, answering, listener, repository, announce)
    elif not answer(Answering(settings, url, is_answering_only=False), stack, listener, announce):
        raise CommandError("the service could not start: see the reason above.")


def _serve_by_several(
    stack: ExitStack,
    given: Answering,
    listener: socket.socket,
    repository: Repository,
    announce: Callable[[], None],
) -> None:
    """Serve by processes that answer, beside the background work in this one."""
    # Here, as one process has no use for it.
    from .processes import ProcessEndedError, answering_processes

    with importing():
        from ..background import first_process

    stack.enter_context(first_process(given.settings))
    count = given.settings.processes
    try:
        processes = stack.enter_context(answering_processes(given, count, listener, repository))
    except ProcessEndedError as error:
        raise CommandError(str(error)) from error
    announce()
    processes.keep_running()


def _announce(settings: Settings, branch: str, url: str, *, is_demo: bool) -> None:
    database = "the embedded Postgres" if settings.database_url is None else "DATABASE_URL"
    say(
        f"Autopack {__version__} serves {repository_top(settings.repo_path)} (base: {branch})",
        address_line(url),
        f"  Pages    {url}/dashboard",
        f"  Docs     {url}/docs and {url}/redoc",
        f"  Data     {database}; {settings.home}; {settings.autonomous_runs_dir}",
        is_now=True,
    )
    if (problem := Bubblewrap(settings).problem) is not None:
        how = "does not run" if settings.ci_sandbox == "required" else "runs without a sandbox"
        say(f"  CI       {how}: {problem}", is_now=True)
    if is_demo:
        from ..client.demo import run_demo

        arguments = (url, settings.repo_path, settings.autonomous_runs_dir)
        threading.Thread(target=run_demo, args=arguments, daemon=True).start()
        return
    is_closed = settings.auth == "required"
    title = "Callers need a key. The first one:" if is_closed else "Next, start a run:"
    step = (FIRST_KEY if is_closed else NEXT_STEP).format(url=url).split("\n")
    say("", title, "", *step, "", "Ctrl-C stops.", is_now=True)


def _demo_values(stack: ExitStack) -> dict[str, object]:
    """Create a sample repository and the service's folders, for the time of the demo."""
    from ..client.demo import SAMPLE_FILES
    from ..gitrepo.sample import create_sample_repository

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autopack-demo-")))
    create_sample_repository(folder / "sample", SAMPLE_FILES)
    return {
        "repo_path": folder / "sample",
        "home": folder / "home",
        "autonomous_runs_dir": folder / "sample" / ".autonomous_runs",
        "base_branch": "main",
        "database_url": None,
        "git_remote": None,
        "auth": "loopback",
    }


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port before anything else starts. Raises CommandError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}: {error.strerror}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it
            listener.setsockopt(
                socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, STALLED_SECONDS * 1_000
            )
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CommandError(
            f"cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another by --port or AUTOPACK_PORT."
        ) from error
    return listener


def _shown_host(host: str) -> str:
    """Return a host that a client can call, as 0.0.0.0 is not one."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        return "localhost"
    return f"[{host}]" if ":" in host else host
