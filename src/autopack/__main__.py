"""`python -m autopack serve`: the service on the repository of the current folder.

`python -m autopack backtest`: what another ruleset would have made of its finished runs.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import uvicorn

from . import __version__
from .config import Settings, SettingsError, load_settings, repository_top
from .database import DatabaseError, open_database
from .gitrepo.errors import RepositoryUnusableError
from .gitrepo.repository import Repository

WRONG_USE = 2
# Open streams would keep a stopping server waiting for ever.
GRACEFUL_SECONDS = 5

NEXT_STEP = """\
curl -X POST {url}/runs/start -H 'Content-Type: application/json' -d '{{
  "run": {{"run_id": "run-001"}},
  "tiers": [{{"tier_id": "T1", "tier_index": 0, "name": "First tier"}}],
  "phases": [{{"phase_id": "P1.1", "phase_index": 0, "tier_id": "T1", "name": "First phase",
              "task_category": "docs", "complexity": "low"}}]
}}'"""


class StartError(Exception):
    """The service cannot start. The message is one line that says what to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 2 when something must be put right first."""
    parser = argparse.ArgumentParser(prog="autopack", description="Supervise autonomous builds.")
    commands = parser.add_subparsers(required=True, metavar="command")
    serve_parser = commands.add_parser(
        "serve", help="serve the HTTP API on the git repository of the current folder"
    )
    serve_parser.add_argument("--host", help="address to listen on (AUTOPACK_HOST, 127.0.0.1)")
    serve_parser.add_argument("--port", help="port to listen on, 0 for any (AUTOPACK_PORT, 8000)")
    serve_parser.add_argument(
        "--demo",
        action="store_true",
        help="serve a throw-away sample repository and drive one whole run on it",
    )
    backtest_parser = commands.add_parser(
        "backtest", help="say what another ruleset would have made of finished runs"
    )
    backtest_parser.add_argument("--ruleset", required=True, type=Path, help="a ruleset's file")
    backtest_parser.add_argument(
        "--run", action="append", default=[], metavar="RUN_ID", help="only this run, or these"
    )
    backtest_parser.add_argument("--limit", type=int, help="how many of the newest runs (100)")
    backtest_parser.add_argument("--json", action="store_true", help="print the whole answer")
    backtest_parser.add_argument("--url", help="the service (API_URL, http://localhost:8000)")
    serve_parser.set_defaults(command=_run_service)
    backtest_parser.set_defaults(command=_backtest)
    options = parser.parse_args(arguments)
    exit_code: int = options.command(options)
    return exit_code


def _backtest(options: argparse.Namespace) -> int:
    """Print what would change: 0 when nothing does, 1 when something does, 2 on errors."""
    from .client.backtest import BacktestError, run_backtest

    try:
        found = run_backtest(
            options.ruleset,
            url=options.url,
            run_ids=options.run,
            limit=options.limit,
            as_json=options.json,
        )
    except BacktestError as error:
        print(f"autopack: {error}", file=sys.stderr)
        return WRONG_USE
    print(found.text)
    return 1 if found.is_changed else 0


def _run_service(options: argparse.Namespace) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _exit)
    # A closed terminal, unless nohup said to go on without one.
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        with ExitStack() as stack:
            _serve(options, stack)
    except (SettingsError, DatabaseError, RepositoryUnusableError, StartError) as error:
        print(f"autopack: {error}", file=sys.stderr)
        return WRONG_USE
    return 0


def _serve(options: argparse.Namespace, stack: ExitStack) -> None:
    """Check what can be wrong, each with one line, then serve until a signal comes."""
    given = {"host": options.host, "port": options.port}
    values: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    if options.demo:
        values |= _demo_values(stack)
    settings = load_settings(**values)
    repository = Repository.open(settings)
    branch = repository.base().branch
    repository.close()
    listener = stack.enter_context(_listen(settings.host, settings.port))
    port = listener.getsockname()[1]
    url = f"http://{_shown_host(settings.host)}:{port}"
    from .main import create_app  # here, so that what is wrong above is told at once

    app = create_app(settings)
    # Opened by the application too; here, so that a wrong one is told in one line.
    database = stack.enter_context(open_database(settings))
    database.migrate()
    server = _Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=GRACEFUL_SECONDS,
            server_header=False,
            # Loopback callers are trusted by their address: no header may make up another one.
            proxy_headers=False,
        ),
        on_started=lambda: _announce(settings, branch, url, is_demo=options.demo),
    )
    server.run(sockets=[listener])
    if not server.started:
        raise StartError("the service could not start: the reason stands above.")


class _Server(uvicorn.Server):
    """Tells when it answers."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_started()


def _announce(settings: Settings, branch: str, url: str, *, is_demo: bool) -> None:
    database = "the embedded Postgres" if settings.database_url is None else "DATABASE_URL"
    print(
        f"Autopack {__version__} serves {repository_top(settings.repo_path)} (base: {branch})\n"
        f"  API      {url}\n"
        f"  Docs     {url}/docs and {url}/redoc\n"
        f"  Data     {database}; {settings.home}; {settings.autonomous_runs_dir}",
        flush=True,
    )
    if is_demo:
        from .client.demo import run_demo

        arguments = (url, settings.repo_path, settings.autonomous_runs_dir)
        threading.Thread(target=run_demo, args=arguments, daemon=True).start()
        return
    print(f"\nNext, start a run:\n\n{NEXT_STEP.format(url=url)}\n\nCtrl-C stops.", flush=True)


def _demo_values(stack: ExitStack) -> dict[str, object]:
    """Lay out a sample repository, with everything of ours beside it, for as long as we run."""
    from .client.demo import SAMPLE_FILES
    from .gitrepo.sample import create_sample_repository

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autopack-demo-")))
    create_sample_repository(folder / "sample", SAMPLE_FILES)
    return {
        "repo_path": folder / "sample",
        "home": folder / "home",
        "autonomous_runs_dir": folder / "sample" / ".autonomous_runs",
        "base_branch": "main",
        "database_url": None,
        "git_remote": None,
    }


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything else starts. Raises StartError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"cannot listen on {host}: {error.strerror}.") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {host} port {port}: {error.strerror}. "
            "Choose another by --port or AUTOPACK_PORT."
        ) from error
    return listener


def _shown_host(host: str) -> str:
    """Return a host that works in an address: nobody can call 0.0.0.0."""
    if host in {"0.0.0.0", "::"}:  # noqa: S104  compared, not bound
        return "localhost"
    return f"[{host}]" if ":" in host else host


def _exit(number: int, _frame: object) -> None:
    """Leave through every `finally`, so that the embedded Postgres stops too.

    uvicorn raises the signal again when it is done; the default would end the process on the spot.
    """
    raise SystemExit(0 if number == signal.SIGTERM else 128 + number)


if __name__ == "__main__":
    sys.exit(main())
