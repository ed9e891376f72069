"""`autopack up`: service, run, worker and a live board in one command. (docs/tutorial.md)"""

from __future__ import annotations

import json as json_text
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import IO, Annotated, Final

import typer

from ..client import Autopack
from ..config import Settings, SettingsError
from ..domain.terms import CiMode
from ..gitrepo.errors import RepositoryUnusableError
from ..gitrepo.repository import Repository
from ..views.runs import RunAnswer
from .address import told_address
from .board import Board
from .child import Child
from .command import FINE, NO, UNAVAILABLE, CommandError, command_app
from .run import PATIENT_RETRIES
from .service import asking, read_document
from .settings import read_settings
from .terminal import JsonOption, PlanArgument, busy, hint, make_console, print_json, say
from .trial import RulesetError, read_ruleset
from .work import INTERRUPTED, AuditorOption, BuilderOption, agents_for

HOST: Final = "127.0.0.1"
LOG: Final = "up.log"
START_SECONDS: Final = 180  # a first start creates the database
STOP_SECONDS: Final = 40
WORKER_STOP_SECONDS: Final = 30  # it gives its agent 10 seconds, then its lease back
PUSH_SECONDS: Final = 60
LEASE_SECONDS: Final = 60
POLL_SECONDS: Final = 0.1
LAST_BYTES: Final = 4_000

app = command_app()


class _Interrupted(BaseException):
    """A signal came. It is no Exception, so that no handler of errors takes it."""


@app.command()
def up(
    plan: PlanArgument,
    builder: BuilderOption = None,
    auditor: AuditorOption = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1, max=65_535, help="Port of the service (AUTOPACK_PORT; else a free one)."
        ),
    ] = None,
    timeout_minutes: Annotated[
        float, typer.Option(min=0.01, help="Minutes after which an agent's command is stopped.")
    ] = 60,
    json: JsonOption = False,
) -> int:
    """Serve the current folder's repository, start a plan's run, and work on it until it is over.

    Ctrl-C stops service, worker and agents; the same command continues the same run. Ends with 0
    when the run succeeded, 1 when it failed.
    """
    document = read_document(plan)
    agents_for(builder=builder, auditor=auditor)  # a wrong command is told before anything starts
    with _stopping_on_signals() as children:
        try:
            settings = read_settings()
            repository = Repository.open(settings)  # creates the service's folder, for the log
            branch = repository.base().branch
            with ExitStack() as stack:
                log = stack.enter_context(_open_log(settings.home / LOG))
                url = _serve(stack, children, settings, port, log)
                with asking(url, retries=PATIENT_RETRIES, project="") as client:
                    run = client.start_run(document)
                    if run.ended_at is None:
                        options = ["--timeout-minutes", str(timeout_minutes)]
                        for name, command in (("--builder", builder), ("--auditor", auditor)):
                            options += [] if command is None else [name, command]
                        footer = _footer(settings, url)
                        file = settings.home / LOG
                        run = _work(stack, children, client, run, options, log, file, footer, json)
                        _wait_for_push(client, run)
                    else:
                        say(f"The run {run.run_id} is over: another plan needs another run_id.")
            _tell_end(run, branch, as_json=json)
        except _Interrupted:
            if not json:
                hint("", "Stopped. The same command continues the run.")
            return INTERRUPTED
        except (SettingsError, RepositoryUnusableError) as error:
            raise CommandError(str(error)) from error
        except OSError as error:
            raise CommandError(f"{error.filename}: {error.strerror}") from error
    return FINE if run.state == "DONE_SUCCESS" else NO


