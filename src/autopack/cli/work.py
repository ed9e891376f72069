"""`autopack work`: run agents' commands for runs. (docs/worker.md)"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import tracing
from .command import FINE, NO, CommandError, command_app
from .service import asking
from .terminal import UrlOption, print_json, say

if TYPE_CHECKING:
    from ..meter.server import GatewayServer
    from ..worker.agents import Agent
    from ..worker.worker import Ending, Orders, Role, Step, Tell

INTERRUPTED = 130
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_EXPANSION = re.compile(r"^[^'\"]*(\$[A-Za-z_({]|`)")
_LONGEST_NAME = 100
_INTERPRETERS = re.compile(r"(ba|da|z|k)?sh|python[\d.]*|node|perl|ruby|deno|bun")

app = command_app()

BuilderOption = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="Builds: a command, or a known agent.")
]
AuditorOption = Annotated[
    str | None, typer.Option(metavar="COMMAND", help="Reviews: a command, or a known agent.")
]


@app.command()
def work(
    builder: BuilderOption = None,
    auditor: AuditorOption = None,
    agent: Annotated[
        str | None,
        typer.Option(metavar="AGENT", help="Builds: aider, claude, codex, gemini or opencode."),
    ] = None,
    fallback: Annotated[
        str | None,
        typer.Option(metavar="COMMAND", help="Used while the others' account has no capacity."),
    ] = None,
    account: Annotated[
        str | None,
        typer.Option(metavar="LABEL", help="Account whose limits they share (the program's name)."),
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="RUN_ID", help="Work on this run, until it is over.")
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Do one work item.")] = False,
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of this worker in runs (PROGRAM@HOST).")
    ] = None,
    builder_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the Builder in runs (as --name).")
    ] = None,
    auditor_name: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the Auditor in runs (as --name).")
    ] = None,
    lease_seconds: Annotated[
        int, typer.Option(min=1, max=86_400, help="Seconds until a lost worker's lease lapses.")
    ] = 300,
    timeout_minutes: Annotated[
        float, typer.Option(min=0.01, help="Minutes after which a command is stopped.")
    ] = 60,
    poll_seconds: Annotated[
        float, typer.Option(min=0.05, help="Seconds between requests while there is no work.")
    ] = 2,
    remote: Annotated[
        str | None,
        typer.Option(
            envvar="AUTOPACK_GIT_REMOTE",
            help="Where to fetch the repository, instead of the service's address.",
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            envvar="AUTOPACK_WORKER_HOME",
            help="Where work trees and copies of repositories are (~/.cache/autopack-worker).",
        ),
    ] = None,
    meter: Annotated[
        bool,
        typer.Option(
            "--meter", help="Measure what agents spend; keep the model's key and the budget."
        ),
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
    url: UrlOption = None,
) -> int:
    """Run agents' commands to build and review phases of runs.

    A command gets its task on standard input and works in its own folder; its changes there are
    submitted as a patch. Exits with 0 when the run succeeded, 1 when it failed. Without --run it
    works on any run until it is stopped. More in docs/worker.md.
    """
    from ..worker.worker import Orders

    if agent is not None:
        builder = _known(agent, builder)
    orders = Orders(
        agents=agents_for(
            builder=builder,
            auditor=auditor,
            fallback=fallback,
            account=account,
            builder_name=builder_name or name,
            auditor_name=auditor_name or name,
        ),
        run_id=run,
        is_once=once,
        lease_seconds=lease_seconds,
        timeout_seconds=timeout_minutes * 60,
        poll_seconds=poll_seconds,
        remote=remote,
    )
    home = (folder or Path("~/.cache/autopack-worker")).expanduser().absolute()
    ending = _work(orders, home, url, _print_json if json else _print, is_metered=meter)
    if ending == "interrupted":
        # Work on any run normally ends by a signal; work on one run should end with the run.
        return INTERRUPTED if run or once else FINE
    return FINE if ending == "success" else NO


def _work(orders: Orders, home: Path, url: str | None, tell: Tell, *, is_metered: bool) -> Ending:
    from ..gitrepo.workspace import ObjectCache, WorkspaceError
    from ..worker import workspace
    from ..worker.cooling import WorkerError
    from ..worker.mailbox import Mail, Mailbox
    from ..worker.worker import Worker

    mailbox = Mailbox()
    gateway = _gateway(orders) if is_metered else None

    def interrupt(number: int, _frame: object) -> None:
        mailbox.post(Mail.INTERRUPTED)
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the worker at once

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored: by nohup
            signal.signal(number, interrupt)
    try:
        with ExitStack() as stack:
            if collector := os.environ.get(tracing.ENDPOINT_VARIABLE):
                stack.callback(tracing.start(collector, "autopack-work"))
            service = stack.enter_context(asking(url))
            folder = stack.enter_context(workspace.enter(home))
            if gateway is not None:
                stack.enter_context(gateway)
            cache = ObjectCache(home / "repositories", os.environ.get("SSH_AUTH_SOCK"))
            worker = Worker(
                service, orders, folder, cache, mailbox, os.environ, tell, gateway=gateway
            )
            return worker.work()
    except (WorkerError, WorkspaceError) as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or home}: {error.strerror}") from error


def _gateway(orders: Orders) -> GatewayServer:
    """Take the models' keys out of this process's environment, into a gateway.

    Raises CommandError where the gateway has no key, or opencode cannot be told its address.
    """
    from ..meter.providers import ProviderError, providers_of, without_keys
    from ..meter.server import GatewayServer
    from ..worker.command import hide_from_other_processes
    from ..worker.metered import opencode_settings

    try:
        providers = providers_of(os.environ)
        if "opencode" in orders.kinds:
            opencode_settings(os.environ)
    except ProviderError as error:
        raise CommandError(str(error)) from error
    hide_from_other_processes()
    for name in os.environ.keys() - without_keys(os.environ, providers).keys():
        del os.environ[name]
    return GatewayServer(providers)


def _known(agent: str, builder: str | None) -> str:
    from ..worker.agents import KNOWN_AGENTS

    if builder is not None:
        raise CommandError("--agent and --builder both select the Builder; give one of them")
    if agent not in KNOWN_AGENTS:
        names = ", ".join(KNOWN_AGENTS)
        raise CommandError(
            f"--agent {agent!r} is not a known agent ({names}); --builder accepts any command, and "
            "--name sets this worker's name in runs"
        )
    return agent


def agents_for(
    *,
    builder: str | None,
    auditor: str | None,
    fallback: str | None = None,
    account: str | None = None,
    builder_name: str | None = None,
    auditor_name: str | None = None,
) -> dict[Role, Agent]:
    """Return the agents of the options. Raises CommandError for a command that cannot start."""
    given: dict[Role, str | None] = {"auditor": auditor, "builder": builder}  # reviews first
    names: dict[Role, str | None] = {"auditor": auditor_name, "builder": builder_name}
    agents: dict[Role, Agent] = {}
    for role, text in given.items():
        if text is not None:
            mine = names[role]
            second = _agent("fallback", role, fallback, mine, None) if fallback else None
            agents[role] = _agent(role, role, text, mine, account, second)
    if not agents:
        raise CommandError("give --builder or --auditor, or both")
    return agents


def _agent(
    option: str,
    role: Role,
    text: str,
    name: str | None,
    account: str | None,
    fallback: Agent | None = None,
) -> Agent:
    """Split a command as a shell would, and check that the program exists.

    The name of a known agent is replaced by its command line for the role.
    """
    from ..worker.agents import KNOWN_AGENTS, Agent

    try:
        words = shlex.split(text)
        syntax = _shell_syntax(text)
    except ValueError as error:
        raise CommandError(f"--{option} {text!r}: {error}") from error
    if syntax is not None:
        raise CommandError(
            f"--{option} {text!r}: no shell runs the command, so {syntax!r} has no effect; give"
            f" a shell ({shlex.join(['sh', '-c', text])}), or quote it if an argument is meant"
        )
    kind = None
    if len(words) == 1 and words[0] in KNOWN_AGENTS:
        kind = words[0]
        words = list(getattr(KNOWN_AGENTS[kind], role))
    program = shutil.which(words[0]) if words else None
    if program is None:
        raise CommandError(f"--{option} {text!r}: the program does not exist")
    called = Path(program).name
    name = name or f"{kind or _script(words) or called}@{socket.gethostname()}"[:_LONGEST_NAME]
    # The command runs in another folder, so its path must be absolute.
    command = [os.path.abspath(program), *words[1:]]
    return Agent(name, command, kind or called, account or called[:_LONGEST_NAME], fallback)


def _shell_syntax(text: str) -> str | None:
    """Return the first word outside quotes that only a shell understands, else None."""
    lexer = shlex.shlex(text, posix=False, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    for number, word in enumerate(lexer):
        if set(word) <= set("();<>|&") or (number == 0 and _ASSIGNMENT.match(word)):
            return word
        if word[0] not in "'\"" and _EXPANSION.search(word):
            return word
    return None


def _script(words: list[str]) -> str | None:
    """Return the script that an interpreter runs: `python3 review.py`; None: it is no such call."""
    is_interpreter = len(words) > 1 and _INTERPRETERS.fullmatch(Path(words[0]).name)
    return None if not is_interpreter or words[1].startswith("-") else Path(words[1]).name


def _print(step: Step) -> None:
    item = step.item
    where = f"{item.run_id}/{item.phase_id}  " if item else ""
    say(f"{where}{step.text}", is_now=True)


def _print_json(step: Step) -> None:
    document: dict[str, object] = {"event": step.kind, "detail": step.text}
    if step.item is not None:
        of_item = step.item.model_dump(mode="json", include={"run_id", "phase_id", "role"})
        document |= of_item
    print_json(document, is_line=True)