@contextmanager
def _stopping_on_signals() -> Iterator[list[Child]]:
    """Raise _Interrupted at the first signal; at a second one, kill the children."""
    children: list[Child] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        for number in numbers:
            signal.signal(number, kill)
        raise _Interrupted

    def kill(_number: int, _frame: FrameType | None) -> None:
        for child in children:
            child.kill()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # ignored: by nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield children
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _serve(
    stack: ExitStack, children: list[Child], settings: Settings, port: int | None, log: IO[bytes]
) -> str:
    """Start a service; return its address when it answers. Raises CommandError.

    Only the service itself says where it answers: another process may have taken the port, and the
    plan must not go to another project's service.
    """
    wanted = port or settings.port
    chosen = wanted if port is not None or _is_free(wanted) else 0
    if not chosen:
        hint(f"Port {wanted} is in use: this service takes another one.")
    service = Child(["serve", "--host", HOST, "--port", str(chosen)], stdout=log, stderr=log)
    stack.callback(service.stop, STOP_SECONDS)
    file = settings.home / LOG
    deadline = time.monotonic() + START_SECONDS
    with busy("the service starts"):
        while time.monotonic() < deadline:
            has_ended = service.has_ended  # before the log is read, which then has its last words
            if url := told_address(file.read_text(errors="replace")):
                children.append(service)
                return url
            if has_ended:
                reason = _last_line(file, 0) or "it says nothing"
                code = service.process.returncode
                exit_code = code if code in (NO, UNAVAILABLE) else 2
                raise CommandError(reason.removeprefix("autopack: "), exit_code)
            time.sleep(POLL_SECONDS)
    raise CommandError(f"the service gave no answer: see {file}", UNAVAILABLE)


def _work(
    stack: ExitStack,
    children: list[Child],
    client: Autopack,
    run: RunAnswer,
    options: list[str],
    log: IO[bytes],
    file: Path,
    footer: list[str],
    as_json: bool,
) -> RunAnswer:
    """Start the worker, and show the run until it is over."""
    after = max((event.sequence for event in client.events(run.run_id)), default=0)
    board = Board(client, run.run_id, after=after, footer=footer)
    words = ["work", "--run", run.run_id, "--json", "--url", client.address, *options]
    # Short: after a crash of the worker, the next one waits for the end of its lease.
    words += ["--lease-seconds", str(LEASE_SECONDS)]
    start = os.fstat(log.fileno()).st_size
    worker = Child(words, stdout=subprocess.PIPE, stderr=log)
    stack.callback(worker.stop, WORKER_STOP_SECONDS)
    children.append(worker)
    Thread(target=_relay, args=(worker, board, file, start), daemon=True).start()
    is_live = sys.stdout.isatty() and not as_json
    return board.show_live() if is_live else board.show_lines(as_json=as_json)


def _relay(worker: Child, board: Board, log: Path, start: int) -> None:
    """Show the worker's lines; end the view when the worker ends before the run."""
    output = worker.process.stdout
    for line in output or ():
        try:
            step = json_text.loads(line)
            board.add("  ".join(filter(None, (step.get("phase_id"), step["detail"]))))
        except (ValueError, KeyError, TypeError, AttributeError):
            board.add(line.decode(errors="replace").rstrip())
    code = worker.process.wait()
    if code in (FINE, NO):
        return  # the run is over: its last event ends the view
    reason = _last_line(log, start) or f"the worker ended with exit code {code}"
    board.fail(CommandError(reason.removeprefix("autopack: ")))


def _wait_for_push(client: Autopack, run: RunAnswer) -> None:
    """Let the service push the branch, if there is a remote, before it is stopped."""
    deadline = time.monotonic() + PUSH_SECONDS
    with busy("the branch is pushed"):
        while time.monotonic() < deadline:
            remote = client.integration_status(run.run_id).remote
            if remote is None or remote.is_up_to_date:
                return
            time.sleep(POLL_SECONDS)
    hint("The branch is not pushed yet: the next start pushes it.")


def _footer(settings: Settings, url: str) -> list[str]:
    lines = []
    with suppress(RulesetError):
        _, ruleset = read_ruleset(settings)
        if ruleset is not None and ruleset.ci.mode is CiMode.NONE:
            lines.append("No CI judges the phases: `autopack init` switches it on.")
    lines.append(f"{url}  Ctrl-C stops all; the same command continues.")
    return lines


def _tell_end(run: RunAnswer, base: str, *, as_json: bool) -> None:
    if as_json:
        print_json(run, is_line=True)
        return
    if not sys.stdout.isatty():
        from .view import run_view

        make_console().print(run_view(run))
    say(
        "",
        f"The changes:      git diff {base}...{run.branch}",
        f"May it be merged: autopack verify {run.run_id} --base {base}",
    )


def _open_log(file: Path) -> IO[bytes]:
    """Open a new log that only this user can read. Processes append to it."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(file, flags, 0o600), "ab")


def _last_line(log: Path, start: int) -> str | None:
    """Return the last line with text that was written to the log since `start`."""
    with log.open("rb") as file:
        file.seek(max(start, file.seek(0, 2) - LAST_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), None)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
